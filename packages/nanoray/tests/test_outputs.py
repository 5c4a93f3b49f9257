# ruff: noqa: T201  what is printed is what is tested
import os
import subprocess
import sys
import textwrap

import pytest

WAIT_S = 30


@pytest.fixture
def shout():
    def shout(text):
        print(text)
        print(f"{text} of trouble", file=sys.stderr)
        return os.getpid()

    return shout


def test_what_a_task_prints_is_shown_under_its_name(start, shout, capfd):
    ray = start(num_cpus=1)
    pid = ray.get(ray.remote(shout).remote("hello"), timeout=WAIT_S)
    ray.shutdown()
    captured = capfd.readouterr()
    assert captured.out == f"(shout pid={pid}) hello\n"
    assert captured.err == f"(shout pid={pid}) hello of trouble\n"


def test_an_actor_is_named_by_its_class_and_a_last_half_line_is_not_lost(start, capfd):
    ray = start(num_cpus=1)

    @ray.remote
    class Speaker:
        def say(self):
            os.write(1, b"from below\nno end")

    ray.get(Speaker.remote().say.remote(), timeout=WAIT_S)
    ray.shutdown()
    lines = capfd.readouterr().out.splitlines()
    assert [line.partition(") ")[2] for line in lines] == ["from below", "no end"]
    assert all(line.startswith("(Speaker pid=") for line in lines)


def test_many_processes_that_say_the_same_are_shown_once_and_counted(start, capfd):
    ray = start(num_cpus=1)

    @ray.remote
    class Rank:
        def stand(self):
            pass

        def warn(self, rank):
            print(f"rank {rank} is slow")

    ranks = [Rank.remote() for _ in range(4)]
    ray.get([rank.stand.remote() for rank in ranks], timeout=WAIT_S)  # to start may take seconds
    ray.get([rank.warn.remote(i) for i, rank in enumerate(ranks)], timeout=WAIT_S)
    ray.shutdown()
    captured = capfd.readouterr()
    assert captured.out.count("is slow") == 1
    assert "[3 lines like it from other processes]" in captured.err


def test_output_may_be_kept_from_the_driver(start, shout, capfd):
    ray = start(num_cpus=1, log_to_driver=False)
    ray.get(ray.remote(shout).remote("secret"), timeout=WAIT_S)
    ray.shutdown()
    captured = capfd.readouterr()
    assert "secret" not in captured.out + captured.err


def test_more_than_a_pipe_holds_is_printed_without_a_stop(start, capfd):
    ray = start(num_cpus=1)

    def flood():
        for number in range(20_000):
            print("line", number)

    ray.get(ray.remote(flood).remote(), timeout=WAIT_S)
    ray.shutdown()
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == [str(n) for n in range(20_000)]


def test_the_error_of_a_crash_ends_with_what_the_process_said_last(ray):
    def die():
        for number in range(30):
            print("step", number)
        print("out of luck", file=sys.stderr)
        os._exit(3)

    with pytest.raises(ray.WorkerCrashedError) as caught:
        ray.get(ray.remote(max_retries=0)(die).remote(), timeout=WAIT_S)
    text = str(caught.value)
    assert "exited with code 3; its last lines were:" in text
    assert "| step 29\n" in text
    assert "step 3\n" not in text
    assert text.endswith("| out of luck")


def test_a_driver_whose_output_nobody_reads_still_ends(tmp_path):
    program = textwrap.dedent("""
        import nanorlhf.nanoray as nanoray

        def main():
            nanoray.init(num_cpus=1)
            speak = nanoray.remote(print)
            nanoray.get([speak.remote("line", n) for n in range(100)], timeout=30)
            nanoray.shutdown()

        main()
    """)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", program], stdout=writer, timeout=60, check=False)
    os.close(writer)
    assert done.returncode in (0, 120)  # 120: Python itself could not flush its stdout
