"""Where every thread of a worker stands, asked from outside and answered without its help.

A worker has a memfd named ``nanoray-stack`` into which ``faulthandler`` writes all tracebacks when
the process gets SIGUSR2. The handler is C: it answers from a loop that never returns and from a
call that holds the interpreter's lock. Any process of the same user finds the file in ``/proc``, so
this works for an engine inside a driver and for a cluster alike, without a connection to either.
"""

import faulthandler
import os
import signal
import time
from pathlib import Path
from typing import BinaryIO, NamedTuple

_MEMFD = "nanoray-stack"
_QUIET_S = 0.02
NAME_PREFIX = "nanoray-"
"""How the kernel knows workers: ``nanoray-<number>``."""


class Stack(NamedTuple):
    """The stacks of one process."""

    pid: int
    name: str
    text: str


def make_dumpable() -> None:
    """Have SIGUSR2 write this process's stacks where ``dump`` finds them."""
    fd = os.memfd_create(_MEMFD)
    faulthandler.register(signal.SIGUSR2, file=fd, all_threads=True, chain=False)


def workers() -> list[int]:
    """Return the pids of this user's workers on this machine, of every engine."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and _name(int(folder.name)).startswith(NAME_PREFIX):
            found.append(int(folder.name))
    return sorted(pid for pid in found if _file(pid) is not None)


def dump(pid: int, *, timeout_s: float = 2.0) -> Stack:
    """Return the Python stacks of a worker's threads.

    Raises:
        ProcessLookupError: There is no such worker (any more).
        TimeoutError: It did not answer: it is stopped, or in the kernel.
    """
    path = _file(pid)
    if path is None:
        raise ProcessLookupError(f"pid={pid} is no worker of nanoray here; see workers()")
    with path.open("rb") as file:
        start = file.seek(0, os.SEEK_END)
        os.kill(pid, signal.SIGUSR2)
        text = _settled(file, start, deadline=time.monotonic() + timeout_s)
    if not text:
        raise TimeoutError(f"pid={pid} did not answer within timeout_s={timeout_s}")
    return Stack(pid, _name(pid), text)


def _settled(file: BinaryIO, start: int, *, deadline: float) -> str:
    """Return what was written after ``start`` once there is no more: it comes without an end."""
    data = b""
    while time.monotonic() < deadline:
        time.sleep(_QUIET_S)
        file.seek(start)
        before, data = data, file.read()
        if data and data == before:
            break
    return data.decode(errors="replace")


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _file(pid: int) -> Path | None:
    """Return the memfd of a worker, as this process may open it."""
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(entry).startswith(f"/memfd:{_MEMFD}"):
                return entry
    except OSError:
        return None
    return None
