"""Several machines: a head and agents as daemons on separate loopback addresses."""

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

import nanorlhf.nanoray as nanoray
from nanorlhf.nanoray.address import Address
from nanorlhf.nanoray.channel import Channel
from nanorlhf.nanoray.dial import call
from nanorlhf.nanoray.token import load_token, obtain_token

WAIT_S = 60


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


@pytest.mark.slow
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
    def num_files():
        daemon = parent_of(os.getppid())
        links = [os.readlink(entry) for entry in Path(f"/proc/{daemon}/fd").iterdir()]
        return sum("memfd:nanoray" in link for link in links)

    # Two descriptors an arena, and a few empty arenas are kept: 30 copies would need 15 of them.
    assert two.get(num_files.remote(), timeout=WAIT_S) <= 10


def test_an_object_of_an_agent_is_read_by_the_driver_and_by_the_head(two):
    make = on(two, "b")(lambda: np.arange(1 << 20))
    ref = make.remote()
    total = on(two, "a")(lambda x: int(x.sum()))
    expected = (1 << 20) * ((1 << 20) - 1) // 2
    assert two.get(total.remote(ref), timeout=WAIT_S) == expected
    assert int(two.get(ref, timeout=WAIT_S).sum()) == expected


def test_a_wait_for_what_is_lost_on_its_way_ends(two, cluster):
    ref = on(two, "b")(lambda: np.ones(1 << 20)).remote()
    assert two.wait([ref], timeout=WAIT_S, fetch_local=False)[0] == [ref]
    cluster.processes["b"].send_signal(signal.SIGSTOP)
    assert two.wait([ref], timeout=0.1) == ([], [ref])
    cluster.processes["b"].kill()
    assert two.wait([ref]) == ([ref], [])
    with pytest.raises(two.ObjectLostError):
        two.get(ref, timeout=WAIT_S)


def test_an_actor_elsewhere_gets_its_calls_in_order_though_some_arguments_must_travel(two):
    @on(two, "b")
    class Log:
        def __init__(self, first):
            self.seen = [len(first)]

        def add(self, x):
            self.seen.append(len(x))

        def get(self):
            return self.seen

    sizes = [1 << 20, 10, 2 << 20, 20, 20, 1 << 19]
    log = Log.remote(two.put(np.zeros(1 << 18)))
    for size in sizes:
        log.add.remote(two.put(np.zeros(size, np.uint8)) if size > 100 else bytes(size))
    assert two.get(log.get.remote(), timeout=WAIT_S) == [1 << 18, *sizes]


def test_large_arguments_given_by_value_travel_too(two):
    array = np.arange(1 << 18)
    size = on(two, "b")(lambda x, *, y: (int(x.sum()), len(y)))
    got = two.get(size.remote(array, y=b"z" * (1 << 20)), timeout=WAIT_S)
    assert got == (int(array.sum()), 1 << 20)


@pytest.mark.slow
def test_items_of_a_generator_elsewhere_arrive_while_it_runs(two):
    @on(two, "b", num_returns="streaming")
    def blocks(n):
        for number in range(n):
            yield np.full(1 << 18, number)

    items = [two.get(ref, timeout=WAIT_S) for ref in blocks.remote(4)]
    assert [(int(item[0]), int(item[-1])) for item in items] == [(n, n) for n in range(4)]


def test_a_group_spreads_over_the_machines_and_packs_onto_one(two):
    def places(group, cpus):
        return {
            two.get(
                two.remote(num_cpus=cpus)(os.getppid)
                .options(placement_group=group, placement_group_bundle_index=index)
                .remote(),
                timeout=WAIT_S,
            )
            for index in range(2)
        }

    spread = two.placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    assert len(places(spread, 1)) == 2
    two.remove_placement_group(spread)
    packed = two.placement_group([{"CPU": 0.5}] * 2, strategy="STRICT_PACK")
    assert len(places(packed, 0.5)) == 1
    with pytest.raises(two.InfeasibleError, match="needs 3 nodes and there are 2"):
        two.placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")


