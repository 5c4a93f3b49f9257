"""Connecting to Ray: in the driver when asked, in Ray's own workers by itself."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import NanoRayError
from .ray_engine import RayEngine
from .ray_request import native_environment

_NAMESPACE = "nanoray"
"""Of named actors, for all drivers of a cluster; Ray's own default is another for each."""

_OUR_RULES = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers run this interpreter, not `uv run` in a copy
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # without num_gpus, CUDA_VISIBLE_DEVICES stays
}
"""Variables of a Ray that is started here; the first is read when Ray is imported."""


def start_ray(
    address: str | None,
    *,
    amounts: Mapping[str, Any],
    preload: Sequence[str] = (),
    runtime_env: Mapping[str, Any] | None = None,
    log_to_driver: bool = True,
) -> RayEngine:
    """Connect to Ray, or start one of this machine; return the driver's engine.

    A process that is connected to Ray already stays so, also after ``shutdown``.

    Args:
        address: "auto" or an address of a cluster that runs; None starts one of this machine.
        amounts: ``num_cpus``, ``num_gpus``, ``resources``, ``object_store_memory`` and
            ``object_spilling_directory`` of the new one; None is Ray's choice.
        preload: Modules that every process imports when it starts.
        runtime_env: As for ``init``; Ray copies the working directory to all machines.
        log_to_driver: Show what tasks and actors print.

    Raises:
        NanoRayError: Ray is not installed, or cannot be reached.
        ValueError: Something is asked for that was decided before.
    """
    if address is None:
        for name, value in _OUR_RULES.items():
            os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise NanoRayError(
            'engine="ray" needs Ray, which cannot be imported; pip install "nanoray[ray]"'
        ) from None
    asked = {name: amount for name, amount in amounts.items() if amount is not None}
    environment = _environment(preload, runtime_env)
    if ray.is_initialized():
        _refuse("this process is connected to Ray", {**asked, **environment})
        return RayEngine(is_driver=True, owns_ray=False)
    if address is not None:
        _refuse(f"address={address!r} is a cluster that runs", asked)
    else:
        asked["include_dashboard"] = False
    try:
        ray.init(
            address or "local",
            namespace=_NAMESPACE,
            runtime_env=environment,
            log_to_driver=log_to_driver,
            **asked,
        )
    except ConnectionError as error:
        raise NanoRayError(
            f"address={address!r}: {error}; start one with ray start --head, or drop the address"
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


def _environment(preload: Sequence[str], runtime_env: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what all of Ray's processes for this program find around them."""
    parts = dict(runtime_env or {})
    folder = parts.pop("working_dir", None)
    native = native_environment(parts) if parts else {}
    if folder is not None:
        native["working_dir"] = str(folder)
    modules = [preload] if isinstance(preload, str) else list(preload)
    if modules:

        def import_all() -> None:
            for name in modules:
                importlib.import_module(name)

        native["worker_process_setup_hook"] = import_all
    return native


def _refuse(why: str, asked: Mapping[str, Any]) -> None:
    """Raise ValueError when something is asked for that can no longer be chosen."""
    if asked:
        raise ValueError(f"{why}, so {', '.join(asked)} cannot be chosen here; drop it")
