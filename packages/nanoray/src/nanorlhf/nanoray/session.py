"""The one engine this process is connected to.

This is the package's only module-level state: refs that arrive inside values must find the engine
they belong to, and user code in a worker must find the engine and the call it runs in.
"""

import functools
import os
import sys
from contextvars import ContextVar
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from .backend import Backend, Start
from .errors import NotInitializedError


class _Session(NamedTuple):
    backend: Backend
    starts: WeakKeyDictionary[Any, Start]


_session: _Session | None = None

call_id: ContextVar[int] = ContextVar("call_id", default=0)
"""The call this code runs in, 0 in none; a thread that user code starts begins with none."""


def current() -> Backend:
    """Return this process's engine.

    Raises:
        NotInitializedError: There is none; a fork of the driver has none either.
    """
    if _session is not None:
        return _session.backend
    if not _is_adopted():
        raise NotInitializedError
    return current()


def starts() -> WeakKeyDictionary[Any, Start]:
    """Return what this process has prepared for its engine, by the function it was prepared for.

    Raises:
        NotInitializedError: As of ``current``.
    """
    current()
    assert _session is not None, "there is an engine"
    return _session.starts


def is_open() -> bool:
    """Return whether this process is connected."""
    return _session is not None or _is_adopted()


def _is_adopted() -> bool:
    """Return whether this is a worker of Ray, whose engine is connected by asking for it."""
    if "ray" not in sys.modules:
        return False
    from .ray_start import engine_of_worker  # a cycle otherwise: engines make refs

    engine = engine_of_worker()
    if engine is not None:
        set_current(engine)
    return engine is not None


def set_current(backend: Backend | None) -> None:
    """Connect this process to an engine, or to none."""
    global _session
    _session = None if backend is None else _Session(backend, WeakKeyDictionary())
    _watch_forks()


@functools.cache
def _watch_forks() -> None:
    """See to it that a fork, which shares the sockets, has no engine. Once is enough."""
    os.register_at_fork(after_in_child=lambda: set_current(None))
