"""The one engine this process is connected to.

This is the package's only module-level state: refs that arrive inside values must find the engine
they belong to, and user code in a worker must find the engine and the call it runs in.
"""

import os
from contextvars import ContextVar
from typing import NamedTuple

from .backend import Backend
from .errors import NotInitializedError


class _Session(NamedTuple):
    backend: Backend
    pid: int


_session: _Session | None = None

call_id: ContextVar[int] = ContextVar("call_id", default=0)
"""The call this code runs in, 0 in none; a thread that user code starts begins with none."""


def current() -> Backend:
    """Return this process's engine.

    Raises:
        NotInitializedError: There is none; a fork of the driver has none either.
    """
    if _session is None or _session.pid != os.getpid():
        raise NotInitializedError
    return _session.backend


def is_open() -> bool:
    """Return whether this process is connected."""
    return _session is not None and _session.pid == os.getpid()


def set_current(backend: Backend | None) -> None:
    """Connect this process to an engine, or to none."""
    global _session
    _session = None if backend is None else _Session(backend, os.getpid())
