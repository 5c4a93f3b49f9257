import time

import pytest

WAIT_S = 30


def test_a_group_reserves_and_returns(ray):
    group = ray.placement_group([{"CPU": 1}, {"CPU": 1}])
    assert group.wait(WAIT_S)
    assert ray.get(group.ready(), timeout=WAIT_S) is None
    assert ray.available_resources()["CPU"] == 0
    ray.remove_placement_group(group)
    assert ray.available_resources()["CPU"] == 2
    ray.remove_placement_group(group)


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK"])
def test_one_node_serves_three_strategies(ray, strategy):
    group = ray.placement_group([{"CPU": 1}, {"license": 1}], strategy=strategy)
    assert group.wait(WAIT_S)
    ray.remove_placement_group(group)


def test_what_can_never_be_placed_fails_at_once(ray):
    with pytest.raises(ray.InfeasibleError, match="STRICT_SPREAD needs 2 nodes and there are 1"):
        ray.placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    with pytest.raises(ray.InfeasibleError, match="do not fit"):
        ray.placement_group([{"CPU": 2}, {"CPU": 1}])
    with pytest.raises(ValueError, match="strategy='pack'"):
        ray.placement_group([{"CPU": 1}], strategy="pack")
    with pytest.raises(ValueError, match="must each ask for something"):
        ray.placement_group([{}])


def test_groups_are_all_different(ray):
    first, second = ray.placement_group([{"CPU": 1}]), ray.placement_group([{"CPU": 1}])
    assert first != second
    for group in (first, second):
        ray.remove_placement_group(group)


def test_a_group_waits_for_its_resources(ray):
    first = ray.placement_group([{"CPU": 2}])
    second = ray.placement_group([{"CPU": 1}])
    assert first.wait(WAIT_S)
    assert not second.wait(0.2)
    ref = ray.remote(lambda: 5).options(placement_group=second).remote()
    ray.remove_placement_group(first)
    assert second.wait(WAIT_S)
    assert ray.get(ref, timeout=WAIT_S) == 5
    ray.remove_placement_group(second)


def test_bundles_bound_what_runs_in_them(ray):
    group = ray.placement_group([{"CPU": 1}, {"CPU": 1}])
    sleep = ray.remote(lambda: time.sleep(20))
    where = {"placement_group": group, "placement_group_bundle_index": 0}
    first = sleep.options(**where).remote()
    second = ray.remote(lambda: 0).options(**where).remote()
    other = ray.remote(lambda: 0).options(placement_group=group).remote()
    assert ray.get(other, timeout=WAIT_S) == 0
    assert ray.wait([second], timeout=0.2) == ([], [second])
    with pytest.raises(ray.InfeasibleError, match="its placement group"):
        sleep.options(num_cpus=2, **where).remote()
    with pytest.raises(ValueError, match="outside the group's 2 bundles"):
        sleep.options(placement_group=group, placement_group_bundle_index=2)
    ray.remove_placement_group(group)
    for ref in (first, second):
        with pytest.raises(ray.PlacementGroupRemovedError, match="was removed"):
            ray.get(ref, timeout=WAIT_S)


def test_a_removed_group_ends_its_actors_and_refuses_new_ones(ray):
    @ray.remote(num_cpus=1)
    class Actor:
        def ok(self):
            return True

    group = ray.placement_group([{"CPU": 1}])
    actor = Actor.options(placement_group=group).remote()
    assert ray.get(actor.ok.remote(), timeout=WAIT_S)
    waiting = Actor.options(placement_group=group).remote()
    pending = waiting.ok.remote()
    ray.remove_placement_group(group)
    late = Actor.options(placement_group=group).remote()
    for ref in (actor.ok.remote(), pending, late.ok.remote()):
        with pytest.raises(ray.ActorDiedError, match=r"placement group was removed|its group"):
            ray.get(ref, timeout=WAIT_S)
    assert ray.available_resources()["CPU"] == 2


def test_waiting_for_a_removed_group_fails(ray):
    first = ray.placement_group([{"CPU": 2}])
    second = ray.placement_group([{"CPU": 2}])
    ready = second.ready()
    ray.remove_placement_group(second)
    with pytest.raises(ray.PlacementGroupRemovedError):
        ray.get(ready, timeout=WAIT_S)
    ray.remove_placement_group(first)
