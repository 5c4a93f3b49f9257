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

import re
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

_COLOUR = re.compile(r"\x1b\[\d+m")
_CALL = re.compile(r"ray::(\S+) \(pid=(\d+)")
"""How Ray's text begins: the call and the process that raised."""


def from_ray(error: BaseException) -> BaseException:
    """Return the error of this package for what Ray raised; other errors as they are."""
    import ray.exceptions as theirs  # an extra: only whoever runs on Ray has it

    if isinstance(error, theirs.RayTaskError):
        return _from_task(error, theirs.RayError)
    if not isinstance(error, theirs.RayError):
        return error
    kind = next((ours for kinds, ours in _kinds() if isinstance(error, kinds)), EngineError)
    return kind(f"{_said(str(error))}; {_ADVICE[kind]}")


def _said(text: str) -> str:
    r"""Return what Ray says of an actor's death on one line, and other texts as they are.

    >>> _said("The actor died.\n\tclass_name: A\n\tactor_id: 0a\nIts process was killed.")
    'actor A died: Its process was killed'
    """
    name = re.search(r"^\tclass_name: (.+)$", text, re.MULTILINE)
    if name is None:
        return _COLOUR.sub("", text).strip()
    rest = [line.strip() for line in text.splitlines()[1:] if not line.startswith("\t")]
    return f"actor {name[1]} died: {' '.join(rest)}".rstrip(". ")


@contextmanager
def translated() -> Iterator[None]:
    """Raise, inside, this package's errors instead of Ray's."""
    import ray.exceptions as theirs

    try:
        yield
    except theirs.RayError as error:
        ours = from_ray(error)
        raise ours from ours.__cause__


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
    """Return our error for a RayTaskError, of which only ``cause`` and the text are sure."""
    cause, text = error.cause, _COLOUR.sub("", str(error))
    if isinstance(cause, their_root) and type(cause) is not their_root:
        return from_ray(cause)  # Ray's own error, of something that the call itself waited for
    if isinstance(cause, their_root):
        cause = None  # what Ray puts there for a cause that cannot travel
    call = _CALL.search(text)
    where = f"{call[1]} in process {call[2]}" if call else "a call"
    return task_error(where, text, cause)


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
