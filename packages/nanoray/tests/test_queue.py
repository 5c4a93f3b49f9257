import asyncio
import queue

import pytest

import nanorlhf.nanoray as nanoray
from nanorlhf.nanoray import Empty, Full, Queue

WAIT_S = 30


@pytest.fixture
def two(ray):
    made = Queue(2)
    yield made
    made.shutdown()


def test_items_come_out_in_the_order_they_went_in(two):
    assert two.empty()
    two.put("a")
    two.put_nowait("b")
    assert (len(two), two.qsize(), two.full(), two.empty()) == (2, 2, True, False)
    assert [two.get(timeout=WAIT_S), two.get_nowait()] == ["a", "b"]


def test_a_full_or_empty_queue_says_so_now_or_in_time(two):
    for get in (two.get_nowait, lambda: two.get(timeout=0.01)):
        with pytest.raises(Empty, match="fewer items than the 1"):
            get()
    two.put_nowait_batch([1, 2])
    for put in (two.put_nowait, lambda item: two.put(item, timeout=0.01)):
        with pytest.raises(Full, match="maxsize=2 has no room for 1"):
            put(3)
    assert issubclass(Empty, queue.Empty)
    assert issubclass(Full, queue.Full)
    with pytest.raises(ValueError, match="timeout=-1"):
        two.get(timeout=-1)


def test_batches_are_all_or_none(two):
    with pytest.raises(Full):
        two.put_nowait_batch([1, 2, 3])
    assert two.empty()
    two.put_nowait_batch([1, 2])
    with pytest.raises(Empty):
        two.get_nowait_batch(3)
    assert two.get_nowait_batch(2) == [1, 2]
    with pytest.raises(ValueError, match="num_items=-1"):
        two.get_nowait_batch(-1)


def test_a_task_waits_for_what_another_puts(ray, two):
    taken = ray.remote(lambda shared: shared.get()).remote(two)
    ray.remote(lambda shared: shared.put("item")).remote(two)
    assert ray.get(taken, timeout=WAIT_S) == "item"


def test_coroutines_may_wait_for_it(two):
    async def both():
        getting = asyncio.ensure_future(two.get_async(timeout=WAIT_S))
        await two.put_async(7)
        return await getting

    assert asyncio.run(both()) == 7


def test_who_waits_for_a_queue_that_ends_is_told(ray):
    short = Queue()
    waiting = short.actor.get.remote(None)
    short.shutdown()
    with pytest.raises(ray.ActorDiedError):
        ray.get(waiting, timeout=WAIT_S)


def test_a_queue_takes_the_options_of_its_actor(ray):
    named = Queue(actor_options={"name": "results", "num_cpus": 0})
    assert nanoray.get(ray.get_actor("results").qsize.remote(), timeout=WAIT_S) == 0
    named.shutdown()
