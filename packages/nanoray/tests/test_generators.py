"""Generators that stream their items as refs."""

import asyncio
import os
import signal
import threading
import time

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 30


@pytest.fixture
def node(start):
    """The node of an engine that nothing else uses."""
    start(num_cpus=2)
    return nanoray.session.current()._link.node


def values(refs):
    return [nanoray.get(ref, timeout=WAIT_S) for ref in refs]


def test_a_generator_function_streams(ray):
    @ray.remote
    def count(end):
        yield from range(end)

    stream = count.remote(5)
    assert isinstance(stream, nanoray.ObjectRefGenerator)
    assert values(stream) == [0, 1, 2, 3, 4]
    with pytest.raises(StopIteration):
        next(stream)
    assert values(count.remote(0)) == []
    assert ray.get(count.options(num_returns=3).remote(3), timeout=WAIT_S) == [0, 1, 2]


def test_any_function_that_returns_an_iterable_may_stream(ray):
    letters = ray.remote(num_returns="streaming")(lambda text: list(text))
    assert values(letters.remote("abc")) == ["a", "b", "c"]
    (ref,) = ray.remote(num_returns="streaming")(lambda: 5).remote()
    with pytest.raises(TypeError, match="returned int with num_returns='streaming'"):
        ray.get(ref, timeout=WAIT_S)


def test_items_arrive_while_the_generator_runs(ray, tmp_path):
    @ray.remote
    def wait_for_file(path):
        yield "before"
        while not os.path.exists(path):
            time.sleep(0.01)
        yield "after"

    stream = wait_for_file.remote(str(tmp_path / "go"))
    assert ray.get(next(stream), timeout=WAIT_S) == "before"
    (tmp_path / "go").touch()
    assert values(stream) == ["after"]


def test_an_error_is_raised_at_its_place(ray):
    @ray.remote
    def fails():
        yield 1
        yield 2
        raise LookupError("third")

    first, second, third = fails.remote()
    assert ray.get([first, second], timeout=WAIT_S) == [1, 2]
    with pytest.raises(LookupError, match="third"):
        ray.get(third, timeout=WAIT_S)


def test_an_item_that_cannot_travel_ends_the_stream_with_its_error(ray):
    @ray.remote
    def opens():
        yield 1
        yield threading.Lock()
        yield 3

    first, second = opens.remote()
    assert ray.get(first, timeout=WAIT_S) == 1
    with pytest.raises(TypeError, match="cannot be sent to another process"):
        ray.get(second, timeout=WAIT_S)


def test_methods_stream_and_the_actor_goes_on(ray):
    @ray.remote
    class Source:
        def __init__(self):
            self.closed = 0

        def count(self, end):
            try:
                yield from range(end)
            finally:
                self.closed += 1

        @nanoray.method(num_returns="streaming")
        def listed(self):
            return [7, 8]

        def num_closed(self):
            return self.closed

    actor = Source.remote()
    assert values(actor.count.remote(3)) == [0, 1, 2]
    assert values(actor.listed.remote()) == [7, 8]
    assert ray.get(actor.num_closed.remote(), timeout=WAIT_S) == 1


def test_async_generators_stream_side_by_side(ray):
    @ray.remote
    class Source:
        async def count(self, start, end):
            for number in range(start, end):
                yield number
                await asyncio.sleep(0.001)

        def plain(self, end):
            yield from range(end)

        async def fails(self):
            yield 1
            raise LookupError("second")

    actor = Source.remote()
    a, b, c = actor.count.remote(0, 50), actor.count.remote(50, 100), actor.plain.remote(50)
    for number in range(50):
        assert values([next(a), next(b), next(c)]) == [number, 50 + number, number]
    first, second = actor.fails.remote()
    assert ray.get(first, timeout=WAIT_S) == 1
    with pytest.raises(LookupError, match="second"):
        ray.get(second, timeout=WAIT_S)


def test_threads_of_an_actor_stream_side_by_side(ray):
    @ray.remote(max_concurrency=2)
    class Source:
        def __init__(self):
            self.barrier = threading.Barrier(2)

        def count(self, end):
            for number in range(end):
                self.barrier.wait(WAIT_S)
                yield number

    actor = Source.remote()
    a, b = actor.count.remote(10), actor.count.remote(10)
    assert values(a) == values(b) == list(range(10))


