"""Actors whose calls take turns in an event loop."""

import asyncio
import gc
import os
import time
import weakref

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 30


@pytest.fixture
def looped(ray):
    """A class of actors with an event loop."""

    @ray.remote
    class Looped:
        def __init__(self):
            self.opened = None
            self.order = []
            self.seen = None

        async def wait(self):
            self.opened = self.opened or asyncio.Event()
            await self.opened.wait()
            return "through"

        async def open(self):
            self.opened = self.opened or asyncio.Event()
            self.opened.set()

        def plain(self):
            return asyncio.get_running_loop().is_running()

        async def note(self, number):
            self.order.append(number)
            await asyncio.sleep(0)
            return list(self.order)

        async def fail(self):
            await asyncio.sleep(0)
            raise LookupError("lost")

        async def add(self, refs):
            return sum(await asyncio.gather(*refs))

        async def blocking(self, refs):
            return nanoray.get(refs[0])

        async def in_thread(self, refs):
            return await asyncio.to_thread(nanoray.get, refs[0])

        async def wait_for_future(self, refs):
            try:
                return refs[0].future().result(WAIT_S)
            except RuntimeError as error:
                return str(error), await asyncio.wrap_future(refs[0].future())

        async def future_in_thread(self, refs):
            return await asyncio.to_thread(lambda: refs[0].future().result(WAIT_S))

        async def task_ids(self):
            before = nanoray.get_runtime_context().task_id
            await asyncio.sleep(0.01)
            return before, nanoray.get_runtime_context().task_id

        async def keep(self, array):
            self.seen = weakref.ref(array)

        async def is_free(self):
            gc.collect()
            return self.seen() is None

        async def held(self, path):
            try:
                await asyncio.sleep(WAIT_S)
            except asyncio.CancelledError:
                path.touch()
                raise

        async def defy(self):
            try:
                await asyncio.sleep(WAIT_S)
            except asyncio.CancelledError:
                return "defied"

        async def ref(self):
            return nanoray.put(5)

        def plain_ref(self):
            return nanoray.put(6)

        async def pid(self):
            return os.getpid()

        async def exit(self):
            raise SystemExit(3)

    return Looped


def test_coroutines_of_an_actor_take_turns(ray, looped):
    actor = looped.remote()
    waiting = [actor.wait.remote() for _ in range(50)]
    ready, _ = ray.wait(waiting, timeout=0.05)
    assert ready == []
    ray.get(actor.open.remote(), timeout=WAIT_S)
    assert ray.get(waiting, timeout=WAIT_S) == ["through"] * 50


def test_a_plain_method_of_an_actor_with_coroutines_runs_in_the_loop(ray, looped):
    assert ray.get(looped.remote().plain.remote(), timeout=WAIT_S)


def test_coroutines_begin_in_the_order_of_the_calls(ray, looped):
    actor = looped.remote()
    refs = [actor.note.remote(number) for number in range(300)]
    assert ray.get(refs[-1], timeout=WAIT_S)[:300] == list(range(300))


def test_max_concurrency_bounds_coroutines(ray, looped):
    actor = looped.options(max_concurrency=1).remote()
    waiting, opens = actor.wait.remote(), actor.open.remote()
    assert ray.wait([waiting, opens], timeout=0.2)[0] == []
    ray.kill(actor)
    with pytest.raises(ValueError, match="max_concurrency=0"):
        looped.options(max_concurrency=0)


def test_errors_of_coroutines_are_task_errors(ray, looped):
    actor = looped.remote()
    with pytest.raises(LookupError, match="lost") as caught:
        ray.get(actor.fail.remote(), timeout=WAIT_S)
    assert isinstance(caught.value, ray.TaskError)
    assert "performer.py" not in str(caught.value)
    with pytest.raises(ray.TaskError, match="SystemExit: 3"):
        ray.get(actor.exit.remote(), timeout=WAIT_S)
    assert ray.get(actor.plain.remote(), timeout=WAIT_S)


