import itertools
import random

import pytest

from nanorlhf.nanoray.placement import check_strategy, plan, why_infeasible
from nanorlhf.nanoray.resources import Pool, demand

CPU1, CPU2 = (("CPU", 10_000),), (("CPU", 20_000),)


def node(cpus, gpus=0):
    return Pool({"CPU": cpus * 10_000}, [str(gpu) for gpu in range(gpus)])


def planned(bundles, nodes, strategy, **rest):
    return plan(bundles, dict(enumerate(nodes)), strategy, **rest).places


def all_plans(bundles, nodes):
    """Every assignment that respects capacities, by trying all of them."""
    for places in itertools.product(range(len(nodes)), repeat=len(bundles)):
        used = [0] * len(nodes)
        for bundle, place in zip(bundles, places, strict=True):
            used[place] += dict(bundle)["CPU"]
        if all(u <= n.totals["CPU"] for u, n in zip(used, nodes, strict=True)):
            yield list(places)


@pytest.mark.parametrize("seed", range(30))
def test_every_plan_is_one_of_the_valid_ones(seed):
    draw = random.Random(seed)
    bundles = [draw.choice([CPU1, CPU2]) for _ in range(draw.randint(1, 4))]
    nodes = [node(draw.randint(1, 4)) for _ in range(draw.randint(1, 3))]
    valid = list(all_plans(bundles, nodes))
    for strategy in ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"):
        found = planned(bundles, nodes, strategy)
        ways = [
            way
            for way in valid
            if {"STRICT_PACK": len(set(way)) == 1, "STRICT_SPREAD": len(set(way)) == len(way)}.get(
                strategy, True
            )
        ]
        if found is None:
            assert not ways
            continue
        assert found in ways
        if strategy == "PACK" and any(len(set(way)) == 1 for way in ways):
            assert len(set(found)) == 1


@pytest.mark.parametrize(
    ("strategy", "places"),
    [
        ("PACK", [0, 0, 1]),
        ("SPREAD", [0, 1, 0]),
        ("STRICT_PACK", None),
        ("STRICT_SPREAD", None),
    ],
)
def test_strategies_differ_as_their_names_say(strategy, places):
    assert planned([CPU1] * 3, [node(2), node(2)], strategy) == places


def test_strict_pack_finds_the_one_node_that_holds_all():
    assert planned([CPU2, CPU2], [node(3), node(4)], "STRICT_PACK") == [1, 1]


def test_small_bundles_that_come_first_leave_room_for_a_large_one():
    assert planned([CPU1, CPU1, CPU2], [node(2), node(2)], "SPREAD") == [1, 1, 0]


def test_a_pack_opens_the_machine_with_the_most_room():
    assert planned([CPU1] * 4, [node(1), node(2), node(2)], "PACK") == [1, 1, 2, 2]


def test_fractions_of_two_gpus_do_not_make_a_bundle_on_one():
    half = demand(num_gpus=0.6)
    machine = node(1, gpus=2)
    machine.take(half), machine.take(half)
    assert planned([demand(num_gpus=0.8)], [machine], "PACK") is None
    assert planned([demand(num_gpus=0.4)] * 2, [machine], "PACK") == [0, 0]


def test_bundles_that_stay_count_for_those_that_move():
    machines = [node(4), node(4), node(4)]
    assert planned([CPU1], machines, "STRICT_SPREAD", settled=[0, 1]) == [2]
    assert planned([CPU1], machines, "STRICT_PACK", settled=[1]) == [1]
    assert planned([CPU1], machines, "PACK", settled=[1]) == [1]
    assert planned([CPU1], machines, "SPREAD", settled=[0, 1]) == [2]


def test_a_search_without_end_gives_up_and_does_not_call_it_impossible():
    sizes = [demand(num_cpus=cpus) for cpus in (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43)]
    total = sum(amount for size in sizes for _, amount in size)
    machines = {index: Pool({"CPU": total // 6 + 1}) for index in range(6)}
    found = plan(sizes, machines, "SPREAD")
    assert found.places is None
    assert not found.is_proven
    assert why_infeasible(sizes, [pool.totals for pool in machines.values()], "SPREAD") is None


def test_the_reason_names_nodes_or_amounts():
    assert "needs 2 nodes" in why_infeasible([CPU1] * 2, [node(4).totals], "STRICT_SPREAD")
    assert "do not fit" in why_infeasible([CPU2], [node(1).totals], "PACK")
    assert why_infeasible([CPU1], [node(1).totals], "PACK") is None


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="strategy='pack' is unknown"):
        check_strategy("pack")
