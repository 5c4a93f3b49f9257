"""Connecting to Ray: in the driver when asked, in Ray's own workers by itself."""

import sys
from collections.abc import Mapping
from typing import Any

from .errors import NanoRayError
from .ray_engine import RayEngine


def start_ray(
    address: str | None,
    *,
    num_cpus: float | None,
    num_gpus: int | None,
    resources: Mapping[str, float] | None,
) -> RayEngine:
    """Connect to Ray, or start one of this machine; return the driver's engine.

    Args:
        address: "auto" or an address of a cluster that runs; None starts one of this machine, or
            joins what this process is connected to.
        num_cpus: CPUs of the new one; None is all.
        num_gpus: GPUs of the new one; None is all.
        resources: Custom resources of the new one.

    Raises:
        NanoRayError: Ray is not installed, or cannot be reached.
        ValueError: Amounts are given for a cluster that has its own.
    """
    try:
        import ray
    except ImportError:
        raise NanoRayError(
            'engine="ray" needs Ray, which cannot be imported; pip install "nanoray[ray]"'
        ) from None
    if ray.is_initialized():
        return RayEngine(is_driver=True, owns_ray=False)
    amounts = {"num_cpus": num_cpus, "num_gpus": num_gpus, "resources": dict(resources or {})}
    given = {name: amount for name, amount in amounts.items() if amount}
    if address is not None and given:
        raise ValueError(f"address={address!r} has its own resources; drop {', '.join(given)}")
    try:
        ray.init(address or "local", include_dashboard=False, **given)
    except ConnectionError as error:
        raise NanoRayError(
            f"address={address!r}: no Ray there: {error}; ray start --head"
        ) from None
    return RayEngine(is_driver=True, owns_ray=True)


def engine_of_worker() -> RayEngine | None:
    """Return an engine when this process is one of Ray's workers, else None."""
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    if ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return None
    return RayEngine(is_driver=False, owns_ray=False)
