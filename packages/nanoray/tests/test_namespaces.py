"""Three machines in network namespaces of their own, joined by a switch whose cables are pulled."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 60
HOSTS = {"a": "10.77.0.1", "b": "10.77.0.2", "c": "10.77.0.3"}
MB = 1 << 20


class Namespace:
    """A network namespace: it ends with the process that holds it, which ends with this one."""

    def __init__(self):
        words = ["unshare", "--net", "sh", "-c", "echo ready; exec cat"]
        self.holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self.holder.stdout.readline() != b"ready\n":
            self.close()
            pytest.skip("no network namespace can be made here: it takes the rights of root")
        self.within = ("nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "--")

    def ip(self, words):
        subprocess.run([*self.within, "ip", *words.split()], check=True)

    def close(self):
        self.holder.communicate()


class Switch(Namespace):
    """The namespace that all cables end in."""

    def __init__(self):
        super().__init__()
        self.ip("link add switch type bridge")
        self.ip("link set switch up")

    def plug(self, machine, name, host):
        self.ip(f"link add name {name} type veth peer name eth0 netns {machine.holder.pid}")
        self.ip(f"link set dev {name} master switch up")
        machine.ip("link set lo up")
        machine.ip("link set eth0 up")
        machine.ip(f"addr add {host}/24 dev eth0")

    def cut(self, name):
        self.ip(f"link set dev {name} down")

    def mend(self, name):
        self.ip(f"link set dev {name} up")


@pytest.fixture
def switch(cluster):
    """Three machines, each with a resource of its name; this process is a driver of the first."""
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            pytest.skip(f"network namespaces are made by the program {program}, not installed here")
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(contextlib.closing(Switch()))
        for name, host in HOSTS.items():
            machine = stack.enter_context(contextlib.closing(Namespace()))
            switch.plug(machine, name, host)
            cluster.start(name, host, resource=name, limit=2, within=machine.within)
        cluster.attach()
        yield switch
        cluster.stop()


@nanoray.remote(num_cpus=0)
def node():
    return nanoray.get_runtime_context().node_id


@nanoray.remote
def meet(folder, count):
    """Return the node once ``count`` of these run at once."""
    Path(folder, str(os.getpid())).touch()
    while len(os.listdir(folder)) < count:
        time.sleep(0.01)
    return nanoray.get_runtime_context().node_id


@nanoray.remote
def second_time(folder):
    """Return the node, but the first time wait for ever."""
    if not os.path.exists(folder / "first"):
        (folder / "first").touch()
        signal.pause()
    return nanoray.get_runtime_context().node_id


@nanoray.remote(num_cpus=0, max_restarts=1)
class Resident:
    def node(self):
        return nanoray.get_runtime_context().node_id


def on(node_id, *, soft=False):
    return {"scheduling_strategy": nanoray.NodeAffinitySchedulingStrategy(node_id, soft=soft)}


def spread(folder):
    folder.mkdir()
    refs = [meet.options(scheduling_strategy="SPREAD").remote(folder, 3) for _ in HOSTS]
    return set(nanoray.get(refs, timeout=WAIT_S))


@pytest.mark.slow
def test_work_spreads_and_a_machine_whose_cable_is_pulled_is_replaced_and_comes_back(
    cluster, switch, tmp_path, until
):
    ray = nanoray
    a, b, c = (row["NodeID"] for row in ray.nodes())
    assert [row["NodeManagerAddress"] for row in ray.nodes()] == [*HOSTS.values()]
    assert spread(tmp_path / "before") == {a, b, c}

    # From b to c by the switch, past the head.
    make = ray.remote(num_cpus=0)(lambda: np.arange(4 * MB))
    total = ray.remote(num_cpus=0)(lambda array: int(array[::1000].sum()))
    array = make.options(**on(b)).remote()
    wanted = int(np.arange(4 * MB)[::1000].sum())
    assert ray.get(total.options(**on(c)).remote(array), timeout=WAIT_S) == wanted

    lost = make.options(**on(b)).remote()
    assert ray.wait([lost], timeout=WAIT_S, fetch_local=False)[0]
    actor = Resident.options(**on(b, soft=True)).remote()
    assert ray.get(actor.node.remote(), timeout=WAIT_S) == b
    retried = second_time.options(max_retries=1, **on(b, soft=True)).remote(tmp_path)
    reported = ray.remote(num_cpus=0, max_retries=0)(signal.pause).options(**on(b)).remote()
    assert until((tmp_path / "first").exists)

    switch.cut("b")
    with pytest.raises(ray.WorkerCrashedError, match="no sign of life for 2 s"):
        ray.get(reported, timeout=WAIT_S)
    assert ray.get(retried, timeout=WAIT_S) in (a, c)
    assert ray.get(actor.node.remote(), timeout=WAIT_S) in (a, c)
    with pytest.raises(ray.ObjectLostError):
        ray.get(lost, timeout=WAIT_S)
    assert ray.get(total.options(**on(a)).remote(array), timeout=WAIT_S) == wanted, "c has a copy"
    assert [row["Alive"] for row in ray.nodes()] == [True, False, True]

    switch.mend("b")
    cluster.wait_ready("b")
    assert [row["Alive"] for row in ray.nodes()] == [True, False, True, True]
    new = ray.nodes()[-1]["NodeID"]
    assert spread(tmp_path / "after") == {a, c, new}
    assert ray.get(node.options(resources={"b": 1}).remote(), timeout=WAIT_S) == new
