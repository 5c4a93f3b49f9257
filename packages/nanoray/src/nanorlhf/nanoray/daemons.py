"""The daemons of this machine: where each one's files lie, and which of them are alive.

::

    /tmp/nanoray-<uid>/            mode 0700, ours alone
        head-<pid>/
            daemon.json            who it is; locked by the daemon for as long as it lives
            socket                 where drivers of this machine attach
            logs/

Whether a daemon lives is asked of the lock, which the kernel lets go with its process: a number
of a process may belong to somebody else by now.
"""

import contextlib
import fcntl
import json
import os
import select
import shlex
import shutil
import signal
import socket
import stat
import struct
import time
from pathlib import Path
from typing import Literal, NamedTuple

from .address import Address
from .errors import AuthenticationError, NanoRayError

Role = Literal["head", "agent"]

_ABOUT = "daemon.json"
_CREDENTIALS = struct.Struct("3i")


class Daemon(NamedTuple):
    """A head or an agent that runs on this machine."""

    directory: Path
    role: Role
    pid: int
    head: Address
    """Where the cluster's head listens, as this machine reaches it."""
    address: Address
    """Where this daemon listens."""

    @property
    def socket_path(self) -> Path:
        """Where drivers attach."""
        return self.directory / "socket"

    @property
    def logs(self) -> Path:
        """Where its processes may write."""
        return self.directory / "logs"


class Registration:
    """This process as a daemon that others find.

    Args:
        role: What it is.
        head: Where the head listens.
        address: Where this process listens.
        root: The directory of all daemons; None is ``default_root()``.

    Raises:
        AuthenticationError: The directory belongs to somebody else.
    """

    def __init__(
        self, role: Role, *, head: Address, address: Address, root: Path | None = None
    ) -> None:
        where = private_directory(default_root() if root is None else root)
        directory = where / f"{role}-{os.getpid()}"
        shutil.rmtree(directory, ignore_errors=True)  # of an earlier process with our number
        self.daemon = Daemon(directory, role, os.getpid(), head, address)
        directory.mkdir(mode=0o700)
        self.daemon.logs.mkdir(mode=0o700)
        new = directory / "new"
        self._file = open(new, "x", encoding="utf-8")  # noqa: SIM115  held for life
        fcntl.flock(self._file, fcntl.LOCK_EX)
        json.dump({"role": role, "pid": os.getpid(), "head": head, "address": address}, self._file)
        self._file.flush()
        new.rename(directory / _ABOUT)  # whoever sees it sees it locked

    def listen(self) -> socket.socket:
        """Open the socket at which drivers attach."""
        listener = socket.socket(socket.AF_UNIX)
        listener.setblocking(False)
        try:
            listener.bind(str(self.daemon.socket_path))
        except OSError as error:
            listener.close()
            raise NanoRayError(
                f"socket {self.daemon.socket_path}: {error}; choose a shorter directory for the "
                f"daemons' files"
            ) from error
        listener.listen()
        return listener

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.daemon.directory, ignore_errors=True)
        self._file.close()


def default_root() -> Path:
    """Return the directory of this user's daemons: on a local disk, and short, for sockets."""
    return Path(f"/tmp/nanoray-{os.geteuid()}")


def private_directory(path: Path) -> Path:
    """Make a directory that only we can enter, or check that it is one.

    Raises:
        AuthenticationError: It is somebody else's, or open to others.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
    status = path.lstat()
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    if not is_ours or stat.S_IMODE(status.st_mode) & 0o077:
        raise AuthenticationError(
            f"{path} is not a directory of uid {os.geteuid()} with mode 0700; remove it"
        )
    return path


def daemons(root: Path | None = None) -> list[Daemon]:
    """Return the living daemons of this user on this machine, heads first, then the youngest."""
    found: list[tuple[float, Daemon]] = []
    for path in (default_root() if root is None else root).glob(f"*/{_ABOUT}"):
        with (
            contextlib.suppress(OSError, ValueError, KeyError),
            open(path, encoding="utf-8") as file,
        ):
            if _is_locked(file.fileno()):
                about = json.load(file)
                head, address = Address(*about["head"]), Address(*about["address"])
                daemon = Daemon(path.parent, about["role"], about["pid"], head, address)
                found.append((path.stat().st_mtime, daemon))
    found.sort(key=lambda pair: (pair[1].role != "head", -pair[0]))
    return [daemon for _, daemon in found]


def find_daemon(head: Address | None, *, root: Path | None = None) -> Daemon:
    """Return the daemon of this machine through which a driver joins a cluster.

    Args:
        head: The cluster's head; None is that of this machine's head, or of its youngest agent.
        root: The directory of all daemons; None is ``default_root()``.

    Raises:
        NanoRayError: No daemon of that cluster runs here.
    """
    living = daemons(root)
    fitting = [daemon for daemon in living if head in (None, daemon.head)]
    if fitting:
        return fitting[0]
    if head is None:
        finds, command = "address='auto' finds no daemon of this user on this machine", "nanoray"
        if root is not None:
            finds = f"no daemon of this user has its files in {root}"
            command = f"nanoray --root {shlex.quote(str(root))}"
        raise NanoRayError(
            f"{finds}; run: {command} start --head, or: {command} start --address=HOST:PORT"
        )
    others = ", ".join(sorted({str(daemon.head) for daemon in living})) or "none"
    raise NanoRayError(
        f"no daemon of the cluster nano://{head} runs on this machine (clusters here: {others}); "
        f"run: nanoray start --address={head}"
    )


def stop_daemons(*, root: Path | None = None, timeout_s: float = 10.0) -> list[Daemon]:
    """End every daemon of this user on this machine, agents first; return those that ended.

    A daemon that does not end in time is killed; its processes end with it.
    """
    living = sorted(daemons(root), key=lambda daemon: daemon.role == "head")
    deadline = time.monotonic() + timeout_s
    for daemon in living:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(daemon.pid)
            try:
                _end(daemon, pidfd, deadline)
            finally:
                os.close(pidfd)
    for path in (default_root() if root is None else root).glob(f"*/{_ABOUT}"):
        if not _is_alive(path):  # one of these, or one that was killed before
            shutil.rmtree(path.parent, ignore_errors=True)
    return living


def peer_uid(sock: socket.socket) -> int:
    """Return the user at the other end of a Unix socket, as the kernel knows it."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


def _end(daemon: Daemon, pidfd: int, deadline: float) -> None:
    if not _is_alive(daemon.directory / _ABOUT):
        return  # it ended before we held its number
    for number in (signal.SIGTERM, signal.SIGKILL):
        signal.pidfd_send_signal(pidfd, number)
        if select.select([pidfd], [], [], max(0.1, deadline - time.monotonic()))[0]:
            return


def _is_alive(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            return _is_locked(file.fileno())
    except FileNotFoundError:
        return False


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
