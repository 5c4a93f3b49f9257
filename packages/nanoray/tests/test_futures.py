"""Refs as futures: ``await ref`` and ``ref.future()``."""

import asyncio
import concurrent.futures
import threading
import time

import numpy as np
import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 30


@pytest.fixture
def later(ray):
    """A task that gives its argument back after a while."""
    return ray.remote(lambda value, seconds=0.05: (time.sleep(seconds), value)[1])


def held_in(ray):
    """The ids that questions of the driver still wait for."""
    del ray
    return nanoray.session.current()._link.node._gets._gets


def test_a_ref_gives_a_future(ray, later):
    assert ray.put(5).future().result(WAIT_S) == 5
    futures = [later.remote(number).future() for number in range(10)]
    done, pending = concurrent.futures.wait(futures, timeout=WAIT_S)
    assert not pending
    assert sorted(future.result() for future in done) == list(range(10))


def test_a_future_keeps_its_object_alive(ray, later):
    future = later.remote(np.arange(100_000)).future()
    assert future.result(WAIT_S).sum() == sum(range(100_000))


def test_a_future_raises_what_the_call_raised(ray):
    fails = ray.remote(lambda: 1 / 0)
    future = fails.remote().future()
    with pytest.raises(ZeroDivisionError):
        future.result(WAIT_S)
    assert isinstance(future.exception(), ray.TaskError)


def test_a_callback_of_a_future_may_call_the_engine(ray, later):
    found = concurrent.futures.Future()
    later.remote(3).future().add_done_callback(
        lambda done: found.set_result(ray.get(ray.put(done.result() + 1)))
    )
    assert found.result(WAIT_S) == 4


def test_a_thousand_futures_take_one_thread(ray, later):
    before = threading.active_count()
    slow = later.remote(0, seconds=0.3)
    futures = [slow.future() for _ in range(1000)]
    assert threading.active_count() <= before + 1
    assert {future.result(WAIT_S) for future in futures} == {0}


def test_a_cancelled_future_takes_its_question_back(ray, later, until):
    ref = later.remote(1, seconds=1)
    before = len(held_in(ray))
    future = ref.future()
    assert len(held_in(ray)) == before + 1
    assert future.cancel()
    assert until(lambda: len(held_in(ray)) == before)
    assert ray.get(ref, timeout=WAIT_S) == 1


def test_refs_may_be_awaited_in_the_driver(ray, later):
    async def main():
        assert await later.remote(1) == 1
        assert await asyncio.gather(*(later.remote(number) for number in range(5))) == [*range(5)]
        waits = [asyncio.ensure_future(later.remote(number)) for number in range(3)]
        done, pending = await asyncio.wait(waits, timeout=WAIT_S)
        assert (len(done), len(pending)) == (3, 0)
        with pytest.raises(ZeroDivisionError):
            await ray.remote(lambda: 1 / 0).remote()
        return True

    assert asyncio.run(main())


def test_a_cancelled_await_leaks_nothing_and_the_call_goes_on(ray, later, until):
    ref = later.remote(1, seconds=0.5)
    before = len(held_in(ray))

    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ref, 0.05)

    asyncio.run(main())
    assert until(lambda: len(held_in(ray)) == before)
    assert ray.get(ref, timeout=WAIT_S) == 1


def test_a_loop_that_ends_before_the_answer_is_no_trouble(ray, later):
    ref = later.remote(1, seconds=0.3)

    async def main():
        return asyncio.ensure_future(ref)

    assert asyncio.run(main()).cancelled()
    assert ray.get(ref, timeout=WAIT_S) == 1


def test_tasks_may_use_futures_and_loops_of_their_own(ray):
    @ray.remote
    def outer():
        double = nanoray.remote(lambda x: 2 * x)

        async def main():
            return await asyncio.gather(*(double.remote(number) for number in range(3)))

        return double.remote(4).future().result(WAIT_S), asyncio.run(main())

    assert ray.get(outer.remote(), timeout=WAIT_S) == (8, [0, 2, 4])
    # The process goes on with other calls, and with futures in them.
    assert ray.get([outer.remote() for _ in range(4)], timeout=WAIT_S) == [(8, [0, 2, 4])] * 4


def test_a_value_that_calls_the_engine_as_it_is_loaded_stops_nothing(ray):
    class Asks:
        def __reduce__(self):
            return ask_inside, ()

    def ask_inside():
        return nanoray.get(nanoray.remote(lambda: 11).remote())

    assert ray.put(Asks()).future().result(WAIT_S) == 11
    assert ray.remote(lambda: Asks()).remote().future().result(WAIT_S) == 11


def test_shutdown_fails_futures_that_wait(start):
    ray = start(num_cpus=1)
    future = ray.remote(lambda: time.sleep(60)).remote().future()
    ref = ray.put(1)
    ray.shutdown()
    with pytest.raises(ray.EngineError, match="shut down"):
        future.result(WAIT_S)
    ray.init(num_cpus=1)
    with pytest.raises(ValueError, match="belongs to an engine that was shut down"):
        ref.future()
