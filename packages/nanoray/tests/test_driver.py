"""What happens to the engine's processes when the driver ends, in any way."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

LIMIT_S = 60

PROGRAM = """
    import os, signal, sys, time
    import numpy as np
    import nanorlhf.nanoray as nanoray

    # A suite run under nohup hands down an ignored SIGHUP.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

    @nanoray.remote
    class Actor:
        def pids(self):
            return os.getpid(), os.getppid()
        def sleep(self):
            time.sleep(600)

    def main():
        nanoray.init(num_cpus=2)
        actor = Actor.remote()
        kept = nanoray.put(np.ones(1_000_000))
        print(*nanoray.get(actor.pids.remote(), timeout=30), flush=True)
        ref = actor.sleep.remote()
        sys.stdin.readline()
        END

    main()
"""


@pytest.fixture
def driver():
    """Start a driver that prints the ids of its worker and zygote and then waits for a line."""
    started = []

    def begin(end):
        program = textwrap.dedent(PROGRAM).replace("END", end)
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        started.append(process)
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        return process, pids

    yield begin
    for process in started:
        process.kill()
        process.communicate(timeout=LIMIT_S)


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_killed_driver_leaves_no_process(driver, until, is_running, sig):
    process, pids = driver("pass")
    process.send_signal(sig)
    process.wait(timeout=LIMIT_S)
    assert until(lambda: not any(is_running(pid) for pid in pids))


def test_a_stopped_zygote_does_not_save_the_workers(driver, until, is_running):
    process, (worker, zygote) = driver("pass")
    os.kill(zygote, signal.SIGSTOP)
    process.kill()
    process.wait(timeout=LIMIT_S)
    os.kill(zygote, signal.SIGCONT)
    assert until(lambda: not is_running(worker))
    assert until(lambda: not is_running(zygote))


@pytest.mark.parametrize(
    ("end", "code"),
    [("pass", 0), ("raise ValueError", 1), ("sys.exit(3)", 3), ("os._exit(4)", 4)],
)
def test_a_driver_that_ends_leaves_no_process_and_keeps_its_code(
    driver, until, is_running, end, code
):
    process, pids = driver(end)
    process.communicate("go\n", timeout=LIMIT_S)
    assert process.returncode == code
    assert until(lambda: not any(is_running(pid) for pid in pids))


def test_a_fork_of_the_driver_leaves_the_engine_alone(driver):
    fork = "pid = os.fork(); pid or sys.exit(); os.waitpid(pid, 0); "
    process, _ = driver(fork + "print(nanoray.get(nanoray.put(5)))")
    out, err = process.communicate("go\n", timeout=LIMIT_S)
    assert out.strip() == "5"
    assert "Traceback" not in err


def test_importing_the_package_is_cheap():
    heavy = "torch numpy cloudpickle"
    code = (
        f"import sys, nanorlhf.nanoray; print([m for m in {heavy!r}.split() if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
        env=env,
    )
    assert found.stdout.strip() == "[]"
