"""What a call asks for, in Ray's keywords; and whether the cluster can ever give it."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .environment import environment
from .errors import InfeasibleError
from .group import PlacementGroup
from .options import CallOptions, Options
from .placement import why_infeasible
from .places import checked_bundles, lack, rooms_of
from .ray_holds import binary_of
from .resources import GPU, UNIT, Demand
from .strategies import NodeAffinitySchedulingStrategy

Amounts = Mapping[str, float]


def task_keywords(options: Options) -> dict[str, Any]:
    """Return the keywords of ``RemoteFunction.options`` in Ray."""
    return {
        **_place(options, default_cpus=1),
        **_returns(options),
        "max_retries": options.max_retries,
        "retry_exceptions": _kinds(options.retry_exceptions),
        "name": options.name or "",
    }


def actor_keywords(options: Options) -> dict[str, Any]:
    """Return the keywords of ``ActorClass.options`` in Ray."""
    return {
        **_place(options, default_cpus=0),
        "max_restarts": options.max_restarts,
        "max_task_retries": options.max_task_retries,
        "name": options.name,
        "get_if_exists": options.get_if_exists,
        "lifetime": options.lifetime,
        **({} if options.max_concurrency is None else {"max_concurrency": options.max_concurrency}),
    }


def call_keywords(options: CallOptions) -> dict[str, Any]:
    """Return the keywords of ``ActorMethod.options`` in Ray."""
    keywords = {**_returns(options), "retry_exceptions": _kinds(options.retry_exceptions)}
    if options.max_task_retries is not None:
        keywords["max_task_retries"] = options.max_task_retries
    return keywords


def native_group(group_id: int, bundles: Sequence[Amounts] = ()) -> Any:  # noqa: ANN401  untyped
    """Return Ray's handle of a placement group."""
    from ray import PlacementGroupID  # an extra: only whoever runs on Ray has it
    from ray.util.placement_group import PlacementGroup as Theirs

    return Theirs(PlacementGroupID(binary_of(group_id)), list(bundles) or None)


def native_environment(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``runtime_env`` as Ray wants it; import paths become a variable, as for us.

    Raises:
        ValueError: It has a working directory, which Ray copies, and only for a whole program.
    """
    asked = environment(runtime_env)
    if asked.working_dir:
        raise ValueError(
            f"working_dir={asked.working_dir!r} is not for single calls on Ray, which copies "
            f"folders; pass it to init(runtime_env=...)"
        )
    variables = dict(asked.env_vars)
    if asked.py_paths:
        first = variables.get("PYTHONPATH", "${PYTHONPATH}")
        variables["PYTHONPATH"] = os.pathsep.join((*asked.py_paths, first))
    return {"env_vars": variables}


class Feasibility:
    """Refuses what no machine of the cluster can ever hold; Ray would let it wait for ever.

    Args:
        machines: Returns what each machine that is up has in total, by its node id. Asked again
            only when a request does not fit what it said before, for machines may have joined.
    """

    def __init__(self, machines: Callable[[], Mapping[str, Amounts]]) -> None:
        self._machines = machines
        self._totals: dict[str, Mapping[str, int]] = {}

    def check(self, options: Options, name: str, *, default_cpus: float) -> None:
        """Raise InfeasibleError when ``name`` can never run."""
        needs = options.needs(default_cpus=default_cpus)
        group, affinity = options.placement_group, options.affinity
        if group is not None:
            where = f"its placement group {group.bundles}"
            reason = lack(needs, rooms_of(options))
        elif affinity is not None and not affinity.soft:
            where = f"node {affinity.node_id}"
            reason = self._lack_on(affinity.node_id, needs)
        else:
            where = "a machine of this cluster"
            reason = self._lack_on(None, needs)
        if reason is not None:
            raise InfeasibleError(
                f"{name} can never run on {where}: {reason}; ask for less or add machines"
            )

    def check_group(self, bundles: Sequence[Amounts], strategy: str) -> None:
        """Raise InfeasibleError when the group can never be placed, ValueError when it is none."""
        needs = checked_bundles(bundles, strategy)
        self._look_again()
        totals = list(self._totals.values())
        reason = why_infeasible(needs, totals, strategy)  # type: ignore[arg-type]
        if reason is not None:
            raise InfeasibleError(f"placement group: {reason}; ask for less or add machines")

    def _lack_on(self, node_id: str | None, needs: Demand) -> str | None:
        """Return why a node, or any when that is None, can never hold a call; None if it can."""
        if lack(needs, self._rooms_of(node_id)) is None:
            return None
        self._look_again()
        rooms = self._rooms_of(node_id)
        if not rooms and node_id is not None:
            return f"there is no node {node_id} (any more)"
        return lack(needs, rooms)

    def _rooms_of(self, node_id: str | None) -> list[Mapping[str, int]]:
        return [room for key, room in self._totals.items() if node_id in (None, key)]

    def _look_again(self) -> None:
        self._totals = {
            node_id: {name: round(amount * UNIT) for name, amount in machine.items()}
            for node_id, machine in self._machines().items()
        }


def _place(options: Options, *, default_cpus: float) -> dict[str, Any]:
    """Return the keywords that say where a call runs."""
    keywords: dict[str, Any] = {
        "num_cpus": default_cpus if options.num_cpus is None else options.num_cpus,
        "num_gpus": _gpus(options),
        "resources": dict(options.resources or {}),
    }
    if options.runtime_env:
        keywords["runtime_env"] = native_environment(options.runtime_env)
    if options.placement_group is not None:
        keywords["scheduling_strategy"] = _in_group(
            options.placement_group, options.placement_group_bundle_index
        )
    elif options.affinity is not None:
        keywords["scheduling_strategy"] = _on_node(options.affinity)
    elif options.scheduling_strategy == "SPREAD":
        keywords["scheduling_strategy"] = "SPREAD"
    return keywords


def _gpus(options: Options) -> float:
    """Return the GPUs to hold; where ours only shows a bundle's, Ray shows what is held alone."""
    group, index = options.placement_group, options.placement_group_bundle_index
    if group is not None and options.sees_gpus:
        return group.bundles[index][GPU]
    return options.num_gpus or 0


def _returns(options: Options | CallOptions) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    if options.num_returns is not None:
        keywords["num_returns"] = options.num_returns
    if options.max_buffered_items is not None:
        keywords["_generator_backpressure_num_objects"] = options.max_buffered_items
    return keywords


def _in_group(group: PlacementGroup, index: int) -> object:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(
        native_group(group.id, group.bundles), placement_group_bundle_index=index
    )


def _on_node(affinity: NodeAffinitySchedulingStrategy) -> object:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Theirs

    return Theirs(node_id=affinity.node_id, soft=affinity.soft)


def _kinds(retry: bool | Sequence[type[BaseException]]) -> bool | list[type[BaseException]]:
    return retry if isinstance(retry, bool) else list(retry)
