"""Where calls, groups and copies go on three machines that all tests here share."""

import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 60
HOSTS = {"a": "127.0.0.1", "b": "127.0.0.2", "c": "127.0.0.3"}
CPUS = 2
MB = 1 << 20
STORE = 64 * MB


@pytest.fixture(scope="module")
def machines(shared_cluster):
    """Three machines of two CPUs; the driver is on the first, and the last has a small store."""
    for name, host in HOSTS.items():
        store = STORE if name == "c" else 0
        shared_cluster.start(name, host, cpus=CPUS, resource=name, store=store)
    shared_cluster.attach()
    return shared_cluster


@pytest.fixture
def ray(machines, until):
    """The package, once all is free again."""
    assert until(lambda: nanoray.available_resources()["CPU"] == len(HOSTS) * CPUS)
    return nanoray


@pytest.fixture
def nodes(ray):
    """The node ids of the three machines."""
    return [row["NodeID"] for row in ray.nodes()]


@pytest.fixture
def group(ray):
    """Make placement groups that go at the end."""
    groups = []

    def make(bundles, strategy):
        groups.append(ray.placement_group(bundles, strategy=strategy))
        return groups[-1]

    yield make
    for made in groups:
        ray.remove_placement_group(made)


@nanoray.remote(num_cpus=0)
def node():
    return nanoray.get_runtime_context().node_id


@nanoray.remote(num_cpus=0.2)
def meet(folder, count):
    """Return the node once ``count`` of these run at once."""
    Path(folder, str(os.getpid())).touch()
    while len(os.listdir(folder)) < count:
        time.sleep(0.01)
    return nanoray.get_runtime_context().node_id


@nanoray.remote(num_cpus=0)
class Resident:
    def node(self):
        return nanoray.get_runtime_context().node_id


def places(group):
    """Return the node of a task in each bundle."""
    at = {"placement_group": group}
    refs = [
        node.options(**at, placement_group_bundle_index=index).remote()
        for index in range(group.bundle_count)
    ]
    return nanoray.get(refs, timeout=WAIT_S)


def on(node_id, *, soft=False):
    return {"scheduling_strategy": nanoray.NodeAffinitySchedulingStrategy(node_id, soft=soft)}


@pytest.mark.parametrize(("strategy", "num_nodes"), [("SPREAD", 3), ("DEFAULT", 1)])
def test_tasks_spread_when_asked_and_are_packed_else(ray, tmp_path, strategy, num_nodes):
    task = meet.options(scheduling_strategy=strategy)
    found = ray.get([task.remote(str(tmp_path), 3) for _ in range(3)], timeout=WAIT_S)
    assert len(set(found)) == num_nodes


def test_short_tasks_that_are_to_spread_do_so_one_by_one_and_at_once(ray, nodes):
    short = node.options(scheduling_strategy="SPREAD", num_cpus=1)
    for _ in range(100):  # known to be short by now
        ray.get(short.remote(), timeout=WAIT_S)
    in_turn = [ray.get(short.remote(), timeout=WAIT_S) for _ in range(6)]
    assert Counter(in_turn) == dict.fromkeys(nodes, 2)
    at_once = ray.get([short.remote() for _ in range(600)], timeout=WAIT_S)
    assert min(Counter(at_once)[one] for one in nodes) > 100


def test_actors_spread_too(ray, nodes):
    spread = Resident.options(scheduling_strategy="SPREAD")
    actors = [spread.remote() for _ in nodes]
    found = ray.get([actor.node.remote() for actor in actors], timeout=WAIT_S)
    assert sorted(found) == sorted(nodes)


def test_what_names_its_node_runs_there(ray, nodes):
    tasks = [node.options(**on(one)).remote() for one in nodes]
    actors = [Resident.options(**on(one)).remote() for one in nodes]
    assert ray.get(tasks, timeout=WAIT_S) == nodes
    assert ray.get([actor.node.remote() for actor in actors], timeout=WAIT_S) == nodes


