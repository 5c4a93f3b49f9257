"""The zygote: a process that has imported everything and forks workers in milliseconds.

It stays single-threaded and never touches CUDA, so that a fork is a whole process. It is the
parent of every worker: it alone kills and reaps them, so no id is ever signalled after its
process is gone. Workers ask the kernel to be killed when the zygote dies; the zygote ends when
the driver does, however that happens. Nothing outlives a driver that was killed with -9.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from . import worker
from .connection import Connection
from .exits import OUT_OF_MEMORY, OomKills
from .interrupts import encoded
from .stack import NAME_PREFIX
from .wire import Message, pack

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # linux/prctl.h
_STOP_S = 5.0
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from nanorlhf.nanoray.zygote import main; main(int(sys.argv[1]))"
)


class Zygote:
    """Serves the driver's requests for processes."""

    def __init__(self, connection: Connection, driver_pid: int) -> None:
        self._connection = connection
        self._driver = os.pidfd_open(driver_pid)
        self._pids: dict[int, int] = {}
        self._exits: dict[int, int] = {}
        """pidfd of a worker -> the worker's number."""
        self._pipes: dict[int, int] = {}
        """Where the ids of cancelled calls go, by worker."""
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(self._driver, select.POLLIN)
        self._oom_kills = OomKills(Path("/proc/self/cgroup").read_text())
        self._libc = ctypes.CDLL(None)

    def serve(self) -> None:
        """Fork, kill and reap until the driver is gone or has enough."""
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._driver:
                    return
                if fd in self._exits:
                    self._reap(fd)
                elif not self._serve_requests():
                    return

    def end(self) -> NoReturn:
        """Kill and reap every worker, and exit."""
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids.values():
            os.waitpid(pid, 0)
        os._exit(0)

    def _serve_requests(self) -> bool:
        """Return False when it is time to end."""
        try:
            messages = self._connection.receive()
        except EOFError:
            return False
        return self.take(messages)

    def take(self, messages: list[Message]) -> bool:
        """Do what messages ask; return False when it is time to end."""
        for verb, *fields in messages:
            if verb == "stop":
                return False
            if verb == "fork":
                self._fork(fields[0], [self._connection.take_fd() for _ in range(3)])
            elif verb == "kill" and fields[0] in self._pids:
                os.kill(self._pids[fields[0]], signal.SIGKILL)
            elif verb == "interrupt" and fields[0] in self._pids:
                self._interrupt(*fields)
        return True

    def _interrupt(self, worker_id: int, call_id: int) -> None:
        """Cancel a call of a worker; one that thousands of ids have not moved hears no more."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # or it is dead, not yet reaped
            os.write(self._pipes[worker_id], encoded(call_id))
            os.kill(self._pids[worker_id], signal.SIGUSR1)

    def _fork(self, worker_id: int, fds: list[int]) -> None:
        """Fork a worker; ``fds`` are its socket, its stdout and its stderr."""
        parent = os.getpid()
        interrupts, pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._pipes[worker_id] = pipe
        pid = os.fork()
        if pid == 0:
            self._become_worker(worker_id, fds, interrupts, parent)
        for fd in (*fds, interrupts):
            os.close(fd)
        self._connection.queue(("forked", worker_id, pid))
        self._connection.flush()
        pidfd = os.pidfd_open(pid)
        self._pids[worker_id], self._exits[pidfd] = pid, worker_id
        self._poll.register(pidfd, select.POLLIN)

    def _reap(self, pidfd: int) -> None:
        worker_id = self._exits.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        os.close(self._pipes.pop(worker_id))
        _, status = os.waitpid(self._pids.pop(worker_id), 0)
        if os.WIFSIGNALED(status) and self._oom_kills.have_grown():
            status |= OUT_OF_MEMORY
        self._connection.queue(("exited", worker_id, status))
        self._connection.flush()

    def _become_worker(
        self, worker_id: int, fds: list[int], interrupts: int, parent: int
    ) -> NoReturn:
        """Go on as a worker; nothing of the zygote is left open or running."""
        try:
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)  # the zygote died before the line above
            self._libc.prctl(_PR_SET_NAME, f"{NAME_PREFIX}{worker_id}".encode())
            sock, *streams = fds
            for fd, number in zip(streams, (1, 2), strict=True):
                os.dup2(fd, number)
                os.close(fd)
            self._connection.close()
            for other in (self._driver, *self._exits, *self._pipes.values()):
                os.close(other)
            worker.main(socket.socket(fileno=sock), worker_id, interrupts)
        except BaseException:  # noqa: BLE001  a process boundary: nothing may return into the fork
            traceback.print_exc()
        finally:
            os._exit(1)


def launch(preload: list[str]) -> "tuple[subprocess.Popen[bytes], socket.socket]":
    """Start a zygote; return its process and the driver's end of the socket to it."""
    ours, theirs = socket.socketpair()
    path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
    command = [sys.executable, "-c", _START, str(theirs.fileno()), path]
    # BLAS would start its threads on import, and a zygote must have none.
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
    )
    theirs.close()
    own = {key: text for key, text in os.environ.items() if key == "OPENBLAS_NUM_THREADS"}
    hello = {"preload": preload, "driver": os.getpid(), "env": own}
    ours.sendall(pack(("hello", hello)))
    return process, ours


def end(process: "subprocess.Popen[bytes]") -> None:
    """Wait for a zygote that was told to stop."""
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:  # still importing: the kernel kills its workers with it
        process.kill()
        process.wait()


def main(fd: int) -> None:
    """Be a zygote; ``fd`` is the socket to the driver."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until a worker has its handler
    connection = Connection(socket.socket(fileno=fd))
    messages: list[Message] = []
    while not messages:
        messages = connection.receive()
    _, setup = messages[0]
    os.environ.pop("OPENBLAS_NUM_THREADS", None)
    os.environ.update(setup["env"])
    for name in setup["preload"]:
        importlib.import_module(name)
    _warn_of_threads(setup["preload"])
    gc.collect()
    gc.freeze()  # what is here now is never garbage: keep its pages shared
    zygote = Zygote(connection, setup["driver"])
    if zygote.take(messages[1:]):
        zygote.serve()
    zygote.end()


def _warn_of_threads(preload: list[str]) -> None:
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        log.warning(
            "preload=%s started %d threads in the zygote; a fork copies none of them: do not "
            "preload a module that starts threads",
            preload,
            threads - 1,
        )
