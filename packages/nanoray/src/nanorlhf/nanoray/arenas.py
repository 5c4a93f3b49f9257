"""The engine's table of arenas: whose they are, who has been given them, what lives in them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

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
    machine: int
    live: int = 0
    live_bytes: int = 0
    is_orphan: bool = False
    """Nobody writes to it any more: it goes with the last value in it."""
    is_on_disk: bool = False
    readers: set[int] = field(default_factory=set)


class Usage(NamedTuple):
    """Bytes of live values, in whole pages."""

    live: Counter[int]
    """In memory, by the process that wrote them."""
    left: int
    """In memory, of processes that are gone."""
    on_disk: int

    @property
    def in_memory(self) -> int:
        """All that is in memory."""
        return self.live.total() + self.left


class Arenas:
    """Every arena lives as long as a value in it, and so outlives the process that wrote it.

    Args:
        send: To a process, the driver included.
        on_close: Called with the id of an arena that is gone, and its machine.
    """

    def __init__(self, send: Send, on_close: Callable[[int, int], None]) -> None:
        self._send, self._on_close = send, on_close
        self._arenas: dict[int, _Arena] = {}

    def add(self, arena_id: int, *, owner: int, size: int, machine: int) -> None:
        """Add a new arena of ``owner``, a process of ``machine``."""
        self._arenas[arena_id] = _Arena(owner, size, machine)

    def machine_of(self, arena_id: int) -> int:
        """Return the machine whose memory an arena is."""
        return self._arenas[arena_id].machine

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
        arena = self._arenas.get(arena_id)
        if arena is None:
            return  # it went with its machine
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
        self._on_close(arena_id, arena.machine)

    def drop_process(self, process: int) -> None:
        """The process is gone: its arenas stay as long as something lives in them."""
        for arena_id, arena in list(self._arenas.items()):
            arena.readers.discard(process)
            if arena.owner == process != DRIVER and not arena.is_on_disk:
                arena.is_orphan = True
                self.close_if_dead(arena_id)

    def drop_machine(self, machine: int) -> None:
        """A machine is gone, and with it every byte of its arenas."""
        for arena_id, arena in list(self._arenas.items()):
            if arena.machine == machine:
                del self._arenas[arena_id]

    def owner(self, arena_id: int) -> int:
        """Return the process that made the arena, which may be gone."""
        return self._arenas[arena_id].owner

    def usage(self, machine: int) -> Usage:
        """Return how many bytes live values take on a machine, in one pass over its arenas."""
        live: Counter[int] = Counter()
        left = on_disk = 0
        for arena in self._arenas.values():
            if arena.machine != machine:
                continue
            if arena.is_on_disk:
                on_disk += arena.live_bytes
            elif arena.is_orphan:
                left += arena.live_bytes
            else:
                live[arena.owner] += arena.live_bytes
        return Usage(live, left, on_disk)