def test_streams_may_be_iterated_in_coroutines(ray):
    @ray.remote
    def count(end):
        for number in range(end):
            time.sleep(0.005)
            yield number

    async def total(end):
        return sum([await ref async for ref in count.remote(end)])

    async def main():
        return await asyncio.gather(total(5), total(10))

    assert asyncio.run(main()) == [10, 45]


def test_giving_up_on_an_item_loses_nothing(ray, tmp_path):
    @ray.remote
    def one_by_one(path):
        for number in range(3):
            while not os.path.exists(f"{path}/{number}"):
                time.sleep(0.005)
            yield number

    stream = one_by_one.remote(str(tmp_path))
    with pytest.raises(nanoray.GetTimeoutError, match="item 0 of a generator"):
        stream.next(timeout=0.05)

    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(stream), 0.05)
        (tmp_path / "0").touch()
        return await (await anext(stream))

    assert asyncio.run(main()) == 0
    for number in (1, 2):
        (tmp_path / str(number)).touch()
    assert values(stream) == [1, 2]


def test_a_bound_holds_the_generator_back(ray, until, tmp_path):
    @ray.remote(max_buffered_items=3)
    def count(path):
        for number in range(10):
            with open(path, "a") as file:
                file.write("x")
            yield number

    path = tmp_path / "made"
    stream = count.remote(str(path))
    assert until(lambda: path.exists() and path.stat().st_size == 3)
    for number in range(10):
        assert ray.get(next(stream), timeout=WAIT_S) == number
        made = min(10, number + 4)
        assert until(lambda made=made: path.stat().st_size == made)
        time.sleep(0.02)
        assert path.stat().st_size == made
    assert list(stream) == []


def test_a_generator_at_rest_lends_its_cpu(start):
    ray = start(num_cpus=1)

    @ray.remote(max_buffered_items=1)
    def count():
        yield from range(3)

    stream = count.remote()
    double = ray.remote(lambda x: 2 * x)
    assert [ray.get(double.remote(ref), timeout=WAIT_S) for ref in stream] == [0, 2, 4]
    assert ray.available_resources() == {"CPU": 1.0}


@pytest.mark.parametrize("bound", [None, 1, 2])
def test_a_generator_that_is_run_again_gives_no_item_twice(ray, tmp_path, bound):
    @ray.remote(max_retries=1, max_buffered_items=bound)
    def dies_once(path):
        yield 0
        yield 1
        if not os.path.exists(path):
            open(path, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        yield 2
        yield 3

    assert values(dies_once.remote(str(tmp_path / "died"))) == [0, 1, 2, 3]


def test_tasks_consume_streams_of_others(ray):
    @ray.remote
    def count(end):
        yield from range(end)

    @ray.remote
    def total(end):
        return sum(nanoray.get(list(count.options(num_cpus=0).remote(end))))

    assert ray.get(total.remote(10), timeout=WAIT_S) == 45


def test_items_may_hold_refs(ray):
    @ray.remote
    def refs():
        for number in range(3):
            yield [nanoray.put(number)]

    inner = [ref for item in values(refs.remote()) for ref in item]
    assert ray.get(inner, timeout=WAIT_S) == [0, 1, 2]


def test_a_stream_cannot_be_passed_on(ray):
    @ray.remote
    def count():
        yield 1

    take = ray.remote(lambda x: x)
    stream = count.remote()
    with pytest.raises(TypeError, match="its items belong to who iterates"):
        take.remote(stream)
    assert values(stream) == [1]


def test_only_one_may_wait_for_the_next_item(ray):
    @ray.remote
    def slow():
        time.sleep(0.5)
        yield 1

    stream = slow.remote()

    async def main():
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="waits for its next item already"):
            await anext(stream)
        return await (await first)

    assert asyncio.run(main()) == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_returns": "dynamic"}, "num_returns='dynamic' is neither a number of refs"),
        ({"num_returns": -1}, "num_returns=-1"),
        ({"max_buffered_items": 0}, "max_buffered_items=0 would never"),
        ({"num_returns": 2, "max_buffered_items": 2}, "drop one of the two"),
    ],
)
def test_options_that_make_no_stream_are_refused(ray, options, match):
    with pytest.raises(ValueError, match=match):
        ray.remote(**options)(lambda: iter(()))


def test_the_names_of_ray_are_taken(ray):
    @ray.remote(_generator_backpressure_num_objects=2)
    def count():
        yield from range(4)

    assert values(count.remote()) == [0, 1, 2, 3]
    assert count._options.max_buffered_items == 2
