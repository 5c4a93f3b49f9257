"""What a task or an actor asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

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
    """How often a task is run again when its process dies (never when it raises)."""
    name: str | None = None
    """Actor: the name for ``get_actor``. Task: the name in errors."""
    placement_group: PlacementGroup | None = None
    """Where to run instead of on the node's free resources."""
    placement_group_bundle_index: int = -1
    """Which bundle of the group; -1 is any."""
    runtime_env: Mapping[str, Any] | None = None
    """``{"env_vars": {...}}``: environment variables of the process."""

    def __post_init__(self) -> None:
        """Check what can be checked without an engine."""
        if self.num_returns < 0 or self.max_retries < 0:
            raise ValueError(
                f"num_returns={self.num_returns} and max_retries={self.max_retries} count things; "
                f"neither may be negative"
            )
        unknown = set(self.runtime_env or {}) - {"env_vars"}
        if unknown:
            raise ValueError(f"runtime_env has {sorted(unknown)}; only 'env_vars' is supported")
        for key, text in (self.env or {}).items():
            if not isinstance(key, str) or not isinstance(text, str):
                raise TypeError(f"env_vars has {key!r}: {text!r}; both must be str")
        self._check_bundle_index()
        self.needs(default_cpus=0)

    @property
    def env(self) -> Mapping[str, str]:
        """The environment variables asked for."""
        env: Mapping[str, str] = (self.runtime_env or {}).get("env_vars") or {}
        return env

    def needs(self, *, default_cpus: float) -> Demand:
        """Return the resources asked for, in canonical form."""
        cpus = default_cpus if self.num_cpus is None else self.num_cpus
        return demand(num_cpus=cpus, num_gpus=self.num_gpus, resources=self.resources)

    def merged(self, changes: Mapping[str, Any]) -> "Options":
        """Return these options with some changed.

        Raises:
            ValueError: A keyword is unknown or a value is out of range.
        """
        known = {field.name for field in fields(Options)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return replace(self, **changes)

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
