import asyncio
import contextlib
import os
import signal
import time

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 30


@pytest.fixture
def sleeper(ray, tmp_path):
    """A task that says that it runs and then does something for long."""

    @ray.remote(num_cpus=0)
    def run(mark, work):
        with open(mark, "w"):
            pass
        work()
        return "done"

    return run


@pytest.fixture
def running(tmp_path, until):
    """Start a task, and return its ref once it runs: ``running(task, work)``."""
    marks = iter(range(1000))

    def start(task, work):
        mark = str(tmp_path / f"mark{next(marks)}")
        ref = task.remote(mark, work)
        assert until(lambda: os.path.exists(mark))
        return ref

    return start


def spin():
    while True:
        pass


def wait_for_child():
    nanoray.get(nanoray.remote(num_cpus=0)(lambda: time.sleep(60)).remote())


def wait_in_vain():
    nanoray.wait([nanoray.remote(num_cpus=0)(lambda: time.sleep(60)).remote()])


def call_all_the_time():
    while True:
        nanoray.get(nanoray.put(1))


@pytest.mark.parametrize(
    "work",
    [lambda: time.sleep(60), spin, wait_for_child, wait_in_vain, call_all_the_time],
    ids=["sleep", "python", "get", "wait", "calls"],
)
def test_a_task_that_runs_is_interrupted_and_its_process_goes_on(ray, sleeper, running, work):
    ref = running(sleeper, work)
    ray.cancel(ref)
    with pytest.raises(ray.TaskCancelledError, match="run"):
        ray.get(ref, timeout=10)
    assert ray.get(ray.remote(lambda: 1).remote(), timeout=WAIT_S) == 1


def caught(path, work):
    """Do something inside ``try`` only, and leave a mark there: an interrupt cannot miss it."""
    try:
        with open(path, "w"):
            pass
        time.sleep(60)
    except KeyboardInterrupt:
        return work()
    raise AssertionError("nobody cancelled this")


def test_a_task_that_runs_is_killed_by_force_and_not_retried(ray, tmp_path, until):
    mark = str(tmp_path / "mark")
    stubborn = ray.remote(num_cpus=0)(caught)
    ref = stubborn.remote(mark, lambda: time.sleep(60))
    assert until(lambda: os.path.exists(mark))
    ray.cancel(ref)
    with pytest.raises(ray.GetTimeoutError):
        ray.get(ref, timeout=0.3)
    os.remove(mark)
    ray.cancel(ref, force=True)
    with pytest.raises(ray.TaskCancelledError, match="was cancelled"):
        ray.get(ref, timeout=10)
    assert ray.get(ray.remote(lambda: 1).remote(), timeout=WAIT_S) == 1
    assert not os.path.exists(mark)


def test_a_task_may_clean_up_or_return_nevertheless(ray, tmp_path, until):
    def leave(path):
        with open(path, "w"):
            pass
        raise KeyboardInterrupt

    task, marks, note = ray.remote(num_cpus=0)(caught), [], str(tmp_path / "note")
    refs = []
    for work in (lambda: leave(note), lambda: "done"):
        marks.append(str(tmp_path / f"mark{len(marks)}"))
        refs.append(task.remote(marks[-1], work))
    assert until(lambda: all(map(os.path.exists, marks)))
    for ref in refs:
        ray.cancel(ref)
    with pytest.raises(ray.TaskCancelledError):
        ray.get(refs[0], timeout=10)
    assert os.path.exists(note)
    assert ray.get(refs[1], timeout=10) == "done"


def test_calls_that_wait_for_resources_or_arguments_end_at_once(ray, sleeper, running):
    blocker = running(sleeper.options(num_cpus=2), lambda: time.sleep(60))
    queued = sleeper.options(num_cpus=2).remote("/none/a", spin)
    waiting = ray.remote(lambda x: x).remote(blocker)
    for ref in (queued, waiting):
        ray.cancel(ref)
        with pytest.raises(ray.TaskCancelledError):
            ray.get(ref, timeout=5)
    after = ray.remote(lambda: "next").remote()
    ray.cancel(blocker)
    assert ray.get(after, timeout=WAIT_S) == "next"


def test_what_takes_a_cancelled_result_fails_with_it(ray, sleeper, running):
    ref = running(sleeper, spin)
    taker = ray.remote(lambda x: x).remote(ref)
    ray.cancel(ref)
    with pytest.raises(ray.TaskCancelledError):
        ray.get(taker, timeout=10)


def test_cancelling_what_is_ready_does_nothing(ray):
    ref, put = ray.remote(lambda: 5).remote(), ray.put(6)
    assert ray.get(ref, timeout=WAIT_S) == 5
    for force in (False, True):
        ray.cancel(ref, force=force)
        ray.cancel(put, force=force)
    assert ray.get([ref, put], timeout=WAIT_S) == [5, 6]


def test_the_calls_that_a_call_made_are_cancelled_with_it(ray, tmp_path, until):
    @ray.remote(num_cpus=0)
    def child(mark):
        caught(mark, lambda: os.remove(mark))

    @ray.remote(num_cpus=0)
    def parent(mark):
        ref = child.remote(mark)
        time.sleep(60)
        return ref

    for is_recursive in (True, False):
        mark = str(tmp_path / f"mark{is_recursive}")
        ref = parent.remote(mark)
        assert until(lambda mark=mark: os.path.exists(mark))
        ray.cancel(ref, recursive=is_recursive)
        with pytest.raises(ray.TaskCancelledError):
            ray.get(ref, timeout=10)
        if is_recursive:
            assert until(lambda mark=mark: not os.path.exists(mark))
    assert os.path.exists(mark), "the child of the second runs on"


