"""Several machines: a head and agents as daemons on separate loopback addresses."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nanorlhf.nanoray as nanoray
from nanorlhf.nanoray.attach import attach
from nanorlhf.nanoray.daemons import stop_daemons
from nanorlhf.nanoray.session import set_current

WAIT_S = 60

DAEMON = """
import logging, sys
from pathlib import Path
from nanorlhf.nanoray.agent import run_agent
from nanorlhf.nanoray.door import Address
from nanorlhf.nanoray.head import run_head
from nanorlhf.nanoray.station import MachineConfig

logging.basicConfig(format="%(message)s")
root, host, port, cpus, resources, limit = sys.argv[1:7]
config = MachineConfig(
    host=host, token_path=Path(root) / "token", root=Path(root) / "run", num_cpus=float(cpus),
    resources={resources: 4} if resources else {}, beat_s=0.1, limit_s=float(limit), rejoin_s=20,
)
ready = lambda daemon: print("ready", daemon.address.port, flush=True)
if port == "head":
    run_head(config, on_ready=ready)
else:
    run_agent(Address("127.0.0.1", int(port)), config, on_ready=ready)
"""


class Cluster:
    """Daemons that share a token, and this process as a driver."""

    def __init__(self, root):
        self.root = root
        self.processes = {}
        self.port = None

    def start(self, name, host, *, cpus=1, resource="", limit=30):
        where = "head" if self.port is None else str(self.port)
        command = [sys.executable, "-c", DAEMON, self.root, host, where, cpus, resource, limit]
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        self.processes[name] = process
        self.wait_ready(name)
        return process

    def wait_ready(self, name):
        word, port = self.processes[name].stdout.readline().split()
        assert word == "ready"
        self.port = self.port or int(port)

    def attach(self):
        set_current(attach("auto", root=self.root / "run", runtime_env=None, log_to_driver=True))
        return nanoray

    def stop(self):
        nanoray.shutdown()
        stopped = stop_daemons(root=self.root / "run")
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
            process.stdout.close()
        return stopped


@pytest.fixture
def cluster(no_engine, tmp_path):
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.stop()


@pytest.fixture
def two(cluster):
    """A head with resource "a" and an agent with resource "b", and this process as a driver."""
    cluster.start("a", "127.0.0.1", resource="a")
    cluster.start("b", "127.0.0.2", resource="b")
    return cluster.attach()


def on(ray, resource, **options):
    """Run a function where a resource is, without a CPU."""
    return ray.remote(num_cpus=0, resources={resource: 1}, **options)


def parent_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rsplit(")", 1)[1].split()[1])


def test_nodes_and_resources_of_both_machines_are_known(two):
    rows = two.nodes()
    assert [row["Alive"] for row in rows] == [True, True]
    assert [row["NodeManagerAddress"] for row in rows] == ["127.0.0.1", "127.0.0.2"]
    assert len({row["NodeID"] for row in rows}) == 2
    assert rows[1]["Resources"] == {"CPU": 1.0, "b": 4.0}
    assert two.cluster_resources() == {"CPU": 2.0, "a": 4.0, "b": 4.0}


def test_tasks_run_where_their_resources_are(two):
    here, there = (two.get(on(two, r)(os.getppid).remote(), timeout=WAIT_S) for r in "ab")
    assert here != there


def test_large_arrays_cross_both_ways_byte_for_byte(two):
    array = np.random.default_rng(0).integers(0, 256, 100 << 20, np.uint8)

    def double(x):
        return x, (x.flags.writeable, int(x[::4096].sum()))

    ref = two.put(array)
    back, said = on(two, "b", num_returns=2)(double).remote(ref)
    assert two.get(said, timeout=WAIT_S) == (False, int(array[::4096].sum()))
    assert np.array_equal(two.get(back, timeout=WAIT_S), array)


def test_copies_are_freed_on_all_machines(two, until):
    def used():
        from nanorlhf.nanoray.session import current

        return current().writer.used_bytes

    @on(two, "b")
    def total(x):
        return float(x.sum())

    for _ in range(30):
        ref = two.put(np.ones(4 << 20))  # 32 MB, of which 30 would fill the arenas thrice
        assert two.get(total.remote(ref), timeout=WAIT_S) == 4 << 20
        del ref
    assert until(lambda: used() == 0)

    @on(two, "b")
    def shared_mb():
        daemon = parent_of(os.getppid())
        links = [os.readlink(entry) for entry in Path(f"/proc/{daemon}/fd").iterdir()]
        return sum("memfd:nanoray" in link for link in links)

    assert two.get(shared_mb.remote(), timeout=WAIT_S) <= 2
