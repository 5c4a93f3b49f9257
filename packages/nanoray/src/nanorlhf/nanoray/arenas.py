"""The engine's table of arenas: whose they are, who has been given them, what lives in them."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .blocks import block_bytes
from .messages import DRIVER
from .value import Value
from .wire import Message

Send = Callable[[int, Message], None]
"""Sends a message to a process; the rim adds the file of an arena the message speaks of."""


@dataclass(slots=True)
class _Arena:
    owner: int
    size: int
    live: int = 0
    live_bytes: int = 0
    is_orphan: bool = False
    """Nobody writes to it any more: it goes with the last value in it."""
    is_on_disk: bool = False
    readers: set[int] = field(default_factory=set)


class Arenas:
    """Every arena lives as long as a value in it, and so outlives the process that wrote it.

    Args:
        send: To a process, the driver included.
        on_close: Called with the id of an arena that is gone.
    """

    def __init__(self, send: Send, on_close: Callable[[int], None]) -> None:
        self._send, self._on_close = send, on_close
        self._arenas: dict[int, _Arena] = {}

    def add(self, arena_id: int, *, owner: int, size: int) -> None:
        """Add a new arena of ``owner``."""
        self._arenas[arena_id] = _Arena(owner, size)

    def move_to_disk(self, arena_id: int) -> None:
        """Note that an arena just added is a finished file on disk."""
        arena = self._arenas[arena_id]
        arena.is_on_disk = arena.is_orphan = True

    def ship(self, process: int, value: Value) -> None:
        """Give ``process`` the arena of a value it is about to read, once."""
        if value.block is None:
            return
        arena_id = value.block[0]
        arena = self._arenas[arena_id]
        if process not in arena.readers:
            arena.readers.add(process)
            self._send(process, ("arena", arena_id, arena.size))

    def retain(self, value: Value) -> None:
        """Count a value that lives in its arena."""
        if value.block is not None:
            arena = self._arenas[value.block[0]]
            arena.live += 1
            arena.live_bytes += block_bytes(value.block[2])

    def release(self, value: Value) -> None:
        """Give the block of a dead value back to its writer."""
        if value.block is None:
            return
        arena_id, offset, size = value.block
        arena = self._arenas[arena_id]
        arena.live -= 1
        arena.live_bytes -= block_bytes(size)
        if not arena.is_orphan:
            self._send(arena.owner, ("free", arena_id, offset))
        else:
            self.close_if_dead(arena_id)

    def close_if_dead(self, arena_id: int) -> None:
        """Close an orphan in which nothing lives."""
        if not self._arenas[arena_id].live:
            self.close(arena_id)

    def close(self, arena_id: int) -> None:
        """Close an arena nobody will write to again."""
        arena = self._arenas.pop(arena_id)
        for process in arena.readers:
            self._send(process, ("forget", arena_id))
        self._on_close(arena_id)

    def drop_process(self, process: int) -> None:
        """The process is gone: its arenas stay as long as something lives in them."""
        for arena_id, arena in list(self._arenas.items()):
            arena.readers.discard(process)
            if arena.owner == process != DRIVER and not arena.is_on_disk:
                arena.is_orphan = True
                self.close_if_dead(arena_id)

    def owner(self, arena_id: int) -> int:
        """Return the process that made the arena, which may be gone."""
        return self._arenas[arena_id].owner

    def live_bytes(self, *, owner: int | None = None) -> int:
        """Return the bytes of memory that live values take, of one process or of all."""
        arenas = (a for a in self._arenas.values() if not a.is_on_disk)
        return sum(a.live_bytes for a in arenas if owner is None or a.owner == owner)

    @property
    def orphan_bytes(self) -> int:
        """Bytes of memory that live values of processes that are gone take."""
        arenas = self._arenas.values()
        return sum(a.live_bytes for a in arenas if a.is_orphan and not a.is_on_disk)

    @property
    def disk_bytes(self) -> int:
        """Bytes of live values that have been moved to files."""
        return sum(a.live_bytes for a in self._arenas.values() if a.is_on_disk)
