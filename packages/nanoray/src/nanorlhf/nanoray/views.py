"""The shared-memory store as it is read: values over mapped arenas, without copying their buffers.

Every process may read all arenas. A private mapping of one is kept as long as the engine has it,
so that reading a value is making a few objects; and each value that has views holds its block.
"""

import mmap
import os
import pickle
import threading
import weakref
from typing import Any

import numpy as np

from .blocks import PAGE, round_up
from .layouts import Layouts
from .mapping import is_sealed, private
from .messages import RawValue
from .refs import HoldLog, UserValue
from .spill import check_spill


class Reader:
    """Rebuilds values without copying their buffers. Thread-safe.

    Arrays come back read-only. The block of a value is held until the last view of it in this
    process dies. One process sees one copy of an object, however often it reads it.
    """

    def __init__(self, holds: HoldLog) -> None:
        self._holds = holds
        self._maps: dict[int, mmap.mmap] = {}
        self._unmapped: dict[int, tuple[int, int]] = {}
        """Files and sizes of arenas for which there was no memory when they were announced."""
        self._files: dict[int, int] = {}
        """Arenas on disk: what comes from there is checked before it is used."""
        self._lives: dict[int, _Life] = {}
        """Of each object that has views here."""
        self._layouts = Layouts()
        self._lock = threading.RLock()  # re-entered by a view that ends inside _root()

    def adopt(self, arena_id: int, size: int, fd: int) -> None:
        """Map an arena; the caller keeps ``fd``."""
        if not is_sealed(fd):
            self._files[arena_id] = os.dup(fd)
        try:
            self._maps[arena_id] = private(fd, size)
        except MemoryError:  # whoever reads from it tries again, and is told
            self._unmapped[arena_id] = os.dup(fd), size

    def forget(self, arena_id: int) -> None:
        """Let go of an arena; it is unmapped when the last view of it dies."""
        self._maps.pop(arena_id, None)
        fd, _ = self._unmapped.pop(arena_id, (None, 0))
        for left in (fd, self._files.pop(arena_id, None)):
            if left is not None:
                os.close(left)

    def close(self) -> None:
        """Let go of every arena; the engine is over."""
        for arena_id in (*self._maps, *self._unmapped):
            self.forget(arena_id)

    def load(self, object_id: int, raw: RawValue) -> UserValue:
        """Return the object that a value, as it came in a message, describes.

        Raises:
            ObjectLostError: It was moved to disk and did not come back as it was.
            MemoryError: This process may not map the arena that it lies in.
        """
        if isinstance(raw, bytes):
            return pickle.loads(raw)
        stream, parts, is_cow, block, checksum = raw
        if block is None:
            pairs = zip(parts, is_cow, strict=True)
            buffers = [bytearray(part) if is_mine else part for part, is_mine in pairs]
            return pickle.loads(stream, buffers=buffers)
        if checksum is not None:
            self._check(object_id, block, checksum)
        root = self._root(object_id, block, True in is_cow)
        layout = self._layouts.get(object_id)
        if layout is not None:
            return layout.array(root.data.toreadonly())
        whole = root.data
        stream, *views = [whole[start : start + length] for start, length in parts]
        pairs = zip(views, is_cow, strict=True)
        buffers = [view if is_mine else view.toreadonly() for view, is_mine in pairs]
        value = pickle.loads(stream, buffers=buffers)
        self._layouts.note(object_id, value, root)
        return value

    def end_loan(self, answer: tuple[Any, ...]) -> None:
        """Note that the values of an answer have been loaded, or never will be.

        The engine lends the views: it keeps each value of an answer where it is until then.
        """
        if answer[0] == "values":
            for object_id, raw in answer[1]:
                if isinstance(raw, tuple) and raw[3] is not None:
                    self._holds.drop(-object_id)

    def block(self, block: tuple[int, int, int]) -> memoryview | None:
        """Return the bytes of a block that nobody holds for us, None if its arena is gone."""
        arena_id, offset, size = block
        arena = self._maps.get(arena_id)
        return None if arena is None else memoryview(arena)[offset : offset + size]

    def _check(self, object_id: int, block: tuple[int, int, int], checksum: int) -> None:
        """Check bytes that were on disk, unless a view shows that it has been done."""
        if object_id in self._lives:
            return
        arena_id, offset, size = block
        fd = self._files.get(arena_id)
        if fd is not None:
            check_spill(fd, offset, size, checksum, name=f"object {object_id:x}")

    def _root(
        self, object_id: int, block: tuple[int, int, int], is_cow: bool
    ) -> np.ndarray[Any, Any]:
        """Return the array under all views of a block; its death is the end of our hold."""
        with self._lock:
            life = self._lives.get(object_id)
            root = None if life is None else life()
            if root is None:
                arena_id, offset, size = block
                arena = self._maps.get(arena_id) or self._map(arena_id)
                root = np.frombuffer(arena, np.uint8, size, offset)
                self._holds.add(-object_id)
                life = self._lives[object_id] = _Life(root, self._end)
                life.object_id = object_id
                life.stale = (arena, offset, round_up(size, to=PAGE)) if is_cow else None
            return root

    def _map(self, arena_id: int) -> mmap.mmap:
        """Map an arena for which there was no memory before."""
        fd, size = self._unmapped[arena_id]
        self._maps[arena_id] = private(fd, size)
        del self._unmapped[arena_id]
        os.close(fd)
        return self._maps[arena_id]

    def _end(self, life: "_Life") -> None:
        """Drop private copies of the block's pages, which must not outlive it, and the hold."""
        with self._lock:
            if self._lives.get(life.object_id) is life:  # nobody has begun to read it anew
                del self._lives[life.object_id]
                if life.stale is not None:
                    arena, offset, size = life.stale
                    arena.madvise(mmap.MADV_DONTNEED, offset, size)
        self._holds.drop(-life.object_id)


class _Life(weakref.ref["np.ndarray[Any, Any]"]):
    """A weak ref to the array under all views of a block."""

    __slots__ = ("object_id", "stale")

    object_id: int
    stale: tuple[mmap.mmap, int, int] | None
    """The pages of which this process may have copies."""