def test_what_no_machine_can_hold_is_refused_until_one_joins_that_can(cluster):
    cluster.start("a", "127.0.0.1", resource="a")
    ray = cluster.attach()
    task = on(ray, "c")(lambda: 1)
    with pytest.raises(ray.InfeasibleError, match="c=1 is asked for and 0 exist"):
        task.remote()
    cluster.start("c", "127.0.0.3", resource="c")
    assert ray.get(task.remote(), timeout=WAIT_S) == 1


def test_prints_of_another_machine_reach_the_driver(two, capfd, until):
    two.get(on(two, "b")(lambda: os.write(1, b"hello from afar\n")).remote(), timeout=WAIT_S)
    assert until(lambda: "hello from afar" in capfd.readouterr().out)


def test_a_machine_with_another_token_is_turned_away(cluster, tmp_path):
    cluster.start("a", "127.0.0.1")
    (tmp_path / "token").unlink()
    obtain_token(tmp_path / "token")
    words = cluster.command("b", "127.0.0.2")
    done = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 1
    assert "the peer has another token" in done.stderr
    ray = cluster.attach()
    assert len(ray.nodes()) == 1


def test_a_driver_attaches_to_an_agent_as_well_as_to_the_head(cluster):
    cluster.start("a", "127.0.0.1", resource="a")
    cluster.start("b", "127.0.0.2", resource="b")
    ray = cluster.attach("b")
    array = np.random.default_rng(0).integers(0, 256, 8 << 20, np.uint8)
    here, there = (on(ray, r)(lambda x: x).remote(ray.put(array)) for r in "ba")
    assert np.array_equal(ray.get(here, timeout=WAIT_S), array)
    assert np.array_equal(ray.get(there, timeout=WAIT_S), array)
    cluster.processes["b"].kill()
    with pytest.raises(ray.EngineError, match="hung up"):
        ray.get(on(ray, "a")(signal.pause).remote(), timeout=WAIT_S)


def test_a_cluster_over_tls(cluster, make_certificate):
    cluster.start("a", "127.0.0.1", resource="a", tls=make_certificate("ours"))
    cluster.start("b", "127.0.0.2", resource="b", tls=make_certificate("ours"))
    ray = cluster.attach()
    array = np.random.default_rng(0).integers(0, 256, 8 << 20, np.uint8)
    back = on(ray, "b")(lambda x: x[::-1].copy()).remote(ray.put(array))
    assert np.array_equal(ray.get(back, timeout=WAIT_S)[::-1], array)


def test_a_machine_with_another_python_is_refused_and_told_why(cluster, request):
    cluster.start("a", "127.0.0.1")
    token = load_token(cluster.root / "token")
    guest = call(Address("127.0.0.1", cluster.port), "agent", token)
    guest.sock.setblocking(False)
    channel = Channel(guest.sock, guest.session, rest=guest.rest)
    request.addfinalizer(channel.close)
    channel.queue(("join", (1, 3, 10), ("what it says of itself, in its own way",)))
    channel.flush()
    messages = []
    while not any(message[0] == "stop" for message in messages):
        messages += channel.receive(WAIT_S)
    assert "under Python 3.10; this cluster speaks" in messages[-1][1]
    assert len(cluster.attach().nodes()) == 1


def test_joining_says_what_is_wrong():
    with pytest.raises(ValueError, match="give them to nanoray start"):
        nanoray.init(address="nano://127.0.0.1:1", num_cpus=1)
    with pytest.raises(ValueError, match="object_store_memory, object_spilling_directory already"):
        nanoray.init("nano://h:1", object_store_memory=1 << 20, object_spilling_directory="/tmp")
    with pytest.raises(ValueError, match="is not host:port"):
        nanoray.init(address="127.0.0.1")
    with pytest.raises(nanoray.NanoRayError, match="no daemon of the cluster nano://127"):
        nanoray.init(address="nano://127.0.0.1:1")
