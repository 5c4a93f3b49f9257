"""A fresh interpreter that has imported this package and forks workers when it is asked to.

    this process                    the zygote                     a worker
    request, end of a pipe  ---->   fork  ---------------------->  works, reports by the pipe
    number of the process   <----
    request to wait         ---->   waits for its end
    exit code               <----

Importing numpy takes longer than many a job, so the zygote is kept for the next one. It has one
thread, so a fork of it inherits no lock that somebody holds. It ends with the process that started
it, or when nothing was asked for a while and none of its workers is left.
"""

import gc
import os
import signal
import subprocess
import sys
import traceback
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from socket import AF_UNIX, SHUT_RDWR, SOCK_STREAM, recv_fds, send_fds, socket, socketpair
from threading import Lock
from typing import NamedTuple

ENTRY = "from nanorlhf.nanosets.workers import main; main()"
IDLE_S = 60.0
"""Seconds without a request after which a zygote without workers ends."""
MESSAGE_BYTES = 64 << 10
"""A message at most: paths in it have 4 KiB each."""


class Surroundings(NamedTuple):
    """What a process inherits; a zygote that was started in others is of no use."""

    owner: int
    folder: str
    path: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[int, int] | None, ...]
    """What standard output and error are: device and number of the file; None if closed."""
    processors: frozenset[int]

    @classmethod
    def here(cls) -> "Surroundings":
        """Return those of this process."""
        return cls(
            owner=os.getpid(),
            folder=os.getcwd(),
            path=tuple(filter(None, sys.path)),
            environment=tuple(sorted(os.environ.items())),
            outputs=tuple(map(_identity, (1, 2))),
            processors=frozenset(
                os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
            ),
        )


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Zygote:
    """The way to a zygote, which is started.

    Args:
        around: The surroundings of this process.
    """

    def __init__(self, around: Surroundings) -> None:
        self._lock = Lock()
        self._ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
        number = theirs.fileno()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", ENTRY, str(number)],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(around.path)},
                pass_fds=[number],
            )
        weakref.finalize(self, _end, around.owner, self._ours, process)

    def fork(self, arguments: Sequence[str], pipe: int) -> "Forked":
        """Return a worker that was forked with these arguments and an end of a pipe.

        Raises:
            ConnectionError: The zygote is gone.
        """
        return Forked(self, int(self._asked("\0".join(["fork", *arguments]), [pipe])))

    def wait(self, pid: int) -> int:
        """Return the exit code of a worker that ends, negative for a signal.

        Raises:
            ConnectionError: The zygote is gone.
        """
        return int(self._asked(f"wait\0{pid}", []))

    def _asked(self, request: str, descriptors: list[int]) -> bytes:
        with self._lock:
            send_fds(self._ours, [request.encode()], descriptors)
            answer = self._ours.recv(MESSAGE_BYTES)
        if not answer:
            raise ConnectionResetError("the process that forks workers died; start the map again")
        return answer


def _end(owner: int, requests: socket, process: "subprocess.Popen[bytes]") -> None:
    """End a zygote; a fork of the process that started it ends nothing."""
    if os.getpid() == owner:
        with suppress(OSError):  # it has ended already
            requests.shutdown(SHUT_RDWR)  # forks may hold the socket too: to close it is not enough
        process.wait()
    requests.close()


class Forked:
    """A worker that a zygote forked."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote = zygote
        self.pid = pid
        self.exitcode: int | None = None

    def kill(self) -> None:
        """End it at once."""
        # Until the zygote has waited for it the number is nobody else's.
        if self.exitcode is None:
            os.kill(self.pid, signal.SIGKILL)

    def join(self) -> None:
        """Wait for its end."""
        if self.exitcode is None:
            self.exitcode = self._zygote.wait(self.pid)


def forked(arguments: Sequence[str], pipe: int) -> Forked:
    """Return a worker, of the zygote that is there or of a new one."""
    around = Surroundings.here()
    try:
        return _zygote(around).fork(arguments, pipe)
    except ConnectionError:  # it was idle for long, or somebody ended it
        _zygote.cache_clear()
        return _zygote(around).fork(arguments, pipe)


@lru_cache(maxsize=1)
def _zygote(around: Surroundings) -> Zygote:
    return Zygote(around)


def serve(descriptor: int, work: Callable[[Sequence[str], int], None]) -> None:
    """Fork a worker for each request that comes by a socket; in the zygote.

    Args:
        descriptor: Of the socket.
        work: Called in each worker with the arguments and the end of a pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the process that started it
    gc.collect()
    gc.freeze()  # a collection in a worker that looked through all this would copy it
    workers: set[int] = set()
    with socket(fileno=descriptor) as requests:
        requests.settimeout(IDLE_S)
        while True:
            try:
                data, pipes, *_ = recv_fds(requests, MESSAGE_BYTES, 1)
            except TimeoutError:
                if workers:
                    continue
                return
            verb, *arguments = data.decode().split("\0")
            if verb == "fork":
                pid = _fork(requests, arguments, pipes[0], work)
                workers.add(pid)
                answer = pid
            elif verb == "wait":
                pid = int(arguments[0])
                workers.discard(pid)
                answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            else:  # nothing: the other end is closed
                return
            requests.send(str(answer).encode())


def _fork(
    requests: socket,
    arguments: Sequence[str],
    pipe: int,
    work: Callable[[Sequence[str], int], None],
) -> int:
    with warnings.catch_warnings():
        # Python counts the threads of numpy's BLAS, which minds forks itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        os.close(pipe)
        return pid
    code = 1
    try:
        requests.close()
        random = sys.modules.get("numpy.random")
        if random is not None:
            random.seed()  # or all workers would draw the same numbers
        work(arguments, pipe)
        code = 0
    except BaseException:  # noqa: BLE001 - the end of a process, which tells it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
