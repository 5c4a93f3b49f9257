"""How a process gets room in the store: it asks, waits, and moves what others left to disk.

All waiting is bounded: a process that gets no room for ``_PATIENCE_S``, and can make none, fails.
"""

import os
import time
from collections.abc import Callable
from typing import Any, Protocol

from .refs import UserValue
from .spill import write_spill
from .views import Reader
from .waits import Answer
from .wire import Message

_PATIENCE_S = 10.0
"""How long to wait for room when none can be made."""
_GLANCE_S = 0.05
"""How long to wait for idle processes to give back what they keep, before a disk is touched."""
_ROUND_S = 0.5
"""How long to wait between looks at what could be moved to disk."""


class Link(Protocol):
    """The way to the engine."""

    def post(self, *messages: Message, fd: int | None = None) -> None:
        """Send messages, in order; ``fd`` goes with a single one and stays open."""
        ...

    def ask(self, verb: str, *fields: Any, timeout_s: float | None = None) -> Answer | None:
        """Send a question and return its answer, or None (and cancel it) after ``timeout_s``."""
        ...


class Allowance:
    """What the engine lets this process write: the ``Link`` of its writer.

    Args:
        link: The way to the engine.
        reader: Sees what others have written.
        next_id: Returns numbers unique in the engine.
    """

    def __init__(self, link: Link, reader: Reader, next_id: Callable[[], int]) -> None:
        self._link, self._reader, self.next_id = link, reader, next_id

    def announce(self, arena_id: int, size: int, fd: int) -> None:
        """Tell of a new arena."""
        self._link.post(("arena", arena_id, size), fd=fd)

    def give_back(self, arena_ids: list[int], size: int) -> None:
        """Tell of closed arenas and of room that is free again."""
        closed = [("retire", arena_id) for arena_id in arena_ids]
        self._link.post(*closed, ("spare", size))

    def more(self, size: int, missing: Callable[[], int]) -> int:
        """Return how much more may be written for a value of ``size``, of which this is missing.

        Or return 0: room has been made, or has come back, and is there now.

        Raises:
            StoreFullError: There is no room.
        """
        deadline, stage, timeout_s = time.monotonic() + _PATIENCE_S, "first", _GLANCE_S
        can_spill = True
        while (short := missing()) > 0:
            limit_s = None if stage == "fail" else timeout_s
            answer = self._link.ask("room", size, short, stage, timeout_s=limit_s)
            if answer is not None:
                verb, *fields = self._plain(answer)
                if verb == "grant":
                    granted: int = fields[0]
                    return granted
                can_spill = self._spill(*fields)
                if can_spill:
                    return 0
            is_late = time.monotonic() >= deadline
            stage, timeout_s = "fail" if is_late else "spill" if can_spill else "wait", _ROUND_S
        return 0

    def refuse(self, answer: Answer) -> None:
        """Give back what came with an answer that nobody waits for any more."""
        self._reader.end_loan(answer)
        if answer[0] == "plain" and isinstance(answer[1], tuple) and answer[1]:
            if answer[1][0] == "grant":
                self._link.post(("spare", answer[1][1]))
            elif answer[1][0] == "spill":
                self._link.post(("unspilled", "the process was interrupted"))

    def _spill(self, directory: str, victims: list[tuple[int, tuple[int, int, int]]]) -> bool:
        """Move objects to disk; return False when the disk does not take them."""
        views = [(object_id, self._reader.block(block)) for object_id, block in victims]
        try:
            file = write_spill(directory, [(o, view) for o, view in views if view is not None])
        except BaseException as error:
            self._link.post(("unspilled", str(error)))
            if isinstance(error, OSError):
                return False
            raise
        arena_id = self.next_id()
        try:
            self._link.post(("arena", arena_id, file.size), fd=file.fd)
        finally:
            os.close(file.fd)
        # A question: before its answer come the blocks of this process that are free now.
        self._link.ask("spilled", arena_id, file.places)
        return True

    def _plain(self, answer: Answer) -> UserValue:
        if answer[0] == "error":
            raise self._reader.load(0, answer[1])
        return answer[1]
