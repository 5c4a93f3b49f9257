"""Random workers die under load: every get ends, nothing is lost that should live, nothing is left
behind."""

import contextlib
import math
import os
import random
import signal
import time

import numpy as np
import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 60


class Storm:
    """Calls of every kind, and a hand that kills processes under them."""

    def __init__(self, ray, seed):
        self.ray, self.draw = ray, random.Random(seed)
        self.zygote = nanoray.session.current()._link._hub.zygote_pid
        self.kept = [(ray.put(np.full(50_000, i)), i) for i in range(4)]
        self.num_kills, self.num_errors = 0, 0
        self.struck = -math.inf
        """When the last process was killed."""
        self.waits = []
        """Of every get: how long after the last death it ended, in seconds, and what it was."""

        @ray.remote
        def array(i, size):
            return np.full(size, i)

        @ray.remote
        def add(a, b):
            return a + b

        @ray.remote
        def nested(i):
            return sum(nanoray.get([array.remote(i, 10), array.remote(1, 10)])).sum()

        @ray.remote
        def put(i):
            return [nanoray.put(np.full(30_000, i))]

        @ray.remote
        class Counter:
            def __init__(self, values):
                self.value = int(values[0])

            def add(self, i):
                return self.value + i

            def pid(self):
                return os.getpid()

            def hang(self):
                time.sleep(600)

        self.array, self.add, self.nested, self.put, self.Counter = array, add, nested, put, Counter
        self.actors = [
            Counter.options(max_restarts=-1, max_task_retries=retries).remote(self.kept[i][0])
            for i, retries in enumerate((0, 2, -1))
        ]
        ray.get([actor.pid.remote() for actor in self.actors], timeout=WAIT_S)  # all have started

    def pids(self):
        with open(f"/proc/{self.zygote}/task/{self.zygote}/children") as file:
            return [int(pid) for pid in file.read().split()]

    def kill_one(self):
        pids = self.pids()
        if pids:
            with contextlib.suppress(ProcessLookupError):
                self.kill(self.draw.choice(pids))

    def kill(self, pid):
        os.kill(pid, signal.SIGKILL)
        self.struck = time.monotonic()
        self.num_kills += 1

    def get(self, ref, what):
        """Get a value, and note how long after the last death it, or its error, came."""
        begin = time.monotonic()
        try:
            return self.ray.get(ref, timeout=WAIT_S)
        finally:
            self.waits.append((time.monotonic() - max(begin, self.struck), what))

    def work(self):
        """Start calls of every kind; return refs and what each must be."""
        draw, jobs = self.draw, []
        for _ in range(6):
            i, size = draw.randrange(100), draw.choice((10, 30_000))
            jobs.append((self.array.remote(i, size), i * size))
            two = self.array.remote(i, 10), self.array.remote(1, 10)
            jobs.append((self.add.remote(*two), 10 * (i + 1)))
            jobs.append((self.nested.remote(i), 10 * (i + 1)))
            number = draw.randrange(3)
            jobs.append((self.actors[number].add.remote(i), number + i))
        return jobs

    def check(self, ref, wanted):
        try:
            found = self.get(ref, f"a call that is to give {wanted}")
        except (self.ray.WorkerCrashedError, self.ray.ActorDiedError):
            self.num_errors += 1
        else:
            assert int(np.sum(found)) == wanted

    def one_round(self):
        jobs = self.work()
        inner = self.put.remote(7)
        for _ in range(self.draw.randrange(1, 4)):
            time.sleep(self.draw.random() / 200)
            self.kill_one()
        for ref, wanted in jobs:
            self.check(ref, wanted)
        try:
            (held,) = self.get(inner, "a call that puts")
        except self.ray.WorkerCrashedError:
            self.num_errors += 1
        else:
            self.kill_one()
            found = self.get(held, "what a call has put")
            assert int(found[-1]) == 7, "a value outlives its writer"
        for ref, i in self.kept:
            assert int(self.get(ref, "what the driver has put")[0]) == i

    def kill_one_that_is_waited_for(self):
        victim = self.Counter.remote([0])
        pid = self.ray.get(victim.pid.remote(), timeout=WAIT_S)
        ref = victim.hang.remote()
        self.kill(pid)
        with pytest.raises(self.ray.ActorDiedError, match="SIGKILL"):
            self.get(ref, "a call of an actor that was killed")


def run(ray, until, num_kills, seed):
    storm = Storm(ray, seed)
    while storm.num_kills < num_kills:
        storm.one_round()
        if storm.num_kills % 5 == 0:
            storm.kill_one_that_is_waited_for()
    pids, zygote, waits = storm.pids(), storm.zygote, sorted(storm.waits, reverse=True)
    del storm
    node = nanoray.session.current()._link.node
    assert until(lambda: len(node.objects) == 0)
    assert not node.supervisor.calls.live()
    assert until(lambda: ray.available_resources() == {"CPU": 2.0})
    assert until(lambda: not any(arena.live for arena in node.arenas._arenas.values()))
    return [*pids, zygote], waits


def assert_nothing_is_left(pids, is_running):
    assert not any(is_running(pid) for pid in pids)
    files = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if exists(fd)]
    assert not [file for file in files if "memfd:nanoray" in file]


def exists(fd):
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_thirty_random_kills_under_load(start, until, is_running):
    ray = start(num_cpus=2)
    pids, waits = run(ray, until, 30, seed=0)
    assert waits[0][0] < 30, f"the longest waits after a death: {waits[:10]}"
    ray.shutdown()
    assert_nothing_is_left(pids, is_running)


@pytest.mark.slow
def test_a_thousand_random_kills_under_load(start, until, is_running):
    signal.alarm(1200)  # instead of the limit of other tests
    ray = start(num_cpus=2)
    pids, waits = run(ray, until, 1000, seed=1)
    # Every get, not most: also of values that a retry has to make again, for that takes it moments.
    assert waits[0][0] < 1.0, f"the longest waits after a death: {waits[:10]}"
    ray.shutdown()
    assert_nothing_is_left(pids, is_running)
