"""What the daemons of all machines have in common, whoever decides there.

::

    other machines --- door --- blocks <--- arenas ---+
    other machines <----------- fetcher ------------- hub --- zygote, workers
    drivers of this machine --- socket ---------------+

The head adds the tables, an agent a connection to the head.
"""

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from .address import Address
from .connection import Connection
from .daemons import Daemon, Registration, Role, peer_uid
from .dial import Guest
from .door import Door
from .fetcher import Fetcher, Report
from .handshake import Purpose
from .hub import Hub, Owner, describe_machine
from .logs import LogFiles
from .machines import About
from .memory import check_store_bytes
from .pull import BlockServer, OpenArena, Puller
from .resources import Pool
from .spill import spill_directory
from .store import Writer
from .tls import TlsFiles
from .value import Block

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineConfig:
    """How a machine takes part in a cluster."""

    host: str = "127.0.0.1"
    """Address of the interface to listen on; other machines must reach it."""
    port: int = 0
    """0 is any free one."""
    token_path: Path | None = None
    """The cluster's token; None is ``~/.nanoray/token``."""
    tls: TlsFiles | None = None
    """This machine's certificate; all machines use TLS or none does."""
    num_cpus: float | None = None
    """CPUs to hand out; None is all this process may use."""
    num_gpus: int | None = None
    """GPUs to hand out; None is all this process may use."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Custom resources."""
    object_store_memory: int | None = None
    """Bytes of shared memory that values may take; None is a part of what this process may use."""
    object_spilling_directory: str | None = None
    """Where values move to that have no room; None is chosen by ``spill.spill_directory``."""
    preload: Sequence[str] = ()
    """Modules imported once, before any process is forked."""
    root: Path | None = None
    """Where the daemons of this machine keep their files; None is ``daemons.default_root()``."""
    beat_s: float = 1.0
    """Seconds between two signs of life."""
    limit_s: float = 10.0
    """Seconds without one after which the other machine counts as lost."""
    rejoin_s: float = 60.0
    """Seconds for which an agent that was cut off tries to come back before it gives up."""

    def __post_init__(self) -> None:
        check_store_bytes(self.object_store_memory)
        spill_directory(self.object_spilling_directory)
        if not 0 < self.beat_s < self.limit_s:
            raise ValueError(
                f"beat_s={self.beat_s} must be positive and below limit_s={self.limit_s}; a limit "
                f"of several beats forgives a late one"
            )


