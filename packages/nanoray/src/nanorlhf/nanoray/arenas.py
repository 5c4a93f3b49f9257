"""The engine's table of arenas: whose they are, who has been given them, what lives in them."""

from collections.abc import Callable
from dataclasses import dataclass, field

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
    is_orphan: bool = False
    readers: set[int] = field(default_factory=set)


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
            self._arenas[value.block[0]].live += 1

    def release(self, value: Value) -> None:
        """Give the block of a dead value back to its writer."""
        if value.block is None:
            return
        arena_id, offset, _ = value.block
        arena = self._arenas.get(arena_id)
        if arena is None:
            return  # it went with its machine
        arena.live -= 1
        if not arena.is_orphan:
            self._send(arena.owner, ("free", arena_id, offset))
        elif not arena.live:
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
            if arena.owner == process != DRIVER:
                arena.is_orphan = True
                if not arena.live:
                    self.close(arena_id)

    def drop_machine(self, machine: int) -> None:
        """A machine is gone, and with it every byte of its arenas."""
        for arena_id, arena in list(self._arenas.items()):
            if arena.machine == machine:
                del self._arenas[arena_id]
