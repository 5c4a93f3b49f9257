"""Objects on disk: how blocks are written to a file and how they are checked when they come back.

A spill file has no name: it is a file of the spill directory only as long as some process has it
open. So nothing needs to be cleaned up after a SIGKILL or a crash, nobody else can open it, and
the engine treats it like any arena: it holds one descriptor, passes it on, and closes it with the
last value in it. Readers map the file, as they map an arena: a spilled value is read without a
copy and takes no room in the store, for the kernel may drop its pages at any time.
"""

import os
import tempfile
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from .blocks import PAGE, round_up
from .errors import ObjectLostError

_STEP = 4 << 20
_VAR_TMP = "/var/tmp"  # on disk by the Filesystem Hierarchy Standard; /tmp often is memory


class SpillFile(NamedTuple):
    """A finished file; whoever made it closes it."""

    fd: int
    size: int
    places: list[tuple[int, int, int]]
    """Object, offset and checksum."""


def spill_directory(given: str | None) -> str:
    """Return the directory for spilled objects, ``given`` or one of this machine.

    Raises:
        ValueError: It is no directory, or may not be written to.
    """
    if given is None:
        given = _VAR_TMP if os.access(_VAR_TMP, os.W_OK | os.X_OK) else tempfile.gettempdir()
    path = os.path.abspath(given)
    if not os.path.isdir(path) or not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(
            f"object_spilling_directory={given!r} is no directory this process may write to; "
            f"create it or name another one on a disk with room"
        )
    return path


def write_spill(directory: str, blocks: Iterable[tuple[int, memoryview]]) -> SpillFile:
    """Copy the blocks of objects to a new file.

    Raises:
        OSError: The disk is full or broken.
    """
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        places, end = [], 0
        for object_id, block in blocks:
            places.append((object_id, end, _copy(block, file.fileno(), end)))
            end = round_up(end + block.nbytes, to=PAGE)
        os.ftruncate(file.fileno(), end)  # a mapping ends with a whole page
        return SpillFile(os.dup(file.fileno()), end, places)


def check_spill(fd: int, offset: int, size: int, checksum: int, *, name: str) -> None:
    """Read a block, so that a broken disk is an error here and not a SIGBUS in a mapping.

    Raises:
        ObjectLostError: The bytes cannot be read or are not those that were written.
    """
    found, end = 0, offset + size
    buffer = bytearray(min(_STEP, size))
    try:
        while offset < end:
            with memoryview(buffer) as view, view[: end - offset] as step:
                count = os.preadv(fd, [step], offset)
                if not count:
                    raise OSError(f"the file ends at byte {offset}")
                found, offset = zlib.crc32(step[:count], found), offset + count
    except OSError as error:
        raise ObjectLostError(f"{name} cannot be read back from its spill file: {error}") from error
    if found != checksum:
        raise ObjectLostError(f"{name} was damaged in its spill file; check the disk and its cable")


def _copy(block: memoryview, fd: int, offset: int) -> int:
    """Write a block; return its checksum."""
    checksum = 0
    for start in range(0, block.nbytes, _STEP):
        step = block[start : start + _STEP]
        checksum = zlib.crc32(step, checksum)
        while step:
            count = os.pwrite(fd, step, offset)
            step, offset = step[count:], offset + count
    return checksum
