"""Where calls run, through real workers: strategies, policies, and the GPUs that they see."""

import os

import pytest

import nanorlhf.nanoray as nanoray
from nanorlhf.nanoray.options import Options

WAIT_S = 30


def visible():
    return os.environ.get("CUDA_VISIBLE_DEVICES"), nanoray.get_gpu_ids()


@pytest.fixture
def three_gpus(start, monkeypatch):
    """Start an engine whose process may use the GPUs 3, 5 and 7."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")

    def begin(**options):
        return start(num_cpus=2, **options)

    return begin


def where(ray, **options):
    return ray.get(ray.remote(visible).options(**options).remote(), timeout=WAIT_S)


def test_calls_get_ids_of_the_inherited_list(three_gpus):
    ray = three_gpus()
    assert ray.cluster_resources()["GPU"] == 3
    assert where(ray, num_gpus=1) == ("3", [3])
    assert where(ray, num_gpus=3) == ("3,5,7", [3, 5, 7])
    assert where(ray) == ("3,5,7", [])


def test_fractions_share_one_device(three_gpus):
    ray = three_gpus()

    @ray.remote(num_gpus=0.5)
    class Half:
        def see(self):
            return visible()

    halves = [Half.remote() for _ in range(3)]
    seen = ray.get([half.see.remote() for half in halves], timeout=WAIT_S)
    assert sorted(ids for ids, _ in seen) == ["3", "3", "5"]
    assert where(ray, num_gpus=1) == ("7", [7])


def test_isolated_calls_without_gpus_see_none(three_gpus):
    ray = three_gpus(isolate_gpus=True)
    assert where(ray) == ("", [])
    assert where(ray, num_gpus=1) == ("3", [3])


def test_a_bundle_has_its_own_ids(three_gpus):
    ray = three_gpus(isolate_gpus=True)
    group = ray.placement_group([{"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 2}])
    at = {"placement_group": group}
    assert group.wait(WAIT_S)
    first, second = (
        {**at, "placement_group_bundle_index": 0},
        {
            **at,
            "placement_group_bundle_index": 1,
        },
    )
    ids = [where(ray, num_gpus=1, **first)[0], where(ray, num_gpus=2, **second)[0]]
    assert sorted(",".join(ids).split(",")) == ["3", "5", "7"]
    assert where(ray, **first)[0] == ids[0]
    assert where(ray, **second)[0] == ids[1]
    assert where(ray, num_gpus=0, **second)[0] == ""
    assert where(ray, **at)[0] == ""


def test_a_call_that_is_shown_its_bundles_gpus_does_not_hold_them(three_gpus):
    ray = three_gpus()

    @ray.remote
    class Shown:
        def see(self):
            return visible()

    group = ray.placement_group([{"CPU": 1, "GPU": 1}])
    at = {"placement_group": group, "placement_group_bundle_index": 0}
    shown = [Shown.options(**at).remote() for _ in range(2)]
    seen = ray.get([one.see.remote() for one in shown], timeout=WAIT_S)
    assert seen[0] == seen[1] == where(ray, num_gpus=1, **at)


def test_affinity_to_this_node_runs_and_to_an_unknown_one_fails_at_once(ray):
    here = ray.get_runtime_context
    node_id = ray.get(ray.remote(lambda: here().get_node_id()).remote(), timeout=WAIT_S)
    assert node_id in [row["NodeID"] for row in ray.nodes()]
    there = ray.NodeAffinitySchedulingStrategy(node_id)
    one = ray.remote(lambda: 1)
    assert ray.get(one.options(scheduling_strategy=there).remote(), timeout=WAIT_S) == 1
    gone = ray.NodeAffinitySchedulingStrategy("gone")
    with pytest.raises(ray.InfeasibleError, match="there is no node gone"):
        one.options(scheduling_strategy=gone).remote()
    soft = ray.NodeAffinitySchedulingStrategy("gone", soft=True)
    assert ray.get(one.options(scheduling_strategy=soft).remote(), timeout=WAIT_S) == 1
    with pytest.raises(ray.InfeasibleError, match=f"node {node_id}.*CPU=99"):
        one.options(scheduling_strategy=there, num_cpus=99).remote()


@pytest.mark.parametrize("strategy", ["DEFAULT", "SPREAD"])
def test_named_strategies_run(ray, strategy):
    task = ray.remote(lambda: 1).options(scheduling_strategy=strategy)
    assert ray.get(task.remote(), timeout=WAIT_S) == 1


def test_a_group_strategy_is_the_two_group_options_in_one(ray):
    group = ray.placement_group([{"CPU": 1}, {"CPU": 1}])
    strategy = ray.PlacementGroupSchedulingStrategy(group, 1)
    options = Options(scheduling_strategy=strategy)
    assert (options.placement_group, options.placement_group_bundle_index) == (group, 1)
    assert options.merged({"scheduling_strategy": "SPREAD"}).placement_group is None
    task = ray.remote(lambda: 1).options(scheduling_strategy=strategy)
    assert ray.get(task.remote(), timeout=WAIT_S) == 1
    ray.remove_placement_group(group)


@pytest.mark.parametrize(
    ("strategy", "error", "match"),
    [
        ("spread", ValueError, "scheduling_strategy='spread' is unknown"),
        (3, TypeError, "scheduling_strategy=3"),
        (nanoray.NodeAffinitySchedulingStrategy(""), ValueError, "names no node"),
    ],
)
def test_strategies_that_mean_nothing_are_refused(strategy, error, match):
    with pytest.raises(error, match=match):
        Options(scheduling_strategy=strategy)


def test_two_places_at_once_are_refused(ray):
    group = ray.placement_group([{"CPU": 1}])
    with pytest.raises(ValueError, match="both say where to run"):
        Options(scheduling_strategy="SPREAD", placement_group=group)
    ray.remove_placement_group(group)


def test_a_group_is_found_by_its_name(ray):
    group = ray.placement_group([{"CPU": 1}, {"license": 0.5}], strategy="SPREAD", name="gang")
    found = ray.get_placement_group("gang")
    assert found == group
    assert found.bundle_specs == [{"CPU": 1}, {"license": 0.5}]
    assert found.bundle_count == 2
    with pytest.raises(ValueError, match="name='gang' belongs to a placement group"):
        ray.placement_group([{"CPU": 1}], name="gang")
    ray.remove_placement_group(found)
    with pytest.raises(ValueError, match=r"get_placement_group\('gang'\)"):
        ray.get_placement_group("gang")


@pytest.mark.parametrize(("policy", "overtakes"), [("fifo", False), ("default", True)])
def test_a_small_call_overtakes_a_large_one_unless_fifo(start, policy, overtakes):
    ray = start(num_cpus=2, scheduling_policy=policy)

    @ray.remote(num_cpus=1)
    class Holder:
        def ok(self):
            return True

    holder = Holder.remote()
    ray.get(holder.ok.remote(), timeout=WAIT_S)
    task = ray.remote(lambda: 1)
    wide, narrow = task.options(num_cpus=2).remote(), task.remote()
    ready, _ = ray.wait([narrow], timeout=WAIT_S if overtakes else 0.3)
    assert ready == ([narrow] if overtakes else [])
    ray.kill(holder)
    assert ray.get([wide, narrow], timeout=WAIT_S) == [1, 1]


def test_a_call_made_inside_another_starts_before_the_line_under_fifo(start):
    ray = start(num_cpus=2, scheduling_policy="fifo", resources={"tool": 1})
    inner = ray.remote(lambda: 1)

    @ray.remote(num_cpus=1, resources={"tool": 1})
    def outer():
        return ray.get(inner.remote())

    refs = [outer.remote() for _ in range(4)]
    assert ray.get(refs, timeout=WAIT_S) == [1] * 4


def test_an_unknown_policy_is_refused(no_engine):
    with pytest.raises(ValueError, match="scheduling_policy='lifo' is unknown"):
        nanoray.init(num_cpus=1, scheduling_policy="lifo")
    assert not nanoray.is_initialized()
