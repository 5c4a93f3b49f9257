"""Ray's errors as ours.

=======================================  ==========================
Ray                                      nanoray
=======================================  ==========================
RayTaskError                             TaskError, of its cause
ActorDiedError, ActorUnavailableError    ActorDiedError
WorkerCrashedError, NodeDiedError,
OutOfMemoryError                         WorkerCrashedError
TaskCancelledError                       TaskCancelledError
ObjectLostError and below                ObjectLostError
Task- and ActorUnschedulableError        InfeasibleError
Task- and ActorPlacementGroupRemoved     PlacementGroupRemovedError
AuthenticationError                      AuthenticationError
any other RayError                       EngineError
=======================================  ==========================
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from .errors import (
    ActorDiedError,
    AuthenticationError,
    EngineError,
    InfeasibleError,
    NanoRayError,
    ObjectLostError,
    PlacementGroupRemovedError,
    SerializationError,
    TaskCancelledError,
    WorkerCrashedError,
    task_error,
)

_ADVICE: dict[type[NanoRayError], str] = {
    ActorDiedError: "create the actor again, or set max_restarts and max_task_retries",
    WorkerCrashedError: "look at the process's last lines, or raise max_retries",
    TaskCancelledError: "it was cancelled with cancel()",
    ObjectLostError: "make the value again: the process or machine that had it is gone",
    InfeasibleError: "ask for less, or for another node",
    PlacementGroupRemovedError: "create another placement group and place it there",
    AuthenticationError: "see Ray's RAY_AUTH_MODE and RAY_AUTH_TOKEN",
    EngineError: "look at Ray's logs, under session_latest/logs of its folder",
}


def from_ray(error: BaseException) -> BaseException:
    """Return the error of this package for what Ray raised; other errors as they are."""
    import ray.exceptions as theirs  # an extra: only whoever runs on Ray has it

    if isinstance(error, theirs.RayTaskError):
        return _from_task(error, theirs.RayError)
    if not isinstance(error, theirs.RayError):
        return error
    kind = next((ours for kinds, ours in _kinds() if isinstance(error, kinds)), EngineError)
    return kind(f"{str(error).strip()}; {_ADVICE[kind]}")


@contextmanager
def translated() -> Iterator[None]:
    """Raise, inside, this package's errors instead of Ray's."""
    import ray.exceptions as theirs

    try:
        yield
    except theirs.RayError as error:
        raise from_ray(error) from None


@contextmanager
def sending(what: str) -> Iterator[None]:
    """Raise SerializationError, inside, when Ray cannot pickle what it is to send."""
    try:
        yield
    except TypeError as error:
        if "erializ" not in str(error) and "pickle" not in str(error):
            raise
        raise SerializationError(
            f"{what} cannot be sent to another process: {error}; pass data, refs or actor handles "
            f"instead, and open files, locks and sockets in the process that uses them"
        ) from error


def _from_task(error: Any, their_root: type[BaseException]) -> BaseException:  # noqa: ANN401
    """Return the TaskError for a RayTaskError, which may stand for an error of Ray's own."""
    cause = error.cause
    if isinstance(cause, their_root):  # what Ray puts there for a cause that cannot travel
        cause = None
    where = f"{error.function_name.removeprefix('ray::')} in process {error.pid}"
    return task_error(where, error.traceback_str.rstrip(), cause)


@lru_cache(1)
def _kinds() -> list[tuple[tuple[type[BaseException], ...], type[NanoRayError]]]:
    import ray.exceptions as theirs

    return [
        ((theirs.TaskPlacementGroupRemoved, theirs.ActorPlacementGroupRemoved),
         PlacementGroupRemovedError),
        ((theirs.RayActorError,), ActorDiedError),
        ((theirs.WorkerCrashedError, theirs.NodeDiedError, theirs.OutOfMemoryError),
         WorkerCrashedError),
        ((theirs.TaskCancelledError,), TaskCancelledError),
        ((theirs.ObjectLostError,), ObjectLostError),
        ((theirs.TaskUnschedulableError, theirs.ActorUnschedulableError), InfeasibleError),
        ((theirs.AuthenticationError,), AuthenticationError),
    ]  # fmt: skip