@pytest.mark.parametrize("soft", [False, True])
def test_what_names_a_busy_node_waits_for_it_though_others_are_free(ray, nodes, soft):
    holder = Resident.options(num_cpus=CPUS, **on(nodes[1])).remote()
    assert ray.get(holder.node.remote(), timeout=WAIT_S) == nodes[1]
    waits = node.options(num_cpus=1, **on(nodes[1], soft=soft)).remote()
    elsewhere = node.options(num_cpus=1, **on(nodes[2])).remote()
    assert ray.get(elsewhere, timeout=WAIT_S) == nodes[2]
    assert ray.wait([waits], timeout=0)[0] == []
    ray.kill(holder)
    assert ray.get(waits, timeout=WAIT_S) == nodes[1]


def test_a_node_that_can_never_hold_a_call_refuses_it_unless_any_will_do(ray, nodes):
    wants_c = {"resources": {"c": 1}}
    with pytest.raises(ray.InfeasibleError, match=f"on node {nodes[1]}, c=1 is asked for"):
        node.options(**wants_c, **on(nodes[1])).remote()
    soft = node.options(**wants_c, **on(nodes[1], soft=True))
    assert ray.get(soft.remote(), timeout=WAIT_S) == nodes[2]
    with pytest.raises(ray.InfeasibleError, match="there is no node nowhere"):
        node.options(**on("nowhere")).remote()
    with pytest.raises(ray.InfeasibleError, match="there is no node nowhere"):
        Resident.options(**on("nowhere")).remote()
    soft = node.options(**on("nowhere", soft=True))
    assert ray.get(soft.remote(), timeout=WAIT_S) in nodes


@pytest.mark.parametrize(
    ("strategy", "num_bundles", "shares"),
    [
        ("PACK", 2, [2]),
        ("PACK", 4, [2, 2]),
        ("SPREAD", 3, [1, 1, 1]),
        ("SPREAD", 4, [2, 1, 1]),
        ("STRICT_PACK", 2, [2]),
        ("STRICT_SPREAD", 3, [1, 1, 1]),
    ],
)
def test_bundles_go_where_the_strategy_says(ray, group, strategy, num_bundles, shares):
    found = places(group([{"CPU": 1}] * num_bundles, strategy))
    assert sorted(Counter(found).values(), reverse=True) == shares


def test_bundles_that_no_machines_can_hold_together_are_refused_at_once(ray):
    with pytest.raises(ray.InfeasibleError, match="STRICT_SPREAD needs 4 nodes and there are 3"):
        ray.placement_group([{"CPU": 0.1}] * 4, strategy="STRICT_SPREAD")
    with pytest.raises(ray.InfeasibleError, match="do not fit into"):
        ray.placement_group([{"CPU": 1}] * 3, strategy="STRICT_PACK")
    with pytest.raises(ray.InfeasibleError, match="do not fit into"):
        ray.placement_group([{"a": 1, "b": 1}])
    assert ray.available_resources()["CPU"] == len(HOSTS) * CPUS


def test_a_strict_group_waits_until_one_machine_has_room_for_it(ray, group):
    one_each = group([{"CPU": 1}] * 3, "STRICT_SPREAD")
    assert one_each.wait(WAIT_S)
    together = group([{"CPU": 1}] * 2, "STRICT_PACK")
    apart = group([{"CPU": 1}] * 2, "PACK")
    assert len(set(places(apart))) == 2
    assert not together.wait(0)
    ray.remove_placement_group(one_each)
    ray.remove_placement_group(apart)
    assert len(set(places(together))) == 1


