"""A small distributed engine: tasks, actors, shared-memory objects and placement groups.

The names are Ray's: ``init, remote, get, put, wait, kill, placement_group``.
"""

from .actor_pool import ActorPool
from .api import (
    cancel,
    get,
    get_actor,
    get_placement_group,
    init,
    is_initialized,
    kill,
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
from .inventory import (
    available_resources,
    cluster_resources,
    get_gpu_ids,
    get_runtime_context,
    nodes,
)
from .queue import Empty, Full, Queue
from .rank_group import Group, Scatter
from .refs import ObjectRef
from .remote import ActorHandle, method, remote
from .state import (
    list_actors,
    list_nodes,
    list_objects,
    list_tasks,
    list_workers,
    timeline,
)
from .strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

__all__ = [
    "ActorDiedError",
    "ActorHandle",
    "ActorPool",
    "AuthenticationError",
    "Empty",
    "EngineError",
    "Full",
    "GetTimeoutError",
    "Group",
    "InfeasibleError",
    "NanoRayError",
    "NodeAffinitySchedulingStrategy",
    "NotInitializedError",
    "ObjectLostError",
    "ObjectRef",
    "ObjectRefGenerator",
    "PlacementGroup",
    "PlacementGroupRemovedError",
    "PlacementGroupSchedulingStrategy",
    "Queue",
    "Scatter",
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
    "get_placement_group",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "list_actors",
    "list_nodes",
    "list_objects",
    "list_tasks",
    "list_workers",
    "method",
    "nodes",
    "placement_group",
    "put",
    "remote",
    "remove_placement_group",
    "shutdown",
    "timeline",
    "wait",
]
