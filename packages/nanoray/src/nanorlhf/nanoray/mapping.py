"""Arenas as mappings: shared and writable for the one process that makes them, private elsewhere.

A reader's pages are the shared ones until it writes, and then a copy that only it sees.
"""

import errno
import fcntl
import mmap
import os

_F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h; the fcntl module has it from 3.13 on
_MAP_NORESERVE = 0x4000  # linux/mman.h; private copies are the exception, do not budget for all


def new_arena(size: int) -> tuple[int, mmap.mmap]:
    """Return a new sealed file in memory, and the only writable shared mapping of it ever.

    Raises:
        MemoryError: This process may not map so much.
    """
    fd = os.memfd_create("nanoray", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        mapped = _mapped(fd, size, flags=mmap.MAP_SHARED)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd, mapped


def private(fd: int, size: int) -> mmap.mmap:
    """Return a private mapping of somebody's arena, or of a file on disk.

    Raises:
        MemoryError: This process may not map so much.
    """
    return _mapped(fd, size, flags=mmap.MAP_PRIVATE | _MAP_NORESERVE)


def is_sealed(fd: int) -> bool:
    """Return whether a file is a writer's arena, which cannot shrink under its readers."""
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:  # only files in memory have seals
        return False


def _mapped(fd: int, size: int, *, flags: int) -> mmap.mmap:
    try:
        return mmap.mmap(fd, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise MemoryError(
            f"out of memory: process {os.getpid()} cannot map an arena of {size} bytes; "
            f"drop views of other objects, or raise the process's limit (ulimit -v)"
        ) from error