class StopSignal:
    """SIGTERM and SIGINT as a file that can be read; for the main thread of a daemon."""

    def __init__(self) -> None:
        self.is_set = False
        self._end, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._received)

    def fileno(self) -> int:
        """Return the descriptor, for selectors."""
        return self._end.fileno()

    def wait(self, timeout_s: float) -> None:
        """Return early when the signal comes."""
        self._end.settimeout(timeout_s)
        with contextlib.suppress(TimeoutError):
            self._end.recv(1, socket.MSG_PEEK)

    def _received(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.is_set = True
        self._wake.send(b"x")


@dataclass(frozen=True, slots=True)
class Announce:
    """How the arenas that hold copies become known."""

    new: Callable[[int, int, int], None]
    """``new(arena_id, size, fd)``, called without the lock."""
    retired: Callable[[int], None]
    """``retired(arena_id)``, called without the lock."""
    next_id: Callable[[], int]
    """Returns numbers unique in the cluster."""

    def announce(self, arena_id: int, size: int, fd: int) -> None:
        """Tell of a new arena."""
        self.new(arena_id, size, fd)

    def more(self, size: int, missing: Callable[[], int]) -> int:
        """Return what is missing: a copy that a call waits for is made, however full the store."""
        del size
        return missing()

    def give_back(self, arena_ids: list[int], size: int) -> None:
        """Tell of closed arenas."""
        del size
        for arena_id in arena_ids:
            self.retired(arena_id)


class Station:
    """The door, the hub, the blocks and the drivers of one machine.

    Args:
        owner: Told what happens on the machine, with ``lock`` held.
        lock: Held around everything the owner and the hub do.
        config: How the machine takes part.
        token: The cluster's secret.
        welcome: Takes the door's guests other than those who pull blocks.
        knock: Called, with the lock held, with a driver of this user that wants to attach.
    """

    def __init__(
        self,
        owner: Owner,
        lock: threading.Lock,
        config: MachineConfig,
        token: bytes,
        *,
        welcome: dict[Purpose, Callable[[Guest], None]],
        knock: Callable[[Connection], None],
    ) -> None:
        self._lock, self._config, self._token, self._knock = lock, config, token, knock
        if config.tls is None and not _is_loopback(config.host):
            log.warning(
                "host=%s without TLS: strangers are kept out and changes are noticed, but who "
                "listens on the network can read everything",
                config.host,
            )
        self._blocks = BlockServer(self._open_arena)
        welcome = {"pull": self._blocks.welcome, **welcome}
        self._door = Door(config.host, config.port, token, welcome=welcome, tls=config.tls)
        self.hub = Hub(owner, list(config.preload))
        self._registration: Registration | None = None
        self._listener: socket.socket | None = None
        self._writer: Writer | None = None
        self._fetcher: Fetcher | None = None
        self._logs: LogFiles | None = None

    @property
    def address(self) -> Address:
        """Where the machine listens."""
        return self._door.address

    def describe(self, pool: Pool, address: tuple[str, int]) -> About:
        """Return what the machine says of itself; ``address`` is where others reach it."""
        return describe_machine(
            pool,
            address,
            store_bytes=self._config.object_store_memory,
            directory=self._config.object_spilling_directory,
        )

    def open(self, role: Role, head: Address, *, announce: Announce, report: Report) -> Daemon:
        """Begin to fetch blocks and to take drivers, once the machine has a place in the cluster.

        Args:
            role: What this daemon is.
            head: Where the head listens.
            announce: Tells of the arenas of copies.
            report: Told of each fetch's end.
        """
        self._writer = Writer(announce)
        puller = Puller(self._token, tls=self._config.tls)
        self._fetcher = Fetcher(self._writer, puller, report)
        root = self._config.root
        self._registration = Registration(role, head=head, address=self.address, root=root)
        self._listener = self._registration.listen()
        self.hub.watch(self._listener.fileno(), self._accept)
        self._logs = LogFiles(self._registration.daemon.logs)
        return self._registration.daemon

    def fetch(self, number: int, source: Address, block: Block) -> None:
        """Begin to copy a block of another machine."""
        assert self._fetcher is not None, "blocks are asked of a machine that has joined"
        self._fetcher.fetch(number, source, block)

    def forget(self, source: Address) -> None:
        """Another machine is gone: give up what comes from it."""
        if self._fetcher is not None:
            self._fetcher.forget(source)

    def free(self, arena_id: int, offset: int) -> None:
        """Free a copy; call without the lock, for the arena may be given back."""
        assert self._writer is not None, "only a machine that has joined has copies"
        self._writer.free(arena_id, offset)

    def keep_lines(self, worker: int, lines: list[str]) -> None:
        """Keep what a process of this machine printed, for ``nanoray logs``."""
        if self._logs is not None:
            self._logs.write(worker, lines)

    def close(self) -> None:
        """End every process and close everything; call without the lock, after the last use."""
        self._door.close()
        if self._listener is not None:
            self._listener.close()
        self._blocks.close()
        if self._fetcher is not None:
            self._fetcher.close()
        self.hub.stop()
        self.hub.close()
        if self._writer is not None:
            self._writer.close()
        if self._registration is not None:
            self._registration.close()

    def _open_arena(self, arena_id: int) -> OpenArena | None:
        with self._lock:
            fd = self.hub.open_arena(arena_id)
        return None if fd is None else OpenArena(fd, os.fstat(fd).st_size)

    def _accept(self) -> None:
        assert self._listener is not None, "only an open listener is watched"
        try:
            sock, _ = self._listener.accept()
        except OSError:  # it left again
            return
        if peer_uid(sock) != os.geteuid():
            log.warning("turned a driver of uid %d away: it is not ours", peer_uid(sock))
            sock.close()
            return
        sock.setblocking(False)
        self._knock(Connection(sock))


def _is_loopback(host: str) -> bool:
    """Return whether nobody but this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
