"""The engine's table of functions and classes, by the hash of their pickle. No I/O.

The processes where a function is alive hold its code, and every call of it pins it. After that
nobody can call it again, and its pickle and the objects it refers to are let go.
"""

from collections.abc import Sequence
from typing import NamedTuple

from .objects import Objects

FIRST_CODE = 1 << 62
"""Ids of codes begin here; those of objects stay below."""


class _Code(NamedTuple):
    blob: bytes
    held: tuple[int, ...]


class Codes:
    """All code that somebody may still call.

    Args:
        objects: Where the objects are that code refers to.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._counts = Objects()
        self._codes: dict[int, _Code] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, code_id: int) -> bytes:
        return self._codes[code_id].blob

    def add(self, process: int, code_id: int, blob: bytes, *, held: Sequence[int]) -> None:
        """Take a function or class that is alive in a process; its hold is counted."""
        if self._counts.get(code_id) is None:
            self._counts.create(code_id, process)
        else:
            self._counts.hold(process, code_id, 1)
        if code_id not in self._codes:  # it may be here, freed and not yet taken
            self._codes[code_id] = _Code(blob, tuple(held))
            for object_id in held:
                self._objects.pin(object_id)

    def hold(self, process: int, code_id: int, delta: int) -> None:
        """Change in how many functions of a process the code is alive."""
        self._counts.hold(process, code_id, delta)

    def pin(self, code_id: int) -> None:
        """Keep the code for a call."""
        self._counts.pin(code_id)

    def unpin(self, code_id: int) -> None:
        """Undo one ``pin``."""
        self._counts.unpin(code_id)

    def drop_process(self, process: int) -> None:
        """Nothing is alive in a process that is gone."""
        self._counts.drop_process(process)

    @property
    def has_freed(self) -> bool:
        """Whether ``take_freed`` may return something."""
        return bool(self._counts.freed)

    def take_freed(self) -> list[int]:
        """Forget the code that nobody can call any more; return its ids."""
        dead_ids = {dead.id for dead in self._counts.take_freed()}
        freed = [code_id for code_id in dead_ids if self._counts.get(code_id) is None]
        for code_id in freed:
            for object_id in self._codes.pop(code_id).held:
                self._objects.unpin(object_id)
        return freed
