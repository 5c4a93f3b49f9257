"""Everything that can go wrong, as one tree.

::

    NanoRayError
      NotInitializedError        init() has not been called in this process
      TaskError                  user code raised; is also an instance of the cause's class
      ActorDiedError             the actor's process is gone, or its constructor raised
      WorkerCrashedError         the process running a task died
      TaskCancelledError         cancel() ended the call
      GetTimeoutError            get() ran out of time; also a TimeoutError
      InfeasibleError            no amount of waiting can satisfy the request
      ObjectLostError            the value is gone, with its machine or from its disk
      StoreFullError             a value does not fit into shared memory; also a MemoryError
      PlacementGroupRemovedError the group a call was placed in is gone
      SerializationError         a value cannot travel; also a TypeError
      AuthenticationError        a machine did not prove that it has the cluster's token
      EngineError                the engine itself is broken
"""

import pickle
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any


class NanoRayError(Exception):
    """The root of the tree: catch it to catch everything of this package."""


class NotInitializedError(NanoRayError):
    """A public call came before ``init()``."""

    def __init__(self) -> None:
        super().__init__("nanoray is not initialised in this process; call nanoray.init() first")


class ActorDiedError(NanoRayError):
    """The actor's process is gone, and this call with it; the message says whether it restarts."""


class WorkerCrashedError(NanoRayError):
    """The process that ran a task died, and no retry is left."""


class TaskCancelledError(NanoRayError):
    """The call was cancelled, before it began or while it ran."""


class GetTimeoutError(NanoRayError, TimeoutError):
    """``get`` ran out of time; the work goes on and may be asked for again."""


class InfeasibleError(NanoRayError, ValueError):
    """The engine can never satisfy this request, however long it waits."""


class ObjectLostError(NanoRayError):
    """The engine does not have the value (any more): the machine or the disk that had it failed."""


class StoreFullError(NanoRayError, MemoryError):
    """A value does not fit into shared memory, not even after others were moved to disk."""


class PlacementGroupRemovedError(NanoRayError):
    """The call was placed in a group that has been removed."""


class SerializationError(NanoRayError, TypeError):
    """A value, argument or function cannot be sent to another process."""


class AuthenticationError(NanoRayError):
    """The other machine, or the token file of this one, is not to be trusted."""


class EngineError(NanoRayError):
    """The engine is broken; ``shutdown()`` and ``init()`` start a new one."""


class TaskError(NanoRayError):
    """User code raised in another process.

    The object is also an instance of the cause's class, so ``except KeyError`` catches a remote
    KeyError. ``str()`` is the remote traceback; ``cause`` (and ``__cause__``) is the exception
    itself, or None when it could not travel.

    >>> error = task_error("f()", "Traceback ...", KeyError("k"))
    >>> isinstance(error, TaskError), isinstance(error, KeyError), error.args
    (True, True, ('k',))
    """

    where: str
    remote_traceback: str
    cause: BaseException | None

    def __str__(self) -> str:
        return f"{self.where} raised:\n{self.remote_traceback}"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _load_task_error, (self.where, self.remote_traceback, _dump_cause(self.cause))


def task_error(where: str, remote_traceback: str, cause: BaseException | None) -> TaskError:
    """Return the error to raise for ``cause``, of a class derived from both trees.

    The cause of an error that came through several calls is the first one: it is caught by its
    class at every level, and the text tells of all of them.

    Mirrors ``RayTaskError.as_instanceof_cause`` of Ray (python/ray/exceptions.py).
    """
    while isinstance(cause, TaskError):
        cause = cause.cause
    kind = _dual_class(type(cause)) if isinstance(cause, Exception) else TaskError
    error = _instance(kind, cause)
    error.where, error.remote_traceback, error.cause = where, remote_traceback, cause
    error.__cause__ = cause
    return error


def traceback_text(error: BaseException, frames: TracebackType | None) -> str:
    """Return the traceback of an error from ``frames`` on, with those of its causes.

    What a TaskError says includes its cause, which must not be told again at each level: the text
    would double with every call that an error passes through.
    """
    whole = traceback.TracebackException(type(error), error, frames)
    link: traceback.TracebackException | None = whole
    while link is not None:
        if link.exc_type is not None and issubclass(link.exc_type, TaskError):
            link.__cause__ = link.__context__ = None
        link = link.__cause__ or link.__context__
    return "".join(whole.format()).rstrip()


def _dual_class(cause: type[Exception]) -> type[TaskError]:
    """Return a class under TaskError and ``cause``; TaskError alone when Python refuses."""
    own = {name: TaskError.__dict__[name] for name in ("__str__", "__reduce__")}
    own["__init__"] = lambda self, *args: None
    try:
        return type(f"TaskError({cause.__name__})", (TaskError, cause), own)
    except TypeError:
        return TaskError  # a layout or metaclass conflict: the cause still is __cause__


def _instance(kind: type[TaskError], cause: BaseException | None) -> TaskError:
    """Return an instance that carries the cause's args and attributes."""
    # MemoryError refuses to be a mere base of what it makes: its constructor is not asked.
    is_memory = isinstance(cause, MemoryError)
    error = BaseException.__new__(kind) if is_memory else kind.__new__(kind)
    if kind is TaskError or cause is None:
        return error
    error.__dict__.update(vars(cause))
    error.args = cause.args
    if isinstance(cause, OSError) and isinstance(error, OSError):
        error.errno, error.strerror = cause.errno, cause.strerror
        error.filename = cause.filename
    return error


def _dump_cause(cause: BaseException | None) -> bytes | None:
    """Return the pickled cause, or None: a cause that cannot travel must not hide its traceback."""
    import cloudpickle  # type: ignore[import-untyped]  # here, not above: importing the package stays cheap

    try:
        data: bytes = cloudpickle.dumps(cause)
        pickle.loads(data)
    except Exception:  # noqa: BLE001  any user __reduce__ may fail in any way
        return None
    return data


def _load_task_error(where: str, remote_traceback: str, data: bytes | None) -> TaskError:
    """Rebuild a TaskError; the cause may be of a class this process cannot import."""
    try:
        cause = None if data is None else pickle.loads(data)
    except Exception:  # noqa: BLE001  any user __setstate__ may fail in any way
        cause = None
    return task_error(where, remote_traceback, cause)
