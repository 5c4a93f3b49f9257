"""Where the bytes of a file go while it is written, and how they become the file.

A new file is ``<path>.tmp.<pid>.<random>`` until it is whole and on the disk, and is then renamed
to ``path``. An append goes behind the end of ``path`` and counts once the header says so. Either
way, whatever happens to the process, ``path`` reads as it was before or after.

The file that is written is locked, so that two appends do not meet, and so that the next writer
can tell the rest of a killed one, which it removes, from that of one at work.
"""

import fcntl
import os
from glob import escape, glob
from typing import Any

from .coded import Vocabulary
from .format import COMMITTED_AT, encode_committed, encode_header
from .reader import File
from .sink import Encoding, Sink
from .types import Schema


class NewFile(Sink):
    """A file that takes the place of ``target`` when it is whole."""

    def __init__(self, target: str, encoding: Encoding, *, sync: bool = True) -> None:
        path = f"{target}.tmp.{os.getpid()}.{os.urandom(4).hex()}"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        fcntl.flock(file, fcntl.LOCK_EX)
        super().__init__(file, path, encoding, at=0, sync=sync)
        self.target = target
        self._put(memoryview(encode_header(os.urandom(16))))

    def finish(self, schema: Schema, metadata: dict[str, Any]) -> None:
        """Make the file whole and put it in place."""
        self.seal(schema, metadata)
        os.replace(self.path, self.target)
        self.close()
        if self._syncs:
            sync_directory(os.path.dirname(self.target))

    def discard(self) -> None:
        """Drop the file."""
        os.unlink(self.path)
        self.close()


class Appended(Sink):
    """More chunks behind those of a file.

    Attributes:
        before: The file as it was.

    Raises:
        CorruptFileError: The file is damaged.
        OSError: It cannot be opened, or another writer appends to it.
    """

    def __init__(self, path: str, *, sync: bool = True) -> None:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            _lock(file, path)
            self.before = before = File(path)
            footer = before.footer
            encoding = Encoding(footer.checksum, footer.compression)
            super().__init__(file, path, encoding, at=before.end, sync=sync)
            self._entries = list(before.entries)
            self._vocabularies = [
                Vocabulary(before.values(number)) for number in range(len(footer.dictionaries))
            ]
        except BaseException:
            os.close(file)
            raise
        self.rows = footer.rows
        # From here on bytes behind the end do not count, whether they are ours or left over.
        self._commit(before.end)
        os.ftruncate(file, before.end)

    def _commit(self, size: int) -> None:
        self.sync()
        os.pwrite(self._file, encode_committed(size), COMMITTED_AT)
        self.sync()

    def finish(self, schema: Schema, metadata: dict[str, Any]) -> None:
        """Make the appended chunks count.

        Raises:
            OSError: Another file has taken the place of this one.
        """
        self.seal(schema, metadata)
        ours, there = os.fstat(self._file), os.stat(self.path)
        if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
            raise OSError(f"{self.path} was replaced while rows were appended to it; append again")
        self._commit(self._slabs.at)
        self.close()

    def discard(self) -> None:
        """Drop what was appended."""
        os.ftruncate(self._file, self.before.end)
        self.close()


def _lock(file: int, path: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(f"{path} is being appended to; wait for that writer") from None


def remove_leftovers(target: str) -> None:
    """Remove what killed writers of ``target`` left behind."""
    for path in glob(f"{escape(target)}.tmp.*.*"):
        pid = path[len(target) :].split(".")[2]
        if pid.isdigit() and not _is_alive(int(pid)):
            _unlink_unlocked(path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _unlink_unlocked(path: str) -> None:
    """Remove a file, unless its writer lives on another machine and so still holds the lock."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        os.close(file)


def sync_directory(path: str) -> None:
    """Bring a rename to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
