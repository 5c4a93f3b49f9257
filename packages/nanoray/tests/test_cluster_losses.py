"""Machines, heads and drivers that die, fall silent or leave."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import nanorlhf.nanoray as nanoray
from nanorlhf.nanoray.daemons import daemons, stop_daemons

WAIT_S = 60


def on(ray, resource, **options):
    """Run a function where a resource is, without a CPU."""
    return ray.remote(num_cpus=0, resources={resource: 1}, **options)


def parent_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rsplit(")", 1)[1].split()[1])


def test_a_killed_machine_is_a_death_of_all_that_was_there(two, cluster, tmp_path):
    lost = on(two, "b")(lambda: np.zeros(1 << 20)).remote()
    two.wait([lost], timeout=WAIT_S, fetch_local=False)
    copied = on(two, "b")(lambda: np.ones(1 << 20)).remote()
    assert two.get(copied, timeout=WAIT_S)[0] == 1

    def run(path):
        Path(path).touch()
        while True:
            signal.pause()

    once = on(two, "b", max_retries=0)(run).remote(str(tmp_path / "once"))

    @on(two, "b")
    class Doomed:
        def ping(self):
            return 1

    doomed = Doomed.remote()
    two.get(doomed.ping.remote(), timeout=WAIT_S)
    while not (tmp_path / "once").exists():
        pass
    cluster.processes["b"].kill()
    with pytest.raises(two.WorkerCrashedError, match=r"was on machine 1 .*its connection ended"):
        two.get(once, timeout=WAIT_S)
    with pytest.raises(two.ActorDiedError, match="machine 1"):
        two.get(doomed.ping.remote(), timeout=WAIT_S)
    with pytest.raises(two.ObjectLostError, match="was only on machine 1"):
        two.get(lost, timeout=WAIT_S)
    assert two.get(copied, timeout=WAIT_S)[0] == 1
    assert [row["Alive"] for row in two.nodes()] == [True, False]
    assert two.cluster_resources() == {"CPU": 1.0, "a": 4.0}


def test_tasks_and_actors_of_a_lost_machine_go_on_elsewhere(cluster, tmp_path):
    cluster.start("a", "127.0.0.1", cpus=0)
    cluster.start("b", "127.0.0.2", resource="x")
    ray = cluster.attach()

    @ray.remote(num_cpus=0, resources={"x": 1}, max_retries=1)
    def where(path):
        first = not os.path.exists(path)
        Path(path).touch()
        while first:
            signal.pause()
        return parent_of(os.getppid())

    @ray.remote(num_cpus=0, resources={"x": 1}, max_restarts=1, max_task_retries=1)
    class Phoenix:
        def where(self):
            return parent_of(os.getppid())

    phoenix = Phoenix.remote()
    b = cluster.processes["b"]
    assert ray.get(phoenix.where.remote(), timeout=WAIT_S) == b.pid
    task = where.remote(str(tmp_path / "first"))
    while not (tmp_path / "first").exists():
        pass
    c = cluster.start("c", "127.0.0.3", resource="x")
    b.kill()
    assert ray.get(task, timeout=WAIT_S) == c.pid
    assert ray.get(phoenix.where.remote(), timeout=WAIT_S) == c.pid


@pytest.mark.slow
def test_a_machine_that_is_silent_counts_as_lost_and_comes_back_as_a_new_one(cluster, is_running):
    cluster.start("a", "127.0.0.1", cpus=0, limit=1)
    b = cluster.start("b", "127.0.0.2", limit=1)
    ray = cluster.attach()
    pid = ray.remote(os.getpid)
    before = ray.get(pid.remote(), timeout=WAIT_S)
    forever = ray.remote(max_retries=0)(signal.pause).remote()
    ray.wait([forever], timeout=0.5)
    b.send_signal(signal.SIGSTOP)
    with pytest.raises(ray.WorkerCrashedError, match="no sign of life for 1 s"):
        ray.get(forever, timeout=WAIT_S)
    b.send_signal(signal.SIGCONT)
    cluster.wait_ready("b")
    after = ray.get(pid.remote(), timeout=WAIT_S)
    assert after != before
    assert not is_running(before)
    assert [row["Alive"] for row in ray.nodes()] == [True, False, True]


OTHER_DRIVER = """
import sys
from pathlib import Path
import nanorlhf.nanoray as nanoray
from nanorlhf.nanoray.attach import attach
from nanorlhf.nanoray.session import set_current

set_current(attach("auto", root=Path(sys.argv[1]) / "a", runtime_env=None, log_to_driver=False))
counter = nanoray.get_actor("counter")
print(nanoray.get(counter.add.remote(10), timeout=60), flush=True)

@nanoray.remote(num_cpus=0)
class Mine:
    def ping(self):
        return 1

@nanoray.remote(num_cpus=0)
def endless():
    import signal
    signal.pause()

