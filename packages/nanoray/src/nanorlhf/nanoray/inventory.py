"""What the machines of the engine have, and what the calling code was given of it."""

from typing import Any

from .backend import Context
from .session import current


def nodes() -> list[dict[str, Any]]:
    """Return a row for each machine of the cluster, those that were lost included.

    Keys as in Ray: NodeID, Alive, Resources, NodeManagerAddress, NodeManagerHostname and
    NodeManagerPort (0 when the engine is this process's own and listens nowhere).
    """
    return current().nodes()


def cluster_resources() -> dict[str, float]:
    """Return the resources of all machines by name, ``{"CPU": 8.0, "license": 2.0}``."""
    return current().resources(available=False)


def get_gpu_ids() -> list[int] | list[str]:
    """Return the ids of the GPUs given to this process; numbers, unless they are UUIDs.

    They are what CUDA_VISIBLE_DEVICES holds: the first of them is "cuda:0" here.
    """
    ids = list(current().context().gpu_ids)
    return [int(name) for name in ids] if all(name.isdecimal() for name in ids) else ids


def available_resources() -> dict[str, float]:
    """Return the resources that are free now, those of placement groups not included."""
    return current().resources(available=True)


def get_runtime_context() -> Context:
    """Return where the calling code runs: in the driver, a task or an actor, on which GPUs."""
    return current().context()
