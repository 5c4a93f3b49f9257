"""Where calls run, and what is built on groups and actors, on both engines."""

import os

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 60


@nanoray.remote
def node():
    return nanoray.get_runtime_context().get_node_id()


@nanoray.remote(num_cpus=0)
class Doubler:
    def double(self, x):
        return 2 * x


def test_a_call_runs_on_the_machine_it_names(engine):
    here = engine.nodes()[0]["NodeID"]
    strategy = nanoray.NodeAffinitySchedulingStrategy(here)
    assert engine.get(node.options(scheduling_strategy=strategy).remote(), timeout=WAIT_S) == here
    assert engine.get(node.options(scheduling_strategy="SPREAD").remote(), timeout=WAIT_S) == here


def test_a_machine_that_does_not_exist_is_an_error_unless_any_will_do(engine):
    nowhere = "ab" * 28
    hard = nanoray.NodeAffinitySchedulingStrategy(nowhere)
    for remote in (node, Doubler):
        there = remote.options(scheduling_strategy=hard)
        with pytest.raises(nanoray.InfeasibleError, match=f"there is no node {nowhere}"):
            there.remote()
    soft = nanoray.NodeAffinitySchedulingStrategy(nowhere, soft=True)
    assert engine.get(node.options(scheduling_strategy=soft).remote(), timeout=WAIT_S)


def test_a_machine_that_can_never_hold_a_call_refuses_it_at_once(engine):
    here = nanoray.NodeAffinitySchedulingStrategy(engine.nodes()[0]["NodeID"])
    too_large = node.options(scheduling_strategy=here, num_cpus=99)
    with pytest.raises(nanoray.InfeasibleError, match=r"node [0-9a-f]{56}.* CPU=99 is asked for"):
        too_large.remote()


def test_a_group_can_be_named_found_and_given_as_a_strategy(engine):
    group = engine.placement_group([{"CPU": 1}, {"license": 1}], name="by-name")
    found = engine.get_placement_group("by-name")
    assert (found.id, found.bundles, found.strategy) == (group.id, group.bundles, "PACK")
    with pytest.raises(ValueError, match="by-name"):
        engine.placement_group([{"CPU": 1}], name="by-name")
    strategy = nanoray.PlacementGroupSchedulingStrategy(found, placement_group_bundle_index=0)
    assert engine.get(node.options(scheduling_strategy=strategy).remote(), timeout=WAIT_S)
    engine.remove_placement_group(group)
    with pytest.raises(ValueError, match="nobody"):
        engine.get_placement_group("nobody")


def test_a_pool_of_actors_keeps_the_order_of_its_items(engine):
    pool = nanoray.ActorPool([Doubler.remote(), Doubler.remote()])
    assert list(pool.map(lambda actor, x: actor.double.remote(x), range(5))) == [0, 2, 4, 6, 8]


def test_a_queue_passes_items_between_processes(engine):
    @engine.remote
    def fill(queue):
        for number in range(3):
            queue.put(number)

    queue = nanoray.Queue(maxsize=2)
    ref = fill.remote(queue)
    assert [queue.get(timeout=WAIT_S) for _ in range(3)] == [0, 1, 2]
    engine.get(ref, timeout=WAIT_S)
    with pytest.raises(nanoray.Empty):
        queue.get(block=False)
    queue.shutdown()


def test_a_group_of_ranks_is_called_as_one(engine):
    class Rank:
        def __init__(self, start):
            self.rank, self.start = int(os.environ["RANK"]), start

        def add(self, n):
            return self.rank, int(os.environ["WORLD_SIZE"]), self.start + n

    with nanoray.Group(Rank, 2, 10, num_cpus=1, timeout=WAIT_S) as ranks:
        assert ranks.call("add", 1) == [(0, 2, 11), (1, 2, 11)]
        assert ranks.scatter("add", [1, 2]) == [(0, 2, 11), (1, 2, 12)]
