"""Records of the engine: calls, actors and the processes that run them."""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from .messages import Spec
from .value import Value


class WorkerKey(NamedTuple):
    """Processes with equal keys may run each other's tasks."""

    env: tuple[tuple[str, str], ...]
    gpu_ids: tuple[str, ...]


@dataclass(slots=True, eq=False)
class Call:
    """A call from submission to its last result."""

    spec: Spec
    caller: int
    missing: int
    """Arguments that are not ready."""
    pins: tuple[int, ...]
    """Objects kept for it."""
    retries_left: int
    state: Literal["waiting", "queued", "running"] = "waiting"


@dataclass(slots=True, eq=False)
class Worker:
    """A process forked by the zygote."""

    id: int
    key: WorkerKey
    actor: int
    """The actor it is, or 0 for a process that runs tasks."""
    grant: int
    """The call whose resources it uses now; 0 for none."""
    calls: "OrderedDict[int, Call]" = field(default_factory=OrderedDict)
    """Sent and not answered, in order."""
    codes: set[bytes] = field(default_factory=set)
    num_blocked: int = 0


@dataclass(slots=True, eq=False)
class Actor:
    """An actor from creation to death."""

    creation: Call
    worker: Worker | None = None
    queues: dict[int, deque[Call]] = field(default_factory=dict)
    """Calls not sent yet, in order, by caller."""
    death: Value | None = None
    """What every call raises once it is dead."""
    is_retired: bool = False
    """No handle is left: it ends after its last call."""

    @property
    def name(self) -> str:
        """The class name."""
        return self.creation.spec.name

    @property
    def is_idle(self) -> bool:
        """Whether no call is queued or running."""
        return not any(self.queues.values()) and not (self.worker and self.worker.calls)
