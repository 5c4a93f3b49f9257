"""Where calls may run, as their caller says it, and whether they can ever run there."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .environment import Environment
from .errors import InfeasibleError
from .options import Options
from .placement import Strategy, check_strategy, why_infeasible
from .resources import Demand, bundle_demand, shortage
from .scheduler import Request
from .strategies import NodeAffinitySchedulingStrategy

Rooms = Sequence[Mapping[str, int]]
"""What each of several machines or bundles has in total."""


class Places:
    """Finds the place of calls and placement groups, or refuses at once what can never run.

    Args:
        ask: Asks the engine; ``ask(verb, *fields)``.
        totals: The resources of each machine, as far as this process knows.
        environment: What calls of this process inherit.
    """

    def __init__(self, ask: Callable[..., Any], totals: Rooms, environment: Environment) -> None:
        self._ask, self._totals, self._environment = ask, totals, environment

    def find(self, options: Options, name: str, *, default_cpus: float) -> dict[str, Any]:
        """Return where a call may run, as fields of a ``Spec``.

        Raises:
            InfeasibleError: It can never run there.
            ValueError: A folder of its environment does not exist.
        """
        needs = options.needs(default_cpus=default_cpus)
        group, affinity = options.placement_group, options.affinity
        if affinity is not None:
            where = f"node {affinity.node_id}"
            reason = self._why_not_there(needs, affinity)
        elif group is None:
            where = "this node" if len(self._totals) == 1 else "any node"
            reason = self._why_never(lambda totals: lack(needs, totals))
        else:
            where = f"its placement group {group.bundles}"
            reason = lack(needs, rooms_of(options))
        if reason is not None:
            raise InfeasibleError(
                f"{name} can never run on {where}: {reason}; ask for less or raise init()"
            )
        return {
            "needs": needs,
            "group": 0 if group is None else group.id,
            "bundle": options.placement_group_bundle_index,
            "sees_gpus": options.sees_gpus,
            "is_spread": options.scheduling_strategy == "SPREAD",
            "node": "" if affinity is None else affinity.node_id,
            "is_soft": affinity is not None and affinity.soft,
            "env": tuple(self.environment_of(options)),
        }

    def bundles(self, bundles: Sequence[Mapping[str, float]], strategy: str) -> list[Demand]:
        """Return what the bundles of a placement group need.

        Raises:
            InfeasibleError: The machines can never hold them.
            ValueError: There are none, one is empty, or the strategy is unknown.
        """
        needs = checked_bundles(bundles, strategy)
        kind: Strategy = strategy  # type: ignore[assignment]  # checked above
        reason = self._why_never(lambda totals: why_infeasible(needs, totals, kind))
        if reason is not None:
            raise InfeasibleError(f"placement group: {reason}; ask for less or raise init()")
        return needs

    def environment_of(self, options: Options) -> Environment:
        """Return what a call finds around it.

        Raises:
            ValueError: A folder of it does not exist.
        """
        found = options.environment(self._environment)
        found.check_folders()
        return found

    def _why_never(self, reason: Callable[[Rooms], str | None]) -> str | None:
        """Return why the machines can never hold something, looking again at which there are."""
        if reason(self._totals) is None:
            return None
        self._totals = self._ask("totals")
        return reason(self._totals)

    def _why_not_there(self, needs: Demand, affinity: NodeAffinitySchedulingStrategy) -> str | None:
        """Return why a machine, or any when the wish is soft, can never hold a call."""
        request = Request(0, needs, node=affinity.node_id, is_soft=affinity.soft)
        reason: str | None = self._ask("feasible", *request)
        return reason


def checked_bundles(bundles: Sequence[Mapping[str, float]], strategy: str) -> list[Demand]:
    """Return what bundles need, each something, after a look at the strategy's name."""
    check_strategy(strategy)
    needs = [bundle_demand(bundle) for bundle in bundles]
    if not needs or not all(needs):
        raise ValueError(f"bundles={list(bundles)} must each ask for something; drop empty ones")
    return needs


def lack(needs: Demand, rooms: Rooms) -> str | None:
    """Return why none of the rooms can ever hold ``needs``, or None when one can."""
    reasons = [shortage(needs, room) for room in rooms]
    if None in reasons:
        return None
    return reasons[0] if reasons else "there is none"


def rooms_of(options: Options) -> list[Mapping[str, int]]:
    """Return the bundles that a call in a placement group may run in, as totals."""
    group = options.placement_group
    assert group is not None, "only calls in a group have bundles"
    index = options.placement_group_bundle_index
    chosen = group.bundles if index < 0 else (group.bundles[index],)
    needs: list[Demand] = [bundle_demand(bundle) for bundle in chosen]
    return [dict(bundle) for bundle in needs]
