"""The shared-memory store as it is written: each process writes its own arenas.

An arena is a memfd: no name and no quota, gone with the last process that maps it, so nothing is
left behind by a SIGKILL. Its writer maps it shared and then seals it, so that the kernel refuses
anyone else a writable shared mapping. Readers (``views.py``) map it privately.

First touch of a page costs ten times the copy into it, so freed blocks are reused, and a few
empty arenas are kept warm. What a process may write at all is granted by the engine (``room.py``).
"""

import os
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np

from .blocks import Blocks, block_bytes, round_up
from .bulk import copier
from .mapping import new_arena
from .value import INLINE_BYTES, Block, Pickled, Value, inline
from .wire import Message

_ARENA_BYTES = 64 << 20
_KEEP_BYTES = 256 << 20  # or as much as the largest value: who publishes weights does so again
_ALIGN = 64


class _Arena:
    def __init__(self, size: int) -> None:
        self.fd, mapped = new_arena(size)
        self.bytes = np.frombuffer(mapped, np.uint8)
        self.size = size
        self.blocks = Blocks(size)


class Link(Protocol):
    """What a writer asks of the engine. No lock is held in any of these."""

    def next_id(self) -> int:
        """Return a number unique in the engine."""
        ...

    def announce(self, arena_id: int, size: int, fd: int) -> None:
        """Tell of a new arena before its first use; ``fd`` stays open."""
        ...

    def more(self, size: int, missing: Callable[[], int]) -> int:
        """Return how much more may be written for a value of ``size``.

        ``missing()`` says what the grant is short of at the moment, for blocks may come back
        meanwhile. May return less, even 0: look again.

        Raises:
            StoreFullError: There is no room, and none came in time.
        """
        ...

    def give_back(self, arena_ids: list[int], size: int) -> None:
        """Tell of closed arenas, and of how much less may be written from now on."""
        ...


class Writer:
    """Places this process's large values, within what it was granted. Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._arenas: dict[int, _Arena] = {}
        self._largest = 0
        self._granted = self._used = 0
        self._lock = threading.Lock()

    def write(self, pickled: Pickled) -> Value:
        """Return the value, inline when it is small and in shared memory otherwise.

        Raises:
            StoreFullError: It does not fit.
        """
        if pickled.size <= INLINE_BYTES:
            return inline(pickled)
        parts, size = [], 0
        for length in (pickled.stream_size, *(buffer.nbytes for buffer in pickled.buffers)):
            parts.append((size, length))
            size += round_up(length, to=_ALIGN)
        block = self._take(size)
        target, copy = self._arenas[block.arena].bytes[block.offset :], copier(size)
        start = 0
        for chunk in pickled.chunks:
            copy(target[start : start + len(chunk)], np.frombuffer(chunk, np.uint8))
            start += len(chunk)
        for source, (start, length) in zip(pickled.buffers, parts[1:], strict=True):
            copy(target[start : start + length], np.frombuffer(source, np.uint8))
        return Value(None, tuple(parts), pickled.is_cow, (block.arena, block.offset, block.size))

    def take(self, message: Message) -> None:
        """Do what a message of the engine says: free a block, or trim."""
        if message[0] == "free":
            self.free(message[1], message[2])
        else:
            self.trim()

    def reserve(self, size: int) -> tuple[Block, memoryview]:
        """Return a new block and its bytes, for a copy that comes from elsewhere."""
        block = self._take(size)
        return block, self._arenas[block.arena].bytes.data[block.offset : block.offset + size]

    def free(self, arena_id: int, offset: int) -> None:
        """Take a block back; nobody reads it any more."""
        with self._lock:
            self._used -= self._arenas[arena_id].blocks.give(offset)
            keep = max(_KEEP_BYTES, self._largest)
            closed = self._close_empty(keep)
            spare = self._take_spare(keep) if closed else 0
        if closed:
            self._link.give_back(closed, spare)

    def trim(self) -> None:
        """Give back all that is not used: somebody else needs it."""
        with self._lock:
            closed, spare = self._close_empty(0), self._take_spare(0)
        if closed or spare:
            self._link.give_back(closed, spare)

    def discard(self, value: Value) -> None:
        """Take back a value that was written and is not sent to anybody after all."""
        if value.block is not None:
            self.free(value.block[0], value.block[1])

    @property
    def used_bytes(self) -> int:
        """Bytes of shared memory that live values of this process take."""
        return self._used

    def close(self) -> None:
        """Close every arena; what others have mapped stays theirs."""
        with self._lock:
            for arena in self._arenas.values():
                os.close(arena.fd)
            self._arenas.clear()

    def _take(self, size: int) -> Block:
        self._reserve(block_bytes(size))
        with self._lock:
            for arena_id, arena in self._arenas.items():
                offset = arena.blocks.take(size)
                if offset is not None:
                    return Block(arena_id, offset, size)
        try:
            return self._take_new(size)
        except BaseException:
            with self._lock:
                self._used -= block_bytes(size)
            raise

    def _take_new(self, size: int) -> Block:
        """Return a block of a new arena."""
        arena_id, arena = self._link.next_id(), _Arena(max(_ARENA_BYTES, block_bytes(size)))
        offset = arena.blocks.take(size)
        assert offset is not None, "a new arena holds the block it was made for"
        # Announced before anyone else can see it, and without the lock: the engine takes its own.
        self._link.announce(arena_id, arena.size, arena.fd)
        with self._lock:
            self._largest = max(self._largest, arena.size)
            self._arenas[arena_id] = arena
        return Block(arena_id, offset, size)

    def _reserve(self, size: int) -> None:
        """Count a block against the grant, which is raised if it has to be."""
        while True:
            with self._lock:
                if self._missing(size) <= 0:
                    self._used += size
                    return
            grant = self._link.more(size, lambda: self._missing(size))
            with self._lock:
                self._granted += grant

    def _missing(self, size: int) -> int:
        return size - (self._granted - self._used)

    def _close_empty(self, keep: int) -> list[int]:
        """Close empty arenas beyond the bytes to keep warm; return their ids."""
        empty = [(a.size, i) for i, a in self._arenas.items() if a.blocks.is_empty]
        kept, closed = 0, []
        for size, arena_id in sorted(empty):
            kept += size
            if kept > keep:
                os.close(self._arenas.pop(arena_id).fd)
                closed.append(arena_id)
        return closed

    def _take_spare(self, keep: int) -> int:
        """Take from the grant what is not used, but for ``keep``; return how much that was."""
        spare = max(0, self._granted - self._used - keep)
        self._granted -= spare
        return spare
