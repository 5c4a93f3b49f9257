"""What a task or an actor asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal

from .environment import Environment, environment
from .group import PlacementGroup
from .resources import GPU, Demand, demand
from .strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
    SchedulingStrategy,
    check_scheduling_strategy,
)

_RAY_BOUND = "_generator_backpressure_num_objects"
"""Ray's name of ``max_buffered_items``, where -1 is no bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The keywords of ``remote(...)`` and ``.options(...)``; the names are Ray's."""

    num_cpus: float | None = None
    """CPUs held while running; None is 1 for a task and 0 for an actor."""
    num_gpus: float | None = None
    """GPUs; a fraction shares one device. The ids come as CUDA_VISIBLE_DEVICES. None is 0, but in a
    bundle named by its index the call is shown all GPUs of the bundle, and holds none of them: Ray
    would show it none, or all of the machine's (its issue 50180)."""
    resources: Mapping[str, float] | None = None
    """Custom resources, as named in ``init(resources=...)``."""
    num_returns: int | Literal["streaming"] | None = None
    """Refs that one call returns; with n > 1 the function returns n values. "streaming" returns
    an ``ObjectRefGenerator``. None is "streaming" for a generator function and 1 for others."""
    max_buffered_items: int | None = None
    """A generator that streams rests while so many of its items wait to be taken."""
    max_concurrency: int | None = None
    """Calls that an actor runs at a time, in threads, or in its event loop if it has ``async def``
    methods. None is 1, or 1000 with an event loop."""
    max_retries: int = 3
    """How often a task is run again when its process dies; -1 is without end."""
    retry_exceptions: bool | Sequence[type[BaseException]] = False
    """What a task may raise to be run again too, out of ``max_retries``: nothing, any Exception
    (True), or instances of these classes."""
    max_restarts: int = 0
    """How often an actor is made again when its process dies, with its first arguments; -1 is
    without end. Its state is lost."""
    max_task_retries: int = 0
    """How often a method call is run again whose actor died under it and restarts; -1 is without
    end."""
    name: str | None = None
    """Actor: the name for ``get_actor``. Task: the name in errors."""
    get_if_exists: bool = False
    """Return the live actor of this name, if there is one, instead of an error."""
    lifetime: Literal["detached"] | None = None
    """None: the actor ends with its last handle. "detached": with ``kill`` or the engine."""
    placement_group: PlacementGroup | None = None
    """Where to run instead of on the node's free resources."""
    placement_group_bundle_index: int = -1
    """Which bundle of the group; -1 is any."""
    scheduling_strategy: SchedulingStrategy = "DEFAULT"
    """Which machine: "DEFAULT" packs up to half a machine and then spreads, "SPREAD" takes the one
    that runs the fewest calls; or a strategy object."""
    runtime_env: Mapping[str, Any] | None = None
    """Variables, working directory and import paths of the process; see :mod:`.environment`."""

    def __post_init__(self) -> None:
        """Check what can be checked without an engine."""
        check_returns(self.num_returns, self.max_buffered_items)
        for name in ("max_retries", "max_restarts", "max_task_retries"):
            check_repeats(name, getattr(self, name))
        check_retry_exceptions(self.retry_exceptions)
        self._check_lifetime()
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ValueError(f"max_concurrency={self.max_concurrency} counts calls; use 1 or more")
        environment(self.runtime_env)
        self._check_strategy()
        self._check_bundle_index()
        self.needs(default_cpus=0)

    def environment(self, inherited: Environment) -> Environment:
        """Return the environment of the call, made by a process of environment ``inherited``."""
        return environment(self.runtime_env).over(inherited) if self.runtime_env else inherited

    def needs(self, *, default_cpus: float) -> Demand:
        """Return the resources asked for, in canonical form."""
        cpus = default_cpus if self.num_cpus is None else self.num_cpus
        return _demand(cpus, self.num_gpus or 0, tuple((self.resources or {}).items()))

    @property
    def affinity(self) -> NodeAffinitySchedulingStrategy | None:
        """The machine asked for."""
        strategy = self.scheduling_strategy
        return strategy if isinstance(strategy, NodeAffinitySchedulingStrategy) else None

    @property
    def sees_gpus(self) -> bool:
        """Whether the call is shown its bundle's GPUs without holding any."""
        group, index = self.placement_group, self.placement_group_bundle_index
        if group is None or index < 0 or self.num_gpus is not None:
            return False
        return group.bundles[index].get(GPU, 0) > 0

    def merged(self, changes: Mapping[str, Any]) -> "Options":
        """Return these options with some changed.

        Raises:
            ValueError: A keyword is unknown or a value is out of range.
        """
        known = known_changes(Options, changes)
        if "scheduling_strategy" in known:  # it says all of where: what was said before is void
            known = {"placement_group": None, "placement_group_bundle_index": -1, **known}
        return replace(self, **known)

    def _check_strategy(self) -> None:
        """Check the strategy; a group in it is as one in ``placement_group``."""
        strategy = self.scheduling_strategy
        check_scheduling_strategy(strategy)
        if strategy != "DEFAULT" and self.placement_group is not None:
            raise ValueError(
                f"scheduling_strategy={strategy!r} and placement_group both say where to run; "
                f"pass one of them"
            )
        if isinstance(strategy, PlacementGroupSchedulingStrategy):
            index = strategy.placement_group_bundle_index
            object.__setattr__(self, "placement_group", strategy.placement_group)
            object.__setattr__(self, "placement_group_bundle_index", index)
            object.__setattr__(self, "scheduling_strategy", "DEFAULT")

    def _check_lifetime(self) -> None:
        if self.lifetime not in (None, "detached"):
            raise ValueError(f"lifetime={self.lifetime!r} is unknown; use None or 'detached'")
        if self.get_if_exists and self.name is None:
            raise ValueError("get_if_exists=True needs name=...: only named actors can be found")

    def _check_bundle_index(self) -> None:
        index, group = self.placement_group_bundle_index, self.placement_group
        if group is None and index != -1:
            raise ValueError(
                f"placement_group_bundle_index={index} needs placement_group; pass the group too"
            )
        if group is not None and not -1 <= index < len(group.bundles):
            raise ValueError(
                f"placement_group_bundle_index={index} is outside the group's "
                f"{len(group.bundles)} bundles; use 0 to {len(group.bundles) - 1}, or -1 for any"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """The keywords of ``method(...)`` and of an actor method's ``.options(...)``."""

    num_returns: int | Literal["streaming"] | None = None
    """Refs that one call returns, as in ``Options``."""
    max_buffered_items: int | None = None
    """A generator that streams rests while so many of its items wait to be taken."""
    max_task_retries: int | None = None
    """How often it is run again when the actor died under it and restarts; None is as the actor
    was told."""
    retry_exceptions: bool | Sequence[type[BaseException]] = False
    """What it may raise to be run again too, out of ``max_task_retries``."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_returns(self.num_returns, self.max_buffered_items)
        if self.max_task_retries is not None:
            check_repeats("max_task_retries", self.max_task_retries)
        check_retry_exceptions(self.retry_exceptions)

    def merged(self, changes: Mapping[str, Any]) -> "CallOptions":
        """Return these options with some changed.

        Raises:
            ValueError: A keyword is unknown or a value is out of range.
        """
        return replace(self, **known_changes(CallOptions, changes))


@lru_cache(256)
def _demand(cpus: float, gpus: float, resources: tuple[tuple[str, float], ...]) -> Demand:
    """Return the canonical form, which is the same for every call of a function."""
    return demand(num_cpus=cpus, num_gpus=gpus, resources=dict(resources))


def known_changes(kind: type, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes by our names, if all are fields of the options ``kind``.

    >>> known_changes(CallOptions, {"_generator_backpressure_num_objects": -1})
    {'max_buffered_items': None}
    """
    changes = dict(changes)
    if _RAY_BOUND in changes:
        bound = changes.pop(_RAY_BOUND)
        changes["max_buffered_items"] = None if bound == -1 else bound
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r}; known: {', '.join(sorted(known))}")
    return changes


