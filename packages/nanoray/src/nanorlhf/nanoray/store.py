"""The shared-memory store: each process writes its own arenas, everyone may read all of them.

An arena is a memfd: no name and no quota, gone with the last process that maps it, so nothing is
left behind by a SIGKILL. Its writer maps it shared and then seals it, so that the kernel refuses
anyone else a writable shared mapping. Readers map it privately: their pages are the shared ones
until they write, and then a copy that only they see.

First touch of a page costs ten times the copy into it, so freed blocks are reused, and a few
empty arenas are kept warm.
"""

import fcntl
import mmap
import os
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from .blocks import PAGE, Blocks, round_up
from .refs import HoldLog, UserValue
from .value import INLINE_BYTES, Block, Pickled, Value, inline

_ARENA_BYTES = 64 << 20
_KEEP_BYTES = 256 << 20  # or as much as the largest value: who publishes weights does so again
_ALIGN = 64
_F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h; the fcntl module has it from 3.13 on
_MAP_NORESERVE = 0x4000  # linux/mman.h; private copies are the exception, do not budget for all


class _Arena:
    def __init__(self, size: int) -> None:
        self.fd = os.memfd_create("nanoray", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        self.bytes = np.frombuffer(mmap.mmap(self.fd, size), np.uint8)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        self.size = size
        self.blocks = Blocks(size)


class Writer:
    """Places this process's large values. Thread-safe.

    Args:
        announce: Called as ``announce(arena_id, size, fd)`` before a new arena's first use.
        retire: Called as ``retire(arena_id)`` when an arena is given back.
        next_id: Returns numbers unique in the engine.
    """

    def __init__(
        self,
        announce: Callable[[int, int, int], None],
        retire: Callable[[int], None],
        *,
        next_id: Callable[[], int],
    ) -> None:
        self._announce, self._retire, self._next_id = announce, retire, next_id
        self._arenas: dict[int, _Arena] = {}
        self._largest = 0
        self._lock = threading.Lock()

    def write(self, pickled: Pickled) -> Value:
        """Return the value, inline when it is small and in shared memory otherwise."""
        if pickled.size <= INLINE_BYTES:
            return inline(pickled)
        parts, size = [], 0
        for length in (pickled.stream_size, *(buffer.nbytes for buffer in pickled.buffers)):
            parts.append((size, length))
            size += round_up(length, to=_ALIGN)
        block = self._take(size)
        target = self._arenas[block.arena].bytes[block.offset :]
        start = 0
        for chunk in pickled.chunks:
            target[start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)
            start += len(chunk)
        for source, (start, length) in zip(pickled.buffers, parts[1:], strict=True):
            target[start : start + length] = np.frombuffer(source, np.uint8)
        return Value(None, tuple(parts), pickled.is_cow, (block.arena, block.offset, block.size))

    def reserve(self, size: int) -> tuple[Block, memoryview]:
        """Return a new block and its bytes, for a copy that comes from elsewhere."""
        block = self._take(size)
        return block, self._arenas[block.arena].bytes.data[block.offset : block.offset + size]

    def free(self, arena_id: int, offset: int) -> None:
        """Take a block back; nobody reads it any more."""
        with self._lock:
            self._arenas[arena_id].blocks.give(offset)
            surplus = self._surplus()
        for arena in surplus:
            self._retire(arena)

    @property
    def used_bytes(self) -> int:
        """Bytes of shared memory that live values of this process take."""
        with self._lock:
            return sum(arena.blocks.used_bytes for arena in self._arenas.values())

    def close(self) -> None:
        """Close every arena; what others have mapped stays theirs."""
        with self._lock:
            for arena in self._arenas.values():
                os.close(arena.fd)
            self._arenas.clear()

    def _take(self, size: int) -> Block:
        with self._lock:
            for arena_id, arena in self._arenas.items():
                offset = arena.blocks.take(size)
                if offset is not None:
                    return Block(arena_id, offset, size)
        # Announced before anyone else can see it, and without the lock: the engine takes its own.
        arena_id, arena = self._next_id(), _Arena(max(_ARENA_BYTES, round_up(size, to=PAGE)))
        offset = arena.blocks.take(size)
        assert offset is not None, "a new arena holds the block it was made for"
        self._announce(arena_id, arena.size, arena.fd)
        with self._lock:
            self._largest = max(self._largest, arena.size)
            self._arenas[arena_id] = arena
        return Block(arena_id, offset, size)

    def _surplus(self) -> list[int]:
        """Close empty arenas beyond what is kept warm; return their ids."""
        empty = [(a.size, i) for i, a in self._arenas.items() if a.blocks.is_empty]
        kept, surplus = 0, []
        for size, arena_id in sorted(empty):
            kept += size
            if kept > max(_KEEP_BYTES, self._largest):
                os.close(self._arenas.pop(arena_id).fd)
                surplus.append(arena_id)
        return surplus


class Reader:
    """Rebuilds values without copying their buffers. Thread-safe.

    Arrays come back read-only. The block of a value is held until the last view of it in this
    process dies. One process sees one copy of an object, however often it reads it.
    """

    def __init__(self, holds: HoldLog) -> None:
        self._holds = holds
        self._maps: dict[int, mmap.mmap] = {}
        self._roots: weakref.WeakValueDictionary[int, np.ndarray[Any, Any]]
        self._roots = weakref.WeakValueDictionary()
        self._lock = threading.RLock()  # re-entered by a finalizer that runs inside root()

    def adopt(self, arena_id: int, size: int, fd: int) -> None:
        """Map an arena; the caller keeps ``fd``."""
        flags, prot = mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        self._maps[arena_id] = mmap.mmap(fd, size, flags=flags, prot=prot)

    def forget(self, arena_id: int) -> None:
        """Let go of an arena; it is unmapped when the last view of it dies."""
        self._maps.pop(arena_id, None)

    def close(self) -> None:
        """Let go of every arena; the engine is over."""
        self._maps.clear()

    def load(self, object_id: int, value: Value) -> UserValue:
        """Return the object that ``value`` describes."""
        if value.block is None:
            assert value.stream is not None, "an inline value carries its stream"
            parts = zip(value.parts, value.is_cow, strict=True)
            buffers = [bytearray(part) if is_cow else part for part, is_cow in parts]
            return pickle.loads(value.stream, buffers=buffers)
        root = self._root(object_id, Block(*value.block), any(value.is_cow))
        whole = memoryview(root.data)
        stream, *views = (whole[start : start + length] for start, length in value.parts)
        pairs = zip(views, value.is_cow, strict=True)
        buffers = [view if is_cow else view.toreadonly() for view, is_cow in pairs]
        return pickle.loads(stream, buffers=buffers)

    def _root(self, object_id: int, block: Block, is_cow: bool) -> np.ndarray[Any, Any]:
        """Return the array under all views of a block; its death is the end of our hold."""
        with self._lock:
            root = self._roots.get(object_id)
            if root is not None:
                return root
            arena = self._maps[block.arena]
            root = np.frombuffer(arena, np.uint8, block.size, block.offset)
            self._holds.add(object_id)
            self._roots[object_id] = root
            stale = arena if is_cow else None
            end = weakref.finalize(root, self._release, object_id, block, stale)
            end.atexit = False
            return root

    def _release(self, object_id: int, block: Block, stale: mmap.mmap | None) -> None:
        """Drop private copies of the block's pages, which must not outlive it, and the hold."""
        with self._lock:
            if stale is not None and self._roots.get(object_id) is None:
                size = round_up(block.size, to=PAGE)
                stale.madvise(mmap.MADV_DONTNEED, block.offset, size)
        self._holds.drop(object_id)