def test_coroutines_may_await_refs(ray, looped):
    actor = looped.remote()
    slow = ray.remote(lambda x: (time.sleep(0.1), x)[1])
    assert ray.get(actor.add.remote([slow.remote(1), slow.remote(2)]), timeout=WAIT_S) == 3
    fails = ray.remote(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ray.get(actor.add.remote([slow.remote(1), fails.remote()]), timeout=WAIT_S)


def test_two_actors_with_loops_await_each_other(ray):
    @ray.remote
    class Player:
        async def play(self, me, other, rallies):
            return 0 if not rallies else 1 + await other.play.remote(other, me, rallies - 1)

    me, other = Player.remote(), Player.remote()
    assert ray.get(me.play.remote(me, other, 20), timeout=WAIT_S) == 20


def test_a_blocking_get_in_a_loop_works_and_warns_once(capfd, looped, start):
    ray = start(num_cpus=1)  # its processes write to what capfd reads
    actor = looped.remote()
    late = ray.remote(lambda: (time.sleep(0.1), 7)[1])
    refs = [actor.blocking.remote([late.remote()]) for _ in range(3)]
    after = actor.note.remote(1)
    assert ray.get(refs, timeout=WAIT_S) == [7, 7, 7]
    assert ray.get(after, timeout=WAIT_S) == [1]
    assert capfd.readouterr().err.count("a blocking get() in an async actor") == 1


def test_threads_beside_a_loop_may_call_too(ray, looped):
    actor = looped.remote()
    late = ray.remote(lambda: (time.sleep(0.1), 7)[1])
    refs = [actor.in_thread.remote([late.options(num_cpus=0).remote()]) for _ in range(5)]
    assert ray.get(refs, timeout=WAIT_S) == [7] * 5


def test_a_loop_does_not_wait_for_a_future_that_it_brings_itself(ray, looped):
    actor = looped.remote()
    late = ray.remote(num_cpus=0)(lambda: (time.sleep(0.1), 7)[1])
    text, value = ray.get(actor.wait_for_future.remote([late.remote()]), timeout=WAIT_S)
    assert "would stop the loop" in text
    assert value == 7
    assert ray.get(actor.future_in_thread.remote([late.remote()]), timeout=WAIT_S) == 7


def test_every_coroutine_knows_its_own_call(ray, looped):
    actor = looped.remote()
    pairs = ray.get([actor.task_ids.remote() for _ in range(5)], timeout=WAIT_S)
    assert all(before == after for before, after in pairs)
    assert len({before for before, _ in pairs}) == 5


def test_a_finished_coroutine_keeps_no_argument(ray, looped):
    import numpy as np

    actor = looped.remote()
    ray.get(actor.keep.remote(ray.put(np.ones(100_000))), timeout=WAIT_S)
    assert ray.get(actor.is_free.remote(), timeout=WAIT_S)


def test_an_actor_with_a_loop_ends_after_its_last_call(ray, looped, until, is_running):
    actor = looped.remote()
    pid = ray.get(actor.pid.remote(), timeout=WAIT_S)
    waiting, opens = actor.wait.remote(), actor.open.remote()
    del actor
    assert ray.get([waiting, opens], timeout=WAIT_S) == ["through", None]
    assert until(lambda: not is_running(pid))


def test_a_coroutine_is_cancelled_where_it_waits(ray, looped, tmp_path, until):
    actor = looped.remote()
    path = tmp_path / "cancelled"
    refs = [actor.held.remote(path), actor.wait.remote()]
    ray.get(actor.plain.remote(), timeout=WAIT_S)
    ray.cancel(refs[0])
    with pytest.raises(ray.TaskCancelledError, match="held"):
        ray.get(refs[0], timeout=WAIT_S)
    assert path.exists()
    ray.get(actor.open.remote(), timeout=WAIT_S)
    assert ray.get(refs[1], timeout=WAIT_S) == "through"
    defiant = actor.defy.remote()
    ray.get(actor.plain.remote(), timeout=WAIT_S)
    ray.cancel(defiant)
    assert ray.get(defiant, timeout=WAIT_S) == "defied"
    with pytest.raises(ValueError, match="force=True would kill the actor"):
        ray.cancel(actor.held.remote(path), force=True)


def test_a_call_that_waits_for_its_turn_may_be_cancelled(ray, looped):
    actor = looped.options(max_concurrency=2).remote()
    running = [actor.wait.remote() for _ in range(2)]
    queued = actor.note.remote(1)
    ray.cancel(queued)
    with pytest.raises(ray.TaskCancelledError):
        ray.get(queued, timeout=WAIT_S)
    ray.cancel(running[0])
    assert ray.get(actor.note.remote(2), timeout=WAIT_S) == [2]
    ray.get(actor.open.remote(), timeout=WAIT_S)
    assert ray.get(running[1], timeout=WAIT_S) == "through"


def test_a_ref_that_a_method_returns_stays_a_ref(ray, looped):
    actor = looped.remote()
    refs = ray.get([actor.ref.remote(), actor.plain_ref.remote()], timeout=WAIT_S)
    assert ray.get(refs, timeout=WAIT_S) == [5, 6]


def test_the_constructor_runs_in_the_loop_and_alone(ray):
    @ray.remote
    class Slow:
        def __new__(cls, *args):
            return super().__new__(cls)

        async def __init__(self, value):
            self.ready = False
            await asyncio.sleep(0.1)
            self.value, self.ready = value, True

        async def get(self):
            return self.ready, self.value

    actor = Slow.remote(5)
    refs = [actor.get.remote() for _ in range(3)]
    assert ray.get(refs, timeout=WAIT_S) == [(True, 5)] * 3

    @ray.remote
    class Plain:
        def __init__(self):
            self.loop = asyncio.get_running_loop()
            self.early = nanoray.get(nanoray.remote(lambda: 3).options(num_cpus=0).remote())

        async def same(self):
            return self.loop is asyncio.get_running_loop(), self.early

    assert ray.get(Plain.remote().same.remote(), timeout=WAIT_S) == (True, 3)


def test_a_constructor_that_raises_in_a_loop_fails_every_call(ray):
    @ray.remote
    class Broken:
        async def __init__(self):
            await asyncio.sleep(0)
            raise ValueError("no such model")

        async def ok(self):
            return True

    actor = Broken.remote()
    for _ in range(2):
        with pytest.raises(ray.ActorDiedError, match="no such model"):
            ray.get(actor.ok.remote(), timeout=WAIT_S)


def test_an_actor_with_a_loop_restarts(ray, tmp_path):
    @ray.remote(max_restarts=1, max_task_retries=1)
    class Fragile:
        async def die_once(self, path):
            if not path.exists():
                path.touch()
                os._exit(1)
            return os.getpid()

    actor = Fragile.remote()
    assert ray.get(actor.die_once.remote(tmp_path / "died"), timeout=WAIT_S)
