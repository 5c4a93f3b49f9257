"""Copies of large buffers that go past the processor's cache.

An ordinary copy reads each line of its target into the cache before it overwrites it: three
times the buffer crosses the memory bus, and what the caches held is gone. Whoever writes a
hundred megabytes for another process to read does better with stores that leave the cache out,
and with loads that ask a page ahead. Stores wait, too, at each page until its address is looked
up, unless one of its lines was asked for in time. The C library has such a copy, but uses it from
a size on that it derives from the caches, on a virtual machine often one of hundreds of
megabytes; numpy has none. So here are the few instructions, which every x86-64 processor has; on
others numpy copies.

One thread copies: it nearly fills the link to memory by itself. A second one on another core made
nothing faster that could be measured, and the copy wait for it wherever that core had other work.
"""

import ctypes
import mmap
import platform
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BULK_BYTES = 16 << 20
"""Values from this size on: a smaller one may still be in the cache when it is read elsewhere."""
_PART_BYTES = 64 << 10
"""Smaller parts of a large value are not worth a foreign call."""

_LINE = 64
_X86_64 = bytes.fromhex(
    # System V ABI: target in rdi, a whole line; source in rsi; bytes in rdx, whole lines and > 0.
    "f3 0f 1e fa"  # endbr64
    "f7 c7 ff 0f 00 00"  # again: test edi, 4095
    "75 07"  # jnz within
    "0f 18 87 00 20 00 00"  # prefetchnta [rdi + 8192]: one line brings the address of its page
    "0f 18 86 00 10 00 00"  # within: prefetchnta [rsi + 4096]; neither ever faults
    "f3 0f 6f 06"  # movdqu xmm0, [rsi]
    "f3 0f 6f 4e 10"  # movdqu xmm1, [rsi + 16]
    "f3 0f 6f 56 20"  # movdqu xmm2, [rsi + 32]
    "f3 0f 6f 5e 30"  # movdqu xmm3, [rsi + 48]
    "66 0f e7 07"  # movntdq [rdi], xmm0
    "66 0f e7 4f 10"  # movntdq [rdi + 16], xmm1
    "66 0f e7 57 20"  # movntdq [rdi + 32], xmm2
    "66 0f e7 5f 30"  # movntdq [rdi + 48], xmm3
    "48 83 c6 40"  # add rsi, 64
    "48 83 c7 40"  # add rdi, 64
    "48 83 ea 40"  # sub rdx, 64
    "75 b6"  # jnz again
    "0f ae f8"  # sfence: all is written before whoever is told of it may read
    "c3"  # ret
)


def copier(size: int) -> Callable[[Array, Array], None]:
    """Return what copies the parts of a value of ``size`` bytes, as ``copy(target, source)``.

    Both are uint8 [n], each in one piece, and do not overlap.
    """
    routine = _line_copier() if size >= BULK_BYTES else None
    return _copy if routine is None else partial(_copy_past_cache, routine)


def _copy(target: Array, source: Array) -> None:
    target[:] = source


def _copy_past_cache(routine: "_Routine", target: Array, source: Array) -> None:
    if source.size < _PART_BYTES:
        target[:] = source
        return
    begin = -target.ctypes.data % _LINE
    end = begin + (source.size - begin) // _LINE * _LINE
    routine(target.ctypes.data + begin, source.ctypes.data + begin, end - begin)
    target[:begin], target[end:] = source[:begin], source[end:]


class _Routine:
    """Machine code as a function of two addresses and a size. A call releases Python's lock.

    Raises:
        PermissionError: The machine's policy lets no program bring code of its own.
    """

    def __init__(self, code: bytes) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._page.write(code)
        address = np.frombuffer(self._page, np.uint8).ctypes.data
        # From here on it can be run and no longer be written.
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        if protect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC):
            raise PermissionError(ctypes.get_errno(), "a page of code cannot be made executable")
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        self._run = kind(address)

    def __call__(self, target: int, source: int, size: int) -> None:
        self._run(target, source, size)


@cache
def _line_copier() -> _Routine | None:
    """Return what copies whole lines, or None where ordinary copies have to do."""
    if platform.machine() != "x86_64" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    try:
        return _Routine(_X86_64)
    except PermissionError:
        return None
