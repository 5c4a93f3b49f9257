"""Generators that stream, on both engines."""

import asyncio

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 60


@nanoray.remote
def count(n, *, then=None):
    yield from range(n)
    if then is not None:
        raise then


@nanoray.remote
class Source:
    def count(self, n):
        yield from range(n)

    async def drip(self, n):
        for number in range(n):
            await asyncio.sleep(0)
            yield number


def test_the_items_of_a_task_come_in_order(engine):
    refs = list(count.remote(4))
    assert engine.get(refs, timeout=WAIT_S) == [0, 1, 2, 3]


def test_a_generator_may_yield_nothing(engine):
    stream = count.remote(0)
    assert list(stream) == []
    with pytest.raises(StopIteration):
        next(stream)


def test_items_come_before_the_generator_has_ended(engine):
    @engine.remote
    class Gate:
        def __init__(self):
            self.event = asyncio.Event()

        async def passed(self):
            await self.event.wait()

        async def open(self):
            self.event.set()

    @engine.remote
    def two(gate):
        yield "first"
        nanoray.get(gate.passed.remote(), timeout=WAIT_S)
        yield "second"

    gate = Gate.remote()
    stream = two.remote(gate)
    assert engine.get(next(stream), timeout=WAIT_S) == "first"
    with pytest.raises(nanoray.GetTimeoutError, match=r"timeout=0\.2 s"):
        stream.next(timeout=0.2)
    gate.open.remote()
    assert engine.get(next(stream), timeout=WAIT_S) == "second"
    assert list(stream) == []


def test_the_error_of_a_generator_comes_after_its_items(engine):
    stream = count.remote(2, then=KeyError("k"))
    refs = list(stream)
    assert engine.get(refs[:2], timeout=WAIT_S) == [0, 1]
    assert len(refs) == 3
    with pytest.raises(KeyError) as caught:
        engine.get(refs[2], timeout=WAIT_S)
    assert isinstance(caught.value, nanoray.TaskError)


def test_completed_is_ready_at_the_end(engine):
    stream = count.remote(3)
    assert engine.get(stream.completed(), timeout=WAIT_S) is None


def test_completed_is_the_error_of_a_generator_that_failed(engine):
    with pytest.raises(KeyError):
        engine.get(count.remote(0, then=KeyError("k")).completed(), timeout=WAIT_S)


def test_generators_of_actors_stream_too_also_asynchronous_ones(engine):
    source = Source.remote()
    assert [engine.get(ref, timeout=WAIT_S) for ref in source.count.remote(3)] == [0, 1, 2]
    assert [engine.get(ref, timeout=WAIT_S) for ref in source.drip.remote(3)] == [0, 1, 2]


def test_a_stream_can_be_iterated_in_a_coroutine(engine):
    async def collect():
        return [await ref async for ref in count.remote(3)]

    assert asyncio.run(collect()) == [0, 1, 2]


def test_a_bounded_generator_goes_on_as_its_items_are_taken(engine):
    stream = count.options(max_buffered_items=1).remote(5)
    assert [engine.get(ref, timeout=WAIT_S) for ref in stream] == [0, 1, 2, 3, 4]


def test_a_generator_may_have_all_its_results_at_once(engine):
    refs = count.options(num_returns=3).remote(3)
    assert engine.get(refs, timeout=WAIT_S) == [0, 1, 2]


def test_a_stream_cannot_be_passed_on(engine):
    with pytest.raises(TypeError, match="cannot be passed to another process"):
        engine.put(count.remote(1))


def test_a_stream_that_is_dropped_closes_its_generator(engine, until, tmp_path):
    @engine.remote(max_buffered_items=1)
    def endless(path):
        try:
            while True:
                yield 0
        finally:
            path.touch()

    stream = endless.remote(tmp_path / "closed")
    assert engine.get(next(stream), timeout=WAIT_S) == 0
    del stream
    assert until((tmp_path / "closed").exists)
