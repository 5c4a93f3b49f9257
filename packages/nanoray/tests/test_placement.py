import itertools
import random

import pytest

from nanorlhf.nanoray.placement import check_strategy, plan, why_infeasible

CPU1, CPU2 = (("CPU", 10_000),), (("CPU", 20_000),)


def node(cpus):
    return {"CPU": cpus * 10_000}


def all_plans(bundles, nodes):
    """Every assignment that respects capacities, by trying all of them."""
    for places in itertools.product(range(len(nodes)), repeat=len(bundles)):
        used = [0] * len(nodes)
        for bundle, place in zip(bundles, places, strict=True):
            used[place] += dict(bundle)["CPU"]
        if all(u <= n["CPU"] for u, n in zip(used, nodes, strict=True)):
            yield list(places)


@pytest.mark.parametrize("seed", range(30))
def test_every_plan_is_one_of_the_valid_ones(seed):
    draw = random.Random(seed)
    bundles = [draw.choice([CPU1, CPU2]) for _ in range(draw.randint(1, 4))]
    nodes = [node(draw.randint(1, 4)) for _ in range(draw.randint(1, 3))]
    valid = list(all_plans(bundles, nodes))
    for strategy in ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"):
        found = plan(bundles, nodes, strategy)
        if found is None:
            continue
        assert found in valid
        if strategy == "STRICT_PACK":
            assert len(set(found)) == 1
        if strategy == "STRICT_SPREAD":
            assert len(set(found)) == len(found)


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
    assert plan([CPU1] * 3, [node(2), node(2)], strategy) == places


def test_strict_pack_finds_the_one_node_that_holds_all():
    assert plan([CPU2, CPU2], [node(3), node(4)], "STRICT_PACK") == [1, 1]


def test_the_reason_names_nodes_or_amounts():
    assert "needs 2 nodes" in why_infeasible([CPU1] * 2, [node(4)], "STRICT_SPREAD")
    assert "do not fit" in why_infeasible([CPU2], [node(1)], "PACK")
    assert why_infeasible([CPU1], [node(1)], "PACK") is None


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="strategy='pack' is unknown"):
        check_strategy("pack")