class Rank:
    def environment(self, *names):
        return tuple(os.environ[name] for name in names)

    def listen(self):
        self.listener = socket.create_server(self._meeting_point())

    def reach(self):
        with socket.create_connection(self._meeting_point(), timeout=WAIT_S):
            return True

    def _meeting_point(self):
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def test_ranks_on_two_machines_know_their_places_and_meet_at_the_first(ray, group, nodes):
    bundles = [{"CPU": 1, name: 1} for name in "bc"]
    at = group(bundles, "STRICT_SPREAD")
    with ray.Group(Rank, 2, placement_group=at, timeout=WAIT_S) as ranks:
        names = ("RANK", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
        assert ranks.call("environment", *names) == [
            ("0", "2", "0", "0", "1", HOSTS["b"]),
            ("1", "2", "1", "0", "1", HOSTS["b"]),
        ]
        ports = ranks.call("environment", "MASTER_PORT")
        assert ports[0] == ports[1]
        ray.get(ranks.rank(0).listen.remote(), timeout=WAIT_S)
        assert ray.get(ranks.rank(1).reach.remote(), timeout=WAIT_S)


@nanoray.remote(num_cpus=0)
class Maker:
    def make(self, number):
        return np.full(50 * MB // 8, number, np.int64)


@nanoray.remote(num_cpus=0)
def look(array):
    """Return the first number, whether it may be written, and what it is mapped from."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return int(array[-1]), array.flags.writeable, line.split()[5]
    raise AssertionError("an array lies in a mapping")


def arenas(process):
    """Return the inodes of the arenas that a machine's daemon has open."""
    links = Path(f"/proc/{process.pid}/fd").iterdir()
    targets = {os.stat(link).st_ino: os.readlink(link) for link in links if os.path.exists(link)}
    return {inode for inode, target in targets.items() if "memfd:nanoray" in target}


def test_an_array_read_on_all_machines_without_a_copy_is_freed_on_all(ray, machines, nodes):
    before = {name: arenas(process) for name, process in machines.processes.items()}
    maker = Maker.options(**on(nodes[1])).remote()
    for number in range(4):
        ref = maker.make.remote(number)
        looks = [look.options(**on(there)).remote(ref) for there in nodes for _ in range(2)]
        seen = ray.get(looks, timeout=WAIT_S)
        assert seen == [(number, False, "/memfd:nanoray")] * len(looks)
        del ref, looks
    for name, process in machines.processes.items():
        # An arena holds one such array: were they kept, there would be four.
        assert len(arenas(process) - before[name]) <= 2, name


def test_a_long_get_says_what_it_waits_for(ray, nodes, monkeypatch, caplog):
    monkeypatch.setattr("nanorlhf.nanoray.driver_link._PATIENCE_S", 0.1)
    nap = ray.remote(lambda: time.sleep(0.5)).options(name="nap", **on(nodes[1]))
    assert ray.get(nap.remote(), timeout=WAIT_S) is None
    assert "get has waited 0.1 s for 1 calls: nap() " in caplog.text
    with pytest.raises(ray.GetTimeoutError):
        ray.get(nap.remote(), timeout=0.2)


def test_wait_brings_what_it_calls_ready_unless_told_not_to(ray, machines, nodes):
    maker, daemon = Maker.options(**on(nodes[1])).remote(), machines.processes["b"]
    brought, left = maker.make.remote(1), maker.make.remote(2)
    assert ray.wait([brought], timeout=WAIT_S)[0] == [brought]
    assert ray.wait([left], timeout=WAIT_S, fetch_local=False)[0] == [left]
    daemon.send_signal(signal.SIGSTOP)  # nothing more comes from there
    try:
        assert int(ray.get(brought, timeout=WAIT_S)[0]) == 1
        assert ray.wait([brought, left], num_returns=2, timeout=0.1) == ([brought], [left])
        assert ray.wait([left], timeout=0, fetch_local=False)[0] == [left]
    finally:
        daemon.send_signal(signal.SIGCONT)
    assert ray.wait([left], timeout=WAIT_S)[0] == [left]
    assert int(ray.get(left, timeout=WAIT_S)[0]) == 2


def test_what_a_full_store_moved_to_disk_is_read_on_other_machines(ray, nodes):
    maker = Maker.options(**on(nodes[2])).remote()
    refs = [maker.make.remote(number) for number in range(4)]
    ray.wait(refs, num_returns=len(refs), timeout=WAIT_S, fetch_local=False)
    locations = [row["location"] for row in ray.list_objects() if (row["size_bytes"] or 0) > MB]
    assert Counter(locations) == {"spilled": 3, "memory": 1}
    looks = [look.options(**on(nodes[1])).remote(ref) for ref in refs]
    assert [seen[0] for seen in ray.get(looks, timeout=WAIT_S)] == [0, 1, 2, 3]
    assert [int(array[0]) for array in ray.get(refs, timeout=WAIT_S)] == [0, 1, 2, 3]
