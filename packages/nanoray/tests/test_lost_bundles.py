"""A machine that had bundles is lost: what was in them, and where the group goes next."""

import os

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 60


@nanoray.remote(num_cpus=0)
class Resident:
    def where(self):
        return nanoray.get_runtime_context().node_id, os.getpid()


@nanoray.remote(num_cpus=0)
def node():
    return nanoray.get_runtime_context().node_id


def test_bundles_of_a_lost_machine_move_to_one_that_joins(cluster, until):
    cluster.start("a", "127.0.0.1", cpus=0)
    cluster.start("b", "127.0.0.2", resource="b")
    cluster.start("c", "127.0.0.3", resource="c")
    ray = cluster.attach()
    group = ray.placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    bundles = [{"placement_group": group, "placement_group_bundle_index": i} for i in range(2)]
    places = [ray.get(node.options(**at).remote(), timeout=WAIT_S) for at in bundles]
    nodes = [row["NodeID"] for row in ray.nodes()]
    assert sorted(places) == sorted(nodes[1:])
    lost, kept = bundles if places[0] == nodes[1] else reversed(bundles)

    phoenix = Resident.options(max_restarts=1, max_task_retries=1, **lost).remote()
    mortal = Resident.options(**lost).remote()
    neighbour = Resident.options(**kept).remote()
    before = ray.get([a.where.remote() for a in (phoenix, mortal, neighbour)], timeout=WAIT_S)
    assert [where for where, _ in before] == [nodes[1], nodes[1], nodes[2]]

    cluster.processes["b"].kill()
    with pytest.raises(ray.ActorDiedError, match="machine 1"):
        ray.get(mortal.where.remote(), timeout=WAIT_S)
    ready = group.ready()
    again = phoenix.where.remote()
    in_lost = node.options(**lost).remote()
    assert not group.wait(0)
    assert ray.wait([ready, again, in_lost], timeout=0)[0] == []
    assert ray.get(node.options(**kept).remote(), timeout=WAIT_S) == nodes[2]

    cluster.start("d", "127.0.0.4")
    assert ray.get(ready, timeout=WAIT_S) is None
    new = ray.nodes()[-1]["NodeID"]
    assert ray.get(again, timeout=WAIT_S)[0] == new
    assert ray.get(in_lost, timeout=WAIT_S) == new
    assert ray.get(neighbour.where.remote(), timeout=WAIT_S) == before[2]
    ray.remove_placement_group(group)
    assert until(lambda: ray.available_resources()["CPU"] == 2)
