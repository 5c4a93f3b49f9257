"""Where a call may run: the values of the option ``scheduling_strategy``. The names are Ray's."""

from dataclasses import dataclass
from typing import Literal

from .group import PlacementGroup


@dataclass(frozen=True, slots=True)
class NodeAffinitySchedulingStrategy:
    """Run on one machine."""

    node_id: str
    """Its ``NodeID`` in ``nodes()``, or what ``get_runtime_context().get_node_id()`` says there."""
    soft: bool = False
    """Whether to run elsewhere when the machine is gone or can never hold the call. While it is
    only busy the call waits for it."""


@dataclass(frozen=True, slots=True)
class PlacementGroupSchedulingStrategy:
    """Run in a placement group: the options ``placement_group`` and its bundle index in one."""

    placement_group: PlacementGroup
    placement_group_bundle_index: int = -1
    """Which bundle; -1 is any."""


SchedulingStrategy = (
    Literal["DEFAULT", "SPREAD"] | NodeAffinitySchedulingStrategy | PlacementGroupSchedulingStrategy
)


def check_scheduling_strategy(strategy: object) -> None:
    """Raise ValueError or TypeError unless this says where to run."""
    kinds = (NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy)
    if isinstance(strategy, str):
        if strategy not in ("DEFAULT", "SPREAD"):
            raise ValueError(
                f"scheduling_strategy={strategy!r} is unknown; use 'DEFAULT', 'SPREAD', "
                f"{kinds[0].__name__} or {kinds[1].__name__}"
            )
    elif not isinstance(strategy, kinds):
        raise TypeError(f"scheduling_strategy={strategy!r} is neither a str nor a strategy")
    elif isinstance(strategy, NodeAffinitySchedulingStrategy) and not strategy.node_id:
        raise ValueError("node_id='' names no node; take one from nodes()")
