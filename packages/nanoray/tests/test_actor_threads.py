"""Actors that run several calls at a time in threads."""

import asyncio
import os
import threading
import time

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 30


@pytest.fixture
def gate(ray):
    """A class of actors whose calls wait for each other."""

    @ray.remote(max_concurrency=4)
    class Gate:
        def __init__(self):
            self.opened = threading.Event()
            self.barrier = threading.Barrier(4)
            self.order = []
            self.lock = threading.Lock()

        def meet(self):
            return self.barrier.wait(WAIT_S) >= 0

        def wait(self, path=None):
            if path is not None:
                path.touch()
            return self.opened.wait(WAIT_S)

        def open(self):
            self.opened.set()

        def begin(self, number):
            with self.lock:
                self.order.append(number)

        def begun(self):
            return self.order

        def fail(self):
            raise LookupError("lost")

        def ask(self, value):
            return nanoray.get(nanoray.remote(lambda x: x + 1).options(num_cpus=0).remote(value))

        def await_all(self, refs):
            async def main():
                return await asyncio.gather(*refs)

            return asyncio.run(main())

        def pid(self):
            return os.getpid()

        def thread(self):
            return threading.current_thread() is threading.main_thread()

    return Gate


def test_calls_of_an_actor_with_threads_run_at_the_same_time(ray, gate):
    actor = gate.remote()
    assert ray.get([actor.meet.remote() for _ in range(4)], timeout=WAIT_S) == [True] * 4
    waiting = actor.wait.remote()
    assert ray.wait([waiting], timeout=0.05) == ([], [waiting])
    ray.get(actor.open.remote(), timeout=WAIT_S)
    assert ray.get(waiting, timeout=WAIT_S)


def test_no_more_calls_run_than_max_concurrency(ray, gate):
    actor = gate.options(max_concurrency=2).remote()
    waiting = [actor.wait.remote() for _ in range(2)]
    opens = actor.open.remote()
    assert ray.wait([opens], timeout=0.2) == ([], [opens])
    ray.kill(actor)
    for ref in (*waiting, opens):
        with pytest.raises(ray.ActorDiedError):
            ray.get(ref, timeout=WAIT_S)


def test_threads_take_the_calls_in_order(ray, gate):
    actor = gate.options(max_concurrency=2).remote()
    waiting = actor.wait.remote()  # leaves one thread for the others
    ray.get([actor.begin.remote(number) for number in range(200)], timeout=WAIT_S)
    assert ray.get(actor.begun.remote(), timeout=WAIT_S) == list(range(200))
    ray.get([actor.open.remote(), waiting], timeout=WAIT_S)


def test_a_call_that_waits_for_a_thread_may_be_cancelled_and_one_that_has_one_not(
    ray, gate, tmp_path, until
):
    actor = gate.options(max_concurrency=2).remote()
    paths = [tmp_path / str(number) for number in range(2)]
    running = [actor.wait.remote(path) for path in paths]
    assert until(lambda: all(path.exists() for path in paths))
    queued, after = actor.begin.remote(1), actor.open.remote()
    for ref in (*running, queued, after):
        ray.cancel(ref)
    for ref in (queued, after):
        with pytest.raises(ray.TaskCancelledError, match="was cancelled"):
            ray.get(ref, timeout=WAIT_S)
    assert ray.wait(running, timeout=0.1)[0] == []
    ray.kill(actor)


def test_threads_of_an_actor_may_call_and_fail(ray, gate):
    actor = gate.remote()
    refs = [actor.ask.remote(number) for number in range(20)]
    assert ray.get(refs, timeout=WAIT_S) == list(range(1, 21))
    with pytest.raises(LookupError, match="lost") as caught:
        ray.get(actor.fail.remote(), timeout=WAIT_S)
    assert isinstance(caught.value, ray.TaskError)
    assert "performer.py" not in str(caught.value)
    assert not ray.get(actor.thread.remote(), timeout=WAIT_S)


def test_threads_of_an_actor_may_have_loops_of_their_own(ray, gate):
    actor = gate.remote()
    late = ray.remote(num_cpus=0)(lambda x: (time.sleep(0.05), x)[1])
    calls = [actor.await_all.remote([late.remote(i), late.remote(-i)]) for i in range(4)]
    assert ray.get(calls, timeout=WAIT_S) == [[i, -i] for i in range(4)]


def test_an_actor_with_threads_ends_after_its_last_call(ray, gate, until, is_running):
    actor = gate.remote()
    pid = ray.get(actor.pid.remote(), timeout=WAIT_S)
    waiting, opens = actor.wait.remote(), actor.open.remote()
    del actor
    assert ray.get([waiting, opens], timeout=WAIT_S) == [True, None]
    assert until(lambda: not is_running(pid))


@pytest.mark.parametrize("options", [{"max_restarts": 1}, {"max_concurrency": 2}])
def test_options_of_actors_are_refused_by_functions(ray, options):
    with pytest.raises(ValueError, match="is an option of an actor class"):
        ray.remote(**options)(lambda: 1)


def test_options_of_functions_are_refused_by_actor_classes(ray, gate):
    with pytest.raises(ValueError, match="num_returns=2 is an option of a remote function"):
        gate.options(num_returns=2)
