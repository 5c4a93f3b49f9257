"""Copies of large buffers that go past the processor's cache.

An ordinary copy reads each line of its target into the cache before it overwrites it: three
times the buffer crosses the memory bus, and what the caches held is gone. Whoever writes a
hundred megabytes for another process to read does better with stores that leave the cache out,
and with loads that ask a page ahead: it takes some 40 % less time, on one core. The C library has
such a copy, but uses it from a size on that it derives from the caches, on a virtual machine
often one of hundreds of megabytes; numpy has none. So here are the few instructions, which every
x86-64 processor has; on others numpy copies.
"""

import ctypes
import functools
import mmap
import os
import platform
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BULK_BYTES = 16 << 20
"""From this size on: a smaller value may still be in the cache when another process reads it."""

_LINE = 64
_X86_64 = bytes.fromhex(
    # System V ABI: target in rdi, a whole line; source in rsi; bytes in rdx, whole lines and > 0.
    "f3 0f 1e fa"  # endbr64
    "0f 18 86 00 10 00 00"  # again: prefetchnta [rsi + 4096]; never faults
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
    "75 c5"  # jnz again
    "0f ae f8"  # sfence: all is written before whoever is told of it may read
    "c3"  # ret
)


def copy(target: Array, source: Array) -> None:
    """Copy the bytes of ``source``, uint8 [n], to ``target``, uint8 [n]; both lie in one piece."""
    copy_lines = _line_copier() if source.size >= BULK_BYTES else None
    if copy_lines is None:
        target[:] = source
        return
    begin = -target.ctypes.data % _LINE
    end = begin + (source.size - begin) // _LINE * _LINE
    copy_lines(target.ctypes.data + begin, source.ctypes.data + begin, end - begin)
    target[:begin], target[end:] = source[:begin], source[end:]


class _Routine:
    """Machine code as a function of two addresses and a size. A call releases Python's lock.

    Raises:
        PermissionError: The machine's policy lets no program bring code of its own.
    """

    def __init__(self, code: bytes) -> None:
        fd = os.memfd_create("nanoray-code", os.MFD_CLOEXEC)
        try:
            os.write(fd, code)
            # From a file, so that no page is ever both written and run.
            prot = mmap.PROT_READ | mmap.PROT_EXEC
            self._page = mmap.mmap(fd, len(code), flags=mmap.MAP_PRIVATE, prot=prot)
        finally:
            os.close(fd)
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        self._run = kind(np.frombuffer(self._page, np.uint8).ctypes.data)

    def __call__(self, target: int, source: int, size: int) -> None:
        self._run(target, source, size)


@functools.cache
def _line_copier() -> _Routine | None:
    """Return what copies whole lines, or None where ordinary copies have to do."""
    if platform.machine() != "x86_64" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    try:
        return _Routine(_X86_64)
    except PermissionError:
        return None
