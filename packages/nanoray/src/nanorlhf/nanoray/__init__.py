"""A small distributed engine: tasks, actors, shared-memory objects and placement groups.

The names are Ray's: ``init, remote, get, put, wait, kill, placement_group``.
"""

from .api import (
    available_resources,
    cancel,
    cluster_resources,
    get,
    get_actor,
    get_gpu_ids,
    get_runtime_context,
    init,
    is_initialized,
    kill,
    nodes,
    placement_group,
    put,
    remove_placement_group,
    shutdown,
    wait,
)
from .errors import (
    ActorDiedError,
    AuthenticationError,
    EngineError,
    GetTimeoutError,
    InfeasibleError,
    NanoRayError,
    NotInitializedError,
    ObjectLostError,
    PlacementGroupRemovedError,
    SerializationError,
    StoreFullError,
    TaskCancelledError,
    TaskError,
    WorkerCrashedError,
)
from .generator import ObjectRefGenerator
from .group import PlacementGroup
from .refs import ObjectRef
from .remote import ActorHandle, method, remote

__all__ = [
    "ActorDiedError",
    "ActorHandle",
    "AuthenticationError",
    "EngineError",
    "GetTimeoutError",
    "InfeasibleError",
    "NanoRayError",
    "NotInitializedError",
    "ObjectLostError",
    "ObjectRef",
    "ObjectRefGenerator",
    "PlacementGroup",
    "PlacementGroupRemovedError",
    "SerializationError",
    "StoreFullError",
    "TaskCancelledError",
    "TaskError",
    "WorkerCrashedError",
    "available_resources",
    "cancel",
    "cluster_resources",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "placement_group",
    "put",
    "remote",
    "remove_placement_group",
    "shutdown",
    "wait",
]
