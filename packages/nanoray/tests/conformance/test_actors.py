"""Actors, on both engines."""

import asyncio
import os
import signal
import threading
import time

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 60


@nanoray.remote
class Counter:
    def __init__(self, start=0):
        if start < 0:
            raise ValueError(f"start={start} is negative")
        self.value = start

    def add(self, n=1):
        self.value += n
        return self.value

    def fail(self):
        raise KeyError("inside")

    def process(self):
        return os.getpid()

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def die_when(self, path):
        while not os.path.exists(path):
            time.sleep(0.01)
        self.die()

    @nanoray.method(num_returns=2)
    def both(self):
        return self.value, -self.value

    def context(self):
        context = nanoray.get_runtime_context()
        return context.is_driver, context.actor_id


@nanoray.remote
def add_to(box, n):
    return nanoray.get(box["counter"].add.remote(n), timeout=WAIT_S)


def test_an_actor_keeps_its_state_and_the_order_of_its_calls(engine):
    counter = Counter.remote(10)
    refs = [counter.add.remote(n) for n in range(20)]
    assert engine.get(refs, timeout=WAIT_S) == [10 + sum(range(n + 1)) for n in range(20)]


def test_calls_keep_their_order_when_the_first_waits_for_its_argument(engine):
    gate, counter = Gate.remote(), Counter.remote()
    first = counter.add.remote(gate.passed.remote(5))
    second = counter.add.remote(1)
    gate.open.remote()
    assert engine.get([first, second], timeout=WAIT_S) == [5, 6]


@nanoray.remote(max_concurrency=2)
class Gate:
    def __init__(self):
        self.event = threading.Event()

    def open(self):
        self.event.set()

    def passed(self, value):
        self.event.wait()
        return value


def test_a_handle_works_wherever_it_is_passed(engine):
    counter = Counter.remote()
    assert engine.get(add_to.remote({"counter": counter}, 2), timeout=WAIT_S) == 2
    (same,) = engine.get(engine.put([counter]), timeout=WAIT_S)
    assert engine.get(same.add.remote(1), timeout=WAIT_S) == 3


def test_errors_of_methods_and_of_unknown_methods(engine):
    counter = Counter.remote()
    with pytest.raises(KeyError) as caught:
        engine.get(counter.fail.remote(), timeout=WAIT_S)
    assert isinstance(caught.value, nanoray.TaskError)
    assert "Counter.fail" in caught.value.where
    with pytest.raises(AttributeError, match="no public method 'subtract'"):
        counter.subtract  # noqa: B018
    with pytest.raises(TypeError, match=r"use add\.remote\(\)"):
        counter.add()
    assert engine.get(counter.add.remote(), timeout=WAIT_S) == 1


def test_methods_may_have_several_results_by_decorator_or_option(engine):
    counter = Counter.remote(3)
    plus, minus = counter.both.remote()
    assert engine.get([plus, minus], timeout=WAIT_S) == [3, -3]
    assert engine.get(counter.both.options(num_returns=1).remote(), timeout=WAIT_S) == (3, -3)


def test_a_constructor_that_raises_fails_every_call_with_its_traceback(engine):
    counter = Counter.remote(-1)
    for _ in range(2):
        with pytest.raises(nanoray.ActorDiedError, match="start=-1 is negative"):
            engine.get(counter.add.remote(), timeout=WAIT_S)


def test_calls_of_a_killed_actor_raise(engine, until):
    counter = Counter.remote()
    pid = engine.get(counter.process.remote(), timeout=WAIT_S)
    engine.kill(counter)
    assert until(lambda: not os.path.exists(f"/proc/{pid}"))  # on Ray a moment later
    with pytest.raises(nanoray.ActorDiedError):
        engine.get(counter.add.remote(), timeout=WAIT_S)


def test_an_actor_that_dies_fails_the_call_under_way(engine):
    counter = Counter.remote()
    with pytest.raises(nanoray.ActorDiedError):
        engine.get(counter.die.remote(), timeout=WAIT_S)


def test_an_actor_restarts_as_often_as_it_may(engine, until):
    counter = Counter.options(max_restarts=1, max_task_retries=-1).remote(5)
    for _ in range(2):
        assert engine.get(counter.add.remote(), timeout=WAIT_S) == 6
        pid = engine.get(counter.process.remote(), timeout=WAIT_S)
        engine.kill(counter, no_restart=False)
        assert until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"))
    with pytest.raises(nanoray.ActorDiedError):
        engine.get(counter.add.remote(), timeout=WAIT_S)


def test_calls_sent_to_an_actor_that_dies_raise_and_later_ones_reach_the_next(
    engine, until, tmp_path
):
    counter = Counter.options(max_restarts=1).remote(5)
    sent = [counter.die_when.remote(str(tmp_path / "go"))]
    sent += [counter.add.remote() for _ in range(3)]
    (tmp_path / "go").touch()
    for ref in sent:
        with pytest.raises(nanoray.ActorDiedError):
            engine.get(ref, timeout=WAIT_S)

    def is_new():
        try:
            return engine.get(counter.add.remote(), timeout=WAIT_S) == 6
        except nanoray.ActorDiedError:  # on Ray for a moment
            return False

    assert until(is_new)


