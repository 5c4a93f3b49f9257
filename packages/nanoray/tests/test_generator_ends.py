"""How streams end: dropped, cancelled, out of time, with their producer or their consumer."""

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import random
import signal
import threading
import time

import numpy as np
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


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_dropping_a_stream_frees_its_items_and_closes_the_generator(node, until, kind, tmp_path):
    class Source:
        def sync(self, path):
            try:
                for _ in range(100_000):
                    yield np.ones(20_000)
            finally:
                path.touch()

    class AsyncSource:
        async def sync(self, path):
            try:
                for _ in range(100_000):
                    yield np.ones(20_000)
            finally:
                path.touch()

    actor = nanoray.remote(Source if kind == "sync" else AsyncSource).remote()
    path = tmp_path / "closed"
    stream = actor.sync.options(max_buffered_items=5).remote(path)
    kept = nanoray.get(next(stream), timeout=WAIT_S)
    assert until(lambda: len(node.objects) >= 5)
    del stream
    assert until(path.exists)
    assert until(lambda: len(node.objects) == 2)  # the actor, and the item whose array is kept
    assert len(node.streams) == 0
    assert kept.sum() == 20_000
    del kept
    assert until(lambda: len(node.objects) == 1)


def test_a_stream_dropped_before_it_began_makes_one_item(node, until, tmp_path):
    @nanoray.remote
    def count(path):
        for number in range(1000):
            with open(path, "a") as file:
                file.write("x")
            yield number
            time.sleep(0.01)

    block = [nanoray.remote(lambda: time.sleep(0.3)).remote() for _ in range(2)]
    count.remote(str(tmp_path / "made"))
    nanoray.get(block, timeout=WAIT_S)
    del block
    assert until(lambda: not node.supervisor.calls.live())
    assert (tmp_path / "made").stat().st_size < 10
    assert until(lambda: len(node.objects) == 0)


def test_the_consumer_of_a_stream_may_die(node, until):
    @nanoray.remote
    class Source:
        def count(self):
            for number in range(100_000):
                time.sleep(0.001)
                yield number

        def ok(self):
            return True

    @nanoray.remote
    def consume(actor):
        stream = actor[0].count.remote()
        next(stream)
        os.kill(os.getpid(), signal.SIGKILL)

    actor = Source.remote()
    with pytest.raises(nanoray.WorkerCrashedError):
        nanoray.get(consume.options(max_retries=0).remote([actor]), timeout=WAIT_S)
    assert nanoray.get(actor.ok.remote(), timeout=WAIT_S)
    assert len(node.streams) == 0


def test_the_producer_of_a_stream_may_die(ray):
    @ray.remote(max_retries=0)
    def dies():
        yield 1
        os.kill(os.getpid(), signal.SIGKILL)

    first, second = dies.remote()
    assert ray.get(first, timeout=WAIT_S) == 1
    with pytest.raises(ray.WorkerCrashedError):
        ray.get(second, timeout=WAIT_S)


def test_completed_tells_when_a_generator_has_ended(ray):
    @ray.remote
    def count(end):
        yield from range(end)
        if end > 2:
            raise LookupError("too many")

    stream = count.remote(2)
    assert ray.get(stream.completed(), timeout=WAIT_S) is None
    assert values(stream) == [0, 1]
    with pytest.raises(LookupError):
        ray.get(count.remote(3).completed(), timeout=WAIT_S)


@pytest.mark.parametrize("kind", ["task", "task at rest", "method", "async method"])
def test_a_generator_may_be_cancelled_by_its_ref_or_itself(ray, kind):
    def endless(*_):
        while True:
            yield 1
            time.sleep(0.01)

    class Source:
        def forever(self):
            yield from endless()

    class AsyncSource:
        async def forever(self):
            while True:
                yield 1
                await asyncio.sleep(0.01)

    bound = {"max_buffered_items": 2} if kind == "task at rest" else {}
    for by_ref in (True, False):
        if kind.startswith("task"):
            stream = ray.remote(**bound)(endless).remote()
        else:
            actor = ray.remote(Source if kind == "method" else AsyncSource).remote()
            stream = actor.forever.remote()
        next(stream)
        ray.cancel(stream.completed() if by_ref else stream)
        *_, last = stream
        with pytest.raises(ray.TaskCancelledError):
            ray.get(last, timeout=WAIT_S)


def test_a_generator_may_be_cancelled_in_the_middle_of_an_item(ray):
    @ray.remote
    def slow():
        yield 1
        time.sleep(WAIT_S)

    stream = slow.remote()
    next(stream)
    ray.cancel(stream)
    with pytest.raises(ray.TaskCancelledError):
        ray.get(next(stream), timeout=WAIT_S / 2)


def test_a_killed_actor_ends_its_streams(ray):
    @ray.remote
    class Source:
        def forever(self):
            while True:
                yield 1
                time.sleep(0.01)

    actor = Source.remote()
    stream = actor.forever.remote()
    next(stream)
    ray.kill(actor)
    *_, last = stream
    with pytest.raises(ray.ActorDiedError):
        ray.get(last, timeout=WAIT_S)


def disturb(ray, seconds):
    """Take from many streams while processes are killed; True when all gave what they should."""
    end = time.monotonic() + seconds

    def numbers(total, is_big):
        for number in range(total):
            yield number, os.getpid(), np.full(20_000, number) if is_big else None

    @ray.remote(max_restarts=-1, max_task_retries=-1)
    class Source:
        async def numbers(self, total, is_big):
            for item in numbers(total, is_big):
                yield item
                await asyncio.sleep(0.001)

    task = ray.remote(num_cpus=0.5, max_retries=-1)(numbers)
    source = Source.remote()

    def consume(draw):
        total, is_cancelled = draw.randrange(30), draw.random() < 0.1
        kind = draw.choice([task, source.numbers])
        bound = draw.choice([None, 1, 3])
        stream = kind.options(max_buffered_items=bound).remote(total, draw.random() < 0.3)
        stop, taken = draw.randrange(40), 0
        for ref in stream:
            try:
                number, pid, array = ray.get(ref, timeout=WAIT_S)
            except ray.TaskCancelledError:
                assert is_cancelled
                assert taken >= stop
                return
            assert number == taken
            assert array is None or (array == number).all()
            if draw.random() < 0.02:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            taken += 1
            if taken == stop and not is_cancelled:
                return
            if taken == stop:
                ray.cancel(stream)
        assert taken == total

    def work(seed):
        draw = random.Random(seed)
        while time.monotonic() < end:
            consume(draw)
        return True

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return all(pool.map(work, range(4)))


@pytest.mark.slow
def test_streams_under_random_kills_drops_and_cancels_lose_nothing(start, until):
    ray = start(num_cpus=4)
    assert disturb(ray, seconds=10)
    gc.collect()
    node = nanoray.session.current()._link.node
    assert until(lambda: not len(node.objects) and not len(node.streams))
    assert until(lambda: ray.available_resources() == {"CPU": 4.0})


def test_shutdown_ends_streams(start):
    ray = start(num_cpus=1)
    stream = ray.remote(lambda: iter([time.sleep(60)])).options(num_returns="streaming").remote()
    found = []

    def take():
        try:
            found.append(next(stream))
        except nanoray.NanoRayError as error:
            found.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    node = nanoray.session.current()._link.node
    while not node.streams._asked:
        time.sleep(0.001)
    ray.shutdown()
    thread.join(WAIT_S)
    assert len(found) == 1
    with pytest.raises(ray.NotInitializedError):
        next(stream)
