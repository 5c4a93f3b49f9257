"""Which node each bundle of a placement group goes to: a pure function.

====================  =====================================================
PACK                  on as few nodes as possible
SPREAD                on as many nodes as possible
STRICT_PACK           all on one node, or not at all
STRICT_SPREAD         each on a node of its own, or not at all
====================  =====================================================
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from .resources import Demand, readable

Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


def check_strategy(strategy: str) -> None:
    """Raise ValueError unless ``strategy`` is one of the four."""
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy={strategy!r} is unknown; use one of {get_args(Strategy)}")


def plan(
    bundles: Sequence[Demand], nodes: Sequence[Mapping[str, int]], strategy: Strategy
) -> list[int] | None:
    """Return the node index of each bundle, or None when they do not fit.

    Args:
        bundles: What each bundle needs.
        nodes: What each node has free (or in total, to ask whether it ever fits).
        strategy: See the table above.

    First fit in the order given; O(bundles x nodes).

    >>> one_cpu, node = (("CPU", 10000),), {"CPU": 20000}
    >>> plan([one_cpu] * 3, [node, node], "PACK")
    [0, 0, 1]
    >>> plan([one_cpu] * 3, [node, node], "SPREAD")
    [0, 1, 0]
    >>> plan([one_cpu] * 3, [node, node], "STRICT_SPREAD") is None
    True
    """
    free = [dict(node) for node in nodes]
    if strategy == "STRICT_PACK":
        return _on_one_node(bundles, free)
    counts = [0] * len(free)
    places: list[int] = []
    for bundle in bundles:
        place = _choose(bundle, free, counts, strategy)
        if place is None:
            return None
        _subtract(bundle, free[place])
        counts[place] += 1
        places.append(place)
    return places


def why_infeasible(
    bundles: Sequence[Demand], nodes: Sequence[Mapping[str, int]], strategy: Strategy
) -> str | None:
    """Return why the group can never be placed on empty ``nodes``, or None when it can."""
    if plan(bundles, nodes, strategy) is not None:
        return None
    if strategy == "STRICT_SPREAD" and len(bundles) > len(nodes):
        return f"STRICT_SPREAD needs {len(bundles)} nodes and there are {len(nodes)}"
    wanted = [readable(bundle) for bundle in bundles]
    return f"bundles={wanted} do not fit into {[readable(node.items()) for node in nodes]}"


def _on_one_node(bundles: Sequence[Demand], free: list[dict[str, int]]) -> list[int] | None:
    for index, node in enumerate(free):
        for bundle in bundles:
            if not _fits(bundle, node):
                break
            _subtract(bundle, node)
        else:
            return [index] * len(bundles)
    return None


def _choose(
    bundle: Demand, free: list[dict[str, int]], counts: list[int], strategy: Strategy
) -> int | None:
    """Return the best node for one bundle: the most used one to pack, the least used to spread."""
    fitting = [index for index, node in enumerate(free) if _fits(bundle, node)]
    if strategy == "STRICT_SPREAD":
        fitting = [index for index in fitting if counts[index] == 0]
    sign = -1 if strategy == "PACK" else 1
    return min(fitting, key=lambda index: (sign * counts[index], index), default=None)


def _fits(bundle: Demand, node: Mapping[str, int]) -> bool:
    return all(node.get(name, 0) >= amount for name, amount in bundle)


def _subtract(bundle: Demand, node: dict[str, int]) -> None:
    for name, amount in bundle:
        node[name] -= amount
