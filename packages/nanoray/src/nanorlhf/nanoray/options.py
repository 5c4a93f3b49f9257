"""What a task or an actor asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from .environment import Environment, environment
from .group import PlacementGroup
from .resources import Demand, demand


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The keywords of ``remote(...)`` and ``.options(...)``; the names are Ray's."""

    num_cpus: float | None = None
    """CPUs held while running; None is 1 for a task and 0 for an actor."""
    num_gpus: float = 0
    """GPUs; a fraction shares one device. The ids come as CUDA_VISIBLE_DEVICES."""
    resources: Mapping[str, float] | None = None
    """Custom resources, as named in ``init(resources=...)``."""
    num_returns: int = 1
    """Refs that one call returns; with n > 1 the function returns n values."""
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
    runtime_env: Mapping[str, Any] | None = None
    """Variables, working directory and import paths of the process; see :mod:`.environment`."""

    def __post_init__(self) -> None:
        """Check what can be checked without an engine."""
        check_num_returns(self.num_returns)
        for name in ("max_retries", "max_restarts", "max_task_retries"):
            check_repeats(name, getattr(self, name))
        check_retry_exceptions(self.retry_exceptions)
        self._check_lifetime()
        environment(self.runtime_env)
        self._check_bundle_index()
        self.needs(default_cpus=0)

    def environment(self, inherited: Environment) -> Environment:
        """Return the environment of the call, made by a process of environment ``inherited``."""
        return environment(self.runtime_env).over(inherited) if self.runtime_env else inherited

    def needs(self, *, default_cpus: float) -> Demand:
        """Return the resources asked for, in canonical form."""
        cpus = default_cpus if self.num_cpus is None else self.num_cpus
        return demand(num_cpus=cpus, num_gpus=self.num_gpus, resources=self.resources)

    def merged(self, changes: Mapping[str, Any]) -> "Options":
        """Return these options with some changed.

        Raises:
            ValueError: A keyword is unknown or a value is out of range.
        """
        check_names(changes, Options)
        return replace(self, **changes)

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
    """What one call of an actor's method asks for."""

    num_returns: int = 1
    """Refs that the call returns."""
    max_task_retries: int | None = None
    """How often it is run again when the actor died under it and restarts; None is as the actor
    was told."""
    retry_exceptions: bool | Sequence[type[BaseException]] = False
    """What it may raise to be run again too, out of ``max_task_retries``."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_num_returns(self.num_returns)
        if self.max_task_retries is not None:
            check_repeats("max_task_retries", self.max_task_retries)
        check_retry_exceptions(self.retry_exceptions)

    def merged(self, changes: Mapping[str, Any]) -> "CallOptions":
        """Return these options with some changed.

        Raises:
            ValueError: A keyword is unknown or a value is out of range.
        """
        check_names(changes, CallOptions)
        return replace(self, **changes)


def check_names(changes: Mapping[str, Any], kind: type[Options] | type[CallOptions]) -> None:
    """Raise ValueError unless every keyword is a field of ``kind``."""
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r}; known: {', '.join(sorted(known))}")


def check_num_returns(number: int) -> None:
    """Raise ValueError unless a call may have so many results."""
    if number < 0:
        raise ValueError(f"num_returns={number} counts refs; use 0 or more")


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