def test_calls_sent_to_an_actor_that_dies_are_run_again_when_they_may(engine, tmp_path):
    counter = Counter.options(max_restarts=1, max_task_retries=1).remote(5)
    lost = counter.die_when.options(max_task_retries=0).remote(str(tmp_path / "go"))
    sent = [counter.add.remote(n) for n in range(1, 4)]
    (tmp_path / "go").touch()
    with pytest.raises(nanoray.ActorDiedError):
        engine.get(lost, timeout=WAIT_S)
    assert max(engine.get(sent, timeout=WAIT_S)) == 11  # in the order of the calls on ours alone


def test_an_actor_ends_with_its_last_handle(engine, until):
    counter = Counter.remote()
    pid = engine.get(counter.process.remote(), timeout=WAIT_S)
    last = counter.add.remote()
    del counter
    assert engine.get(last, timeout=WAIT_S) == 1
    assert until(lambda: not os.path.exists(f"/proc/{pid}"))


def test_an_actor_is_found_by_its_name_while_it_lives(engine):
    counter = Counter.options(name="by-name").remote(1)
    found = engine.get_actor("by-name")
    assert engine.get(found.add.remote(), timeout=WAIT_S) == 2
    assert engine.get(found.both.remote(), timeout=WAIT_S) == [2, -2]
    with pytest.raises(ValueError, match="belongs to a live actor"):
        Counter.options(name="by-name").remote()
    same = Counter.options(name="by-name", get_if_exists=True).remote(100)
    assert engine.get(same.add.remote(), timeout=WAIT_S) == 3
    engine.kill(counter)
    with pytest.raises(ValueError, match="no live actor"):
        engine.get_actor("nobody")


def test_a_detached_actor_outlives_its_handles(engine):
    Counter.options(name="detached", lifetime="detached").remote(1)
    found = engine.get_actor("detached")
    assert engine.get(found.add.remote(), timeout=WAIT_S) == 2
    engine.kill(found)


def test_threads_of_an_actor_run_side_by_side(engine):
    gate = Gate.remote()
    waiting = gate.passed.remote("through")
    gate.open.remote()
    assert engine.get(waiting, timeout=WAIT_S) == "through"


def test_an_async_actor_interleaves_its_calls_and_awaits_refs(engine):
    @engine.remote
    class Loop:
        def __init__(self):
            self.event = asyncio.Event()

        async def open(self):
            self.event.set()

        async def passed(self, box):
            await self.event.wait()
            return await box[0] + 1

    loop = Loop.remote()
    waiting = loop.passed.remote([engine.put(1)])
    loop.open.remote()
    assert engine.get(waiting, timeout=WAIT_S) == 2


def test_refs_can_be_awaited_and_have_futures(engine):
    @engine.remote
    def fail():
        raise KeyError("late")

    async def gather():
        return await asyncio.gather(engine.put(1), engine.put(2))

    assert asyncio.run(gather()) == [1, 2]
    assert engine.put(3).future().result(WAIT_S) == 3
    with pytest.raises(KeyError) as caught:
        fail.remote().future().result(WAIT_S)
    assert isinstance(caught.value, nanoray.TaskError)


def test_the_context_of_an_actor_has_its_id(engine):
    counter = Counter.remote()
    assert engine.get(counter.context.remote(), timeout=WAIT_S) == (False, counter.id)


def test_actors_take_no_cpu_unless_they_ask(engine):
    idle = [Counter.remote(number) for number in range(3)]
    assert engine.get([actor.add.remote() for actor in idle], timeout=WAIT_S) == [1, 2, 3]
    with pytest.raises(nanoray.InfeasibleError, match="CPU=3"):
        Counter.options(num_cpus=3).remote()


def test_a_method_of_an_actor_cannot_be_cancelled_by_force(engine):
    gate = Gate.remote()
    ref = gate.passed.remote(1)
    with pytest.raises(ValueError, match="force"):
        engine.cancel(ref, force=True)
    gate.open.remote()
    assert engine.get(ref, timeout=WAIT_S) == 1


def test_a_coroutine_that_runs_can_be_cancelled(engine):
    @engine.remote
    class Sleeper:
        def __init__(self):
            self.begun = asyncio.Event()

        async def sleep(self):
            self.begun.set()
            await asyncio.Event().wait()

        async def has_begun(self):
            await self.begun.wait()

    sleeper = Sleeper.remote()
    ref = sleeper.sleep.remote()
    engine.get(sleeper.has_begun.remote(), timeout=WAIT_S)
    engine.cancel(ref)
    with pytest.raises(nanoray.TaskCancelledError):
        engine.get(ref, timeout=WAIT_S)


def test_a_handle_found_by_name_keeps_its_actor_alive(engine):
    first = Counter.options(name="kept").remote(1)
    found = engine.get_actor("kept")
    del first
    assert engine.get(found.add.remote(), timeout=WAIT_S) == 2


def test_a_killed_actor_is_gone_for_the_next_call(engine):
    counter = Counter.remote()
    engine.kill(counter)
    with pytest.raises(nanoray.ActorDiedError):
        engine.get(counter.add.remote(), timeout=WAIT_S)


def test_actors_are_listed(engine):
    counter = Counter.options(name="listed").remote()
    pid = engine.get(counter.process.remote(), timeout=WAIT_S)
    (row,) = [row for row in engine.list_actors() if row["name"] == "listed"]
    assert (row["class_name"], row["state"], row["pid"]) == ("Counter", "ALIVE", pid)
    assert row["node_id"] == engine.list_nodes()[0]["NodeID"]
