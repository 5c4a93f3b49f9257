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
from .mapping import is_sealed, private
from .refs import HoldLog, UserValue
from .spill import check_spill
from .value import Block, Value


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
        self._roots: weakref.WeakValueDictionary[int, np.ndarray[Any, Any]]
        self._roots = weakref.WeakValueDictionary()
        self._lock = threading.RLock()  # re-entered by a finalizer that runs inside root()

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

    def load(self, object_id: int, value: Value) -> UserValue:
        """Return the object that ``value`` describes.

        Raises:
            ObjectLostError: It was moved to disk and did not come back as it was.
            MemoryError: This process may not map the arena that it lies in.
        """
        if value.block is None:
            assert value.stream is not None, "an inline value carries its stream"
            parts = zip(value.parts, value.is_cow, strict=True)
            buffers = [bytearray(part) if is_cow else part for part, is_cow in parts]
            return pickle.loads(value.stream, buffers=buffers)
        self._check(object_id, value)
        root = self._root(object_id, Block(*value.block), any(value.is_cow))
        whole = memoryview(root.data)
        stream, *views = (whole[start : start + length] for start, length in value.parts)
        pairs = zip(views, value.is_cow, strict=True)
        buffers = [view if is_cow else view.toreadonly() for view, is_cow in pairs]
        return pickle.loads(stream, buffers=buffers)

    def end_loan(self, answer: tuple[Any, ...]) -> None:
        """Note that the values of an answer have been loaded, or never will be.

        The engine lends the views: it keeps each value of an answer where it is until then.
        """
        if answer[0] == "values":
            for object_id, raw in answer[1]:
                if Value(*raw).block is not None:
                    self._holds.drop(-object_id)

    def block(self, block: tuple[int, int, int]) -> memoryview | None:
        """Return the bytes of a block that nobody holds for us, None if its arena is gone."""
        arena_id, offset, size = block
        arena = self._maps.get(arena_id)
        return None if arena is None else memoryview(arena)[offset : offset + size]

    def _check(self, object_id: int, value: Value) -> None:
        """Check bytes that were on disk, unless a view shows that it has been done."""
        if value.checksum is None or value.block is None or object_id in self._roots:
            return
        arena_id, offset, size = value.block
        fd = self._files.get(arena_id)
        if fd is not None:
            check_spill(fd, offset, size, value.checksum, name=f"object {object_id:x}")

    def _root(self, object_id: int, block: Block, is_cow: bool) -> np.ndarray[Any, Any]:
        """Return the array under all views of a block; its death is the end of our hold."""
        with self._lock:
            root = self._roots.get(object_id)
            if root is not None:
                return root
            arena = self._arena(block.arena)
            root = np.frombuffer(arena, np.uint8, block.size, block.offset)
            self._holds.add(-object_id)
            self._roots[object_id] = root
            stale = arena if is_cow else None
            end = weakref.finalize(root, self._release, object_id, block, stale)
            end.atexit = False
            return root

    def _arena(self, arena_id: int) -> mmap.mmap:
        if arena_id in self._unmapped:
            fd, size = self._unmapped[arena_id]
            self._maps[arena_id] = private(fd, size)
            del self._unmapped[arena_id]
            os.close(fd)
        return self._maps[arena_id]

    def _release(self, object_id: int, block: Block, stale: mmap.mmap | None) -> None:
        """Drop private copies of the block's pages, which must not outlive it, and the hold."""
        with self._lock:
            if stale is not None and self._roots.get(object_id) is None:
                size = round_up(block.size, to=PAGE)
                stale.madvise(mmap.MADV_DONTNEED, block.offset, size)
        self._holds.drop(-object_id)