def check_returns(num_returns: int | str | None, max_buffered_items: int | None) -> None:
    """Raise ValueError unless a call may have such results."""
    is_number = isinstance(num_returns, int) and num_returns >= 0
    if num_returns is not None and num_returns != "streaming" and not is_number:
        raise ValueError(
            f"num_returns={num_returns!r} is neither a number of refs, 0 or more, nor 'streaming'"
        )
    if max_buffered_items is not None:
        if max_buffered_items < 1:
            raise ValueError(
                f"max_buffered_items={max_buffered_items} would never let an item through; use 1 "
                f"or more, or None for no bound"
            )
        if is_number:
            raise ValueError(
                f"max_buffered_items={max_buffered_items} is for generators that stream, not for "
                f"num_returns={num_returns}; drop one of the two"
            )


def num_refs(num_returns: int | str | None) -> int:
    """Return how many ids a call makes; a stream has one."""
    return num_returns if isinstance(num_returns, int) else 1


def check_repeats(name: str, number: int) -> None:
    """Raise ValueError unless something may be repeated so often."""
    if number < -1:
        raise ValueError(f"{name}={number} counts repetitions; use 0 or more, or -1 for no end")


def check_retry_exceptions(kinds: bool | Sequence[type[BaseException]]) -> None:
    """Raise TypeError unless this says what to retry."""
    is_list = isinstance(kinds, list | tuple)
    if isinstance(kinds, bool) or (is_list and all(_is_exception(kind) for kind in kinds)):
        return
    raise TypeError(f"retry_exceptions={kinds!r} must be True, False or a list of exception types")


def _is_exception(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)
