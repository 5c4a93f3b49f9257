"""Placement groups, on both engines."""

import signal

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 60


@nanoray.remote
def five():
    return 5


@nanoray.remote
def forever(path):
    path.touch()
    signal.pause()


@nanoray.remote
class Sleeper:
    def hello(self):
        return "hello"

    def forever(self):
        signal.pause()


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK"])
def test_one_machine_serves_three_strategies(engine, strategy):
    group = engine.placement_group([{"CPU": 1}, {"license": 1}], strategy=strategy)
    assert group.wait(WAIT_S)
    assert engine.get(group.ready(), timeout=WAIT_S) is None
    engine.remove_placement_group(group)


def test_a_group_of_one_bundle_can_be_spread_strictly(engine):
    group = engine.placement_group([{"CPU": 2}], strategy="STRICT_SPREAD")
    assert group.wait(WAIT_S)
    engine.remove_placement_group(group)


def test_what_can_never_be_placed_fails_at_once(engine):
    with pytest.raises(nanoray.InfeasibleError, match=r"STRICT_SPREAD needs 2 .* there are 1"):
        engine.placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    with pytest.raises(nanoray.InfeasibleError, match="do not fit"):
        engine.placement_group([{"CPU": 2}, {"CPU": 1}])
    with pytest.raises(ValueError, match="strategy='pack'"):
        engine.placement_group([{"CPU": 1}], strategy="pack")
    with pytest.raises(ValueError, match="must each ask for something"):
        engine.placement_group([{}])


def test_groups_are_all_different(engine):
    groups = [engine.placement_group([{"CPU": 1}]) for _ in range(2)]
    assert groups[0] != groups[1]
    for group in groups:
        engine.remove_placement_group(group)


def test_a_group_waits_for_its_resources_and_so_do_its_calls(engine):
    first = engine.placement_group([{"CPU": 2}])
    assert first.wait(WAIT_S)
    second = engine.placement_group([{"CPU": 1}])
    assert not second.wait(0.2)
    ready = second.ready()
    assert engine.wait([ready], timeout=0) == ([], [ready])
    ref = five.options(placement_group=second).remote()
    engine.remove_placement_group(first)
    assert second.wait(WAIT_S)
    assert engine.get([ref, ready], timeout=WAIT_S) == [5, None]
    engine.remove_placement_group(second)


def test_bundles_bound_what_runs_in_them(engine):
    group = engine.placement_group([{"CPU": 1}, {"CPU": 1}])
    assert group.wait(WAIT_S)
    with pytest.raises(nanoray.InfeasibleError, match="CPU=2"):
        five.options(placement_group=group, num_cpus=2).remote()
    with pytest.raises(ValueError, match="outside the group's 2 bundles"):
        five.options(placement_group=group, placement_group_bundle_index=2)
    one = five.options(placement_group=group, placement_group_bundle_index=1)
    assert engine.get(one.remote(), timeout=WAIT_S) == 5
    engine.remove_placement_group(group)


def test_a_removed_group_takes_what_runs_in_it_along(engine, until, tmp_path):
    group = engine.placement_group([{"CPU": 1}, {"CPU": 1}])
    mark = tmp_path / "begun"
    ref = forever.options(placement_group=group, max_retries=0).remote(mark)
    sleeper = Sleeper.options(placement_group=group, num_cpus=1).remote()
    assert engine.get(sleeper.hello.remote(), timeout=WAIT_S) == "hello"
    assert until(mark.exists)
    stuck = sleeper.forever.remote()
    engine.remove_placement_group(group)
    for lost in (ref, stuck):
        with pytest.raises(nanoray.NanoRayError):
            engine.get(lost, timeout=WAIT_S)
    again = engine.placement_group([{"CPU": 2}])
    assert again.wait(WAIT_S)
    engine.remove_placement_group(again)


def test_calls_into_a_removed_group_raise(engine):
    group = engine.placement_group([{"CPU": 1}])
    assert group.wait(WAIT_S)
    engine.remove_placement_group(group)
    with pytest.raises(nanoray.PlacementGroupRemovedError):
        engine.get(five.options(placement_group=group).remote(), timeout=WAIT_S)
    engine.remove_placement_group(group)


def test_a_group_that_is_removed_while_it_waits_never_gets_ready(engine):
    first = engine.placement_group([{"CPU": 2}])
    assert first.wait(WAIT_S)
    second = engine.placement_group([{"CPU": 1}])
    ready = second.ready()
    engine.remove_placement_group(second)
    with pytest.raises(nanoray.PlacementGroupRemovedError):
        engine.get(ready, timeout=WAIT_S)
    engine.remove_placement_group(first)


def test_a_group_can_be_passed_to_a_task(engine):
    @engine.remote(num_cpus=0)
    def use(box):
        group = box[0]
        assert group.wait(WAIT_S)
        return nanoray.get(five.options(placement_group=group).remote(), timeout=WAIT_S)

    group = engine.placement_group([{"CPU": 1}])
    assert engine.get(use.remote([group]), timeout=WAIT_S) == 5
    engine.remove_placement_group(group)
