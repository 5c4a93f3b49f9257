"""What is over leaves nothing in the engine's tables, and no memory behind."""

import gc
import os
import resource
import signal

import numpy as np
import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 60
MB = 1 << 20


def num_entries(node):
    """Count what the tables of an idle engine without refs must not have."""
    supervisor, scheduler = node.supervisor, node.scheduler
    return {
        "objects": len(node.objects),
        "calls": len(supervisor.calls.live()),
        "sent": sum(len(worker.calls) for worker in supervisor._workers.values()),
        "actors": len(supervisor.actors.ids()),
        "queued": len(scheduler._lines) + len(scheduler._wants),
        "running": len(scheduler._running),
        "paused": len(scheduler._paused),
        "gets": len(node._gets._gets),
        "waits": len(node._waits._waits),
        "streams": len(node.streams),
        "codes": len(supervisor.calls.codes),
        "blocks": sum(arena.live for arena in node.arenas._arenas.values()),
    }


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def run_tasks(ray, number, batch):
    add = ray.remote(lambda i: i + 1)
    for begin in range(0, number, batch):
        refs = [add.remote(begin + i) for i in range(batch)]
        assert ray.get(refs, timeout=WAIT_S)[-1] == begin + batch


def run_objects(ray, number):
    total = ray.remote(lambda array: int(array[0]) + array.size)
    for i in range(number):
        ref = ray.put(np.full(10 * MB, i % 100, np.uint8))
        assert ray.get(total.remote(ref), timeout=WAIT_S) == 10 * MB + i % 100


def run_actors(ray, number):
    @ray.remote(max_restarts=1)
    class Keeper:
        def __init__(self, value):
            self.value = value

        def items(self):
            yield from range(3)

        def get(self):
            return self.value

    for i in range(number):
        keeper = Keeper.remote(np.full(20_000, i))
        assert ray.get(keeper.get.remote(), timeout=WAIT_S)[0] == i
        items = keeper.items.options(num_returns="streaming").remote()
        assert [ray.get(item, timeout=WAIT_S) for item in items] == [0, 1, 2]


def run_failures(ray, number):
    fails = ray.remote(lambda: 1 / 0)
    takes = ray.remote(lambda x: x)
    for _ in range(number):
        with pytest.raises(ZeroDivisionError):
            ray.get(takes.remote(fails.remote()), timeout=WAIT_S)
        ref = takes.remote(1)
        ray.cancel(ref)
        assert ray.wait([ref], timeout=WAIT_S)[0] == [ref]


def test_the_tables_are_empty_when_all_is_over(start, until):
    ray = start(num_cpus=2)
    run_tasks(ray, 2000, 500)
    run_objects(ray, 10)
    run_actors(ray, 3)
    run_failures(ray, 10)
    gc.collect()
    node = nanoray.session.current()._link.node
    assert until(lambda: not any(num_entries(node).values())), num_entries(node)
    assert ray.available_resources() == {"CPU": 2.0}


def test_code_is_forgotten_with_its_last_function(start, until):
    ray = start(num_cpus=1)

    def work(i):
        value = ray.put([i])
        task = ray.remote(lambda: nanoray.get(value)[0] + i)
        return ray.get([task.remote(), task.remote()], timeout=WAIT_S)

    def num_loaded():
        count = ray.remote(lambda: len(nanoray.session.current()._link.loaded))
        return ray.get(count.remote(), timeout=WAIT_S)

    for i in range(30):
        assert work(i) == [2 * i] * 2
    gc.collect()
    node = nanoray.session.current()._link.node
    assert until(lambda: len(node.supervisor.calls.codes) == len(node.objects) == 0)
    assert until(lambda: num_loaded() <= 2), "of this count and perhaps the one before"


def test_code_lives_as_long_as_a_call_needs_it(start):
    ray = start(num_cpus=1)

    def make():
        class Forgotten:
            def get(self):
                return os.getpid()

        return ray.remote(max_restarts=1)(Forgotten).remote()

    refs = [ray.remote(lambda i=i: i).remote() for i in range(50)]
    actor = make()
    first = ray.get(actor.get.remote(), timeout=WAIT_S)
    gc.collect()
    ray.kill(actor, no_restart=False)
    assert ray.get(actor.get.remote(), timeout=WAIT_S) != first
    assert ray.get(refs, timeout=WAIT_S) == list(range(50))


@pytest.mark.slow
def test_a_million_tasks_and_a_thousand_large_objects_leave_memory_where_it_began(start, until):
    signal.alarm(1800)  # instead of the limit of other tests
    ray = start(num_cpus=2)
    run_tasks(ray, 20_000, 2000)
    run_objects(ray, 60)  # the arenas that are kept warm
    before = resident_bytes()
    run_tasks(ray, 1_000_000, 2000)
    run_objects(ray, 1000)
    gc.collect()
    node = nanoray.session.current()._link.node
    assert until(lambda: not any(num_entries(node).values())), num_entries(node)
    assert resident_bytes() - before < 32 * MB