def test_an_interrupt_never_hits_the_next_call(ray, until):
    """Cancel tasks about when they end: each ends as itself or as cancelled, and so does its
    successor in the same process."""
    quick = ray.remote(num_cpus=2)(lambda i: time.sleep(0.001 * (i % 3)) or i)
    for i in range(150):
        ref, after = quick.remote(i), quick.remote(1000 + i)
        time.sleep(0.0005 * (i % 5))
        ray.cancel(ref)
        with contextlib.suppress(ray.TaskCancelledError):
            assert ray.get(ref, timeout=WAIT_S) == i
        assert ray.get(after, timeout=WAIT_S) == 1000 + i


def test_a_method_that_waits_is_dropped_and_one_that_runs_goes_on(ray, tmp_path, until):
    @ray.remote
    class Slow:
        def __init__(self):
            self.seen = []

        def run(self, i, path=None):
            self.seen.append(i)
            if path is not None:
                open(f"{path}.begun", "w").close()
            while path is not None and not os.path.exists(path):
                time.sleep(0.01)
            return list(self.seen)

    actor = Slow.remote()
    late = ray.remote(num_cpus=0)(lambda: time.sleep(60)).remote()
    ray.get(actor.run.remote(0), timeout=WAIT_S)
    path = str(tmp_path / "go")
    refs = [actor.run.remote(1, path), actor.run.remote(2), actor.run.remote(late)]
    behind = actor.run.remote(4)
    assert until(lambda: os.path.exists(f"{path}.begun"))
    ray.cancel(refs[1])
    ray.cancel(refs[2])
    for ref in refs[1:]:
        with pytest.raises(ray.TaskCancelledError, match="was cancelled"):
            ray.get(ref, timeout=5)
    with pytest.raises(ValueError, match=r"force=True would kill the actor of Slow.run\(\)"):
        ray.cancel(refs[0], force=True)
    ray.cancel(refs[0])
    with pytest.raises(ray.GetTimeoutError):
        ray.get(refs[0], timeout=0.2)
    with open(path, "w"):
        pass
    assert ray.get(refs[0], timeout=WAIT_S) == [0, 1]
    assert ray.get(behind, timeout=WAIT_S) == [0, 1, 4]
    ray.cancel(late)


class Deaf:
    """An actor whose process never meets the signal, as if that came just before a wait."""

    def __init__(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])

    def held(self, mark):
        mark.touch()
        time.sleep(WAIT_S)


class DeafLooped(Deaf):
    """The same with an event loop."""

    async def held(self, mark):
        mark.touch()
        await asyncio.sleep(WAIT_S)


@pytest.mark.parametrize("cls", [Deaf, DeafLooped])
def test_a_method_that_waits_is_dropped_though_the_signal_comes_too_early(
    ray, cls, tmp_path, until
):
    actor = ray.remote(cls).options(max_concurrency=2).remote()
    marks = [tmp_path / str(number) for number in range(3)]
    running = [actor.held.remote(mark) for mark in marks[:2]]
    assert until(lambda: all(mark.exists() for mark in marks[:2]))
    queued = actor.held.remote(marks[2])
    time.sleep(0.05)  # so that the process waits for messages
    ray.cancel(queued)
    with pytest.raises(ray.TaskCancelledError, match="was cancelled"):
        ray.get(queued, timeout=WAIT_S / 3)
    assert ray.wait(running, timeout=0.1)[0] == []
    assert not marks[2].exists()
    ray.kill(actor)


def test_a_cancelled_task_is_not_retried_after_a_crash(ray, tmp_path, until):
    mark = str(tmp_path / "mark")
    ref = ray.remote(num_cpus=0, max_retries=-1)(caught).remote(mark, lambda: os._exit(1))
    assert until(lambda: os.path.exists(mark))
    os.remove(mark)
    ray.cancel(ref)
    with pytest.raises(ray.TaskCancelledError):
        ray.get(ref, timeout=10)
    assert not os.path.exists(mark)


def test_a_dead_process_may_be_told_of_a_cancel(start, is_running, until, tmp_path):
    ray = start(num_cpus=1)
    path = tmp_path / "pid"

    @ray.remote(max_retries=0)
    def sleep():
        path.write_text(f"{os.getpid()}\n")
        time.sleep(60)

    ref = sleep.remote()
    assert until(lambda: path.exists() and path.read_text().endswith("\n"))
    worker = int(path.read_text())
    zygote = nanoray.session.current()._link._hub.zygote_pid
    os.kill(zygote, signal.SIGSTOP)  # so that the order comes before the death is noticed
    os.kill(worker, signal.SIGKILL)
    assert until(lambda: not is_running(worker))
    ray.cancel(ref)
    os.kill(zygote, signal.SIGCONT)
    with pytest.raises((ray.TaskCancelledError, ray.WorkerCrashedError)):
        ray.get(ref, timeout=WAIT_S)
    assert ray.get(ray.remote(lambda: 1).remote(), timeout=WAIT_S) == 1


def test_cancel_wants_a_ref(ray):
    with pytest.raises(TypeError, match="is no ObjectRef"):
        ray.cancel(3)


def test_nothing_is_left_of_cancelled_calls(start, until):
    ray = start(num_cpus=1)
    big = ray.remote(lambda: time.sleep(0.002) or b"x" * 200_000)
    refs = [big.remote() for _ in range(60)]
    for ref in refs[::2]:
        ray.cancel(ref)
    for ref in refs[1::2]:
        assert len(ray.get(ref, timeout=WAIT_S)) == 200_000
    del ref, refs
    node = nanoray.session.current()._link.node
    assert until(lambda: len(node.objects) == 0 and not node.supervisor.calls.live())
    assert until(lambda: all(not arena.live for arena in node.arenas._arenas.values()))
    assert ray.available_resources() == {"CPU": 1.0}