mine = Mine.options(name="mine").remote()
nanoray.get(mine.ping.remote(), timeout=60)
kept = Mine.options(name="kept", lifetime="detached").remote()
nanoray.get(kept.ping.remote(), timeout=60)
running = endless.remote()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["leaves", "is killed"])
def test_two_drivers_share_actors_and_one_that_goes_takes_only_its_own(two, cluster, until, end):
    @two.remote(num_cpus=0, resources={"b": 1})
    class Counter:
        def __init__(self):
            self.value = 0

        def add(self, n):
            self.value += n
            return self.value

    counter = Counter.options(name="counter", lifetime="detached").remote()
    assert two.get(counter.add.remote(1), timeout=WAIT_S) == 1
    command = [sys.executable, "-c", OTHER_DRIVER, str(cluster.root)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == "11\n"
        assert other.stdout.readline() == "ready\n"
        assert two.get_actor("mine") is not None
        if end == "is killed":
            other.kill()
        other.stdin.close()
        other.wait()

    def is_gone():
        try:
            two.get_actor("mine")
        except ValueError:
            return True
        return False

    assert until(is_gone)
    assert two.get(two.get_actor("kept").ping.remote(), timeout=WAIT_S) == 1
    assert two.get(counter.add.remote(1), timeout=WAIT_S) == 12


def test_a_driver_that_leaves_can_come_back(two, cluster):
    ref = two.put(1)
    nanoray.shutdown()
    with pytest.raises(nanoray.NotInitializedError):
        nanoray.get(ref)
    ray = cluster.attach()
    with pytest.raises(ValueError, match="belongs to an engine that was shut down"):
        ray.get(ref)
    assert ray.get(ray.put(2), timeout=WAIT_S) == 2


def test_nothing_is_left_after_stop(two, cluster, is_running, until):
    pids = [two.get(on(two, r)(os.getpid).remote(), timeout=WAIT_S) for r in "ab"]
    zygotes = [two.get(on(two, r)(os.getppid).remote(), timeout=WAIT_S) for r in "ab"]
    forever = on(two, "b")(signal.pause).remote()
    daemon_pids = [process.pid for process in cluster.processes.values()]
    roots = [cluster.root / name for name in "ba"]
    assert [daemon.pid for root in reversed(roots) for daemon in daemons(root)] == daemon_pids
    assert [len(stop_daemons(root=root)) for root in roots] == [1, 1]
    assert [process.wait() for process in cluster.processes.values()] == [0, 0]
    assert not any(is_running(pid) for pid in (*pids, *zygotes))
    assert [os.listdir(root) for root in roots] == [[], []]
    with pytest.raises(two.EngineError, match=r"stopped|hung up"):
        two.get(forever, timeout=WAIT_S)
    with pytest.raises(two.EngineError):
        two.put(1)


def test_agents_end_with_a_head_that_is_stopped(two, cluster, is_running):
    pid = two.get(on(two, "b")(os.getpid).remote(), timeout=WAIT_S)
    cluster.processes["a"].send_signal(signal.SIGTERM)
    assert [process.wait() for process in cluster.processes.values()] == [0, 0]
    assert not is_running(pid)
    with pytest.raises(two.EngineError, match=r"hung up|is gone"):
        two.get(two.put(1), timeout=WAIT_S)


def test_without_a_head_agents_end_their_processes(two, cluster, is_running, until):
    pid = two.get(on(two, "b")(os.getpid).remote(), timeout=WAIT_S)
    cluster.processes["a"].kill()
    assert until(lambda: not is_running(pid))
    with pytest.raises(two.EngineError, match=r"hung up|is gone"):
        two.get(two.put(1), timeout=WAIT_S)


@pytest.mark.slow
def test_agents_give_a_silent_head_up_and_come_back_to_it(cluster, is_running, until):
    a = cluster.start("a", "127.0.0.1", cpus=0, limit=1)
    cluster.start("b", "127.0.0.2", limit=1)
    ray = cluster.attach()
    pid = ray.get(ray.remote(os.getpid).remote(), timeout=WAIT_S)
    a.send_signal(signal.SIGSTOP)
    assert until(lambda: not is_running(pid))
    a.send_signal(signal.SIGCONT)
    cluster.wait_ready("b")
    assert ray.get(ray.remote(os.getpid).remote(), timeout=WAIT_S) != pid
    assert [row["Alive"] for row in ray.nodes()] == [True, False, True]


@pytest.mark.slow
def test_every_call_ends_while_machines_die_and_come_under_load(cluster):
    """A value is right or its error is typed; and the head, which nothing killed, works on."""
    cluster.start("a", "127.0.0.1")
    for name, host in (("b", "127.0.0.2"), ("c", "127.0.0.3")):
        cluster.start(name, host, cpus=2)
    ray = cluster.attach()

    @ray.remote(max_retries=2, scheduling_strategy="SPREAD")
    def make(number):
        time.sleep(0.02)  # work that is worth a process on every machine
        return np.full(40_000, number)

    @ray.remote(max_retries=2, scheduling_strategy="SPREAD")
    def add(x, y):
        time.sleep(0.02)
        return x + y

    @ray.remote(num_cpus=0.5, max_restarts=-1, max_task_retries=2)
    class Adder:
        def add(self, x, y):
            return x + y

    allowed = (ray.WorkerCrashedError, ray.ObjectLostError, ray.ActorDiedError)
    adders = [Adder.remote() for _ in range(2)]
    num_right = num_lost = 0
    for turn in range(4):
        leaves = [make.remote(number) for number in range(40)]
        sums = [add.remote(x, y) for x, y in itertools.pairwise(leaves)]
        sums += [adders[n % 2].add.remote(leaves[n], sums[n]) for n in range(20)]
        expected = [2 * n + 1 for n in range(39)] + [3 * n + 1 for n in range(20)]
        victim = "bc"[turn % 2]
        ray.wait(sums, num_returns=1 + 10 * turn, timeout=WAIT_S)
        cluster.processes[victim].kill()
        cluster.processes[victim].wait()
        cluster.processes[victim].stdout.close()
        for ref, number in zip(sums, expected, strict=True):
            try:
                value = ray.get(ref, timeout=WAIT_S)
            except allowed:
                num_lost += 1
            else:
                assert (value == number).all()
                num_right += 1
        cluster.start(victim, "127.0.0.2" if victim == "b" else "127.0.0.3", cpus=2)
    assert min(num_right, num_lost) > 0  # else nothing was at stake
    assert sum(row["Alive"] for row in ray.nodes()) == 3
    assert ray.get(add.remote(1, 2), timeout=WAIT_S) == 3
