"""Files that are there as a whole or not at all; or what somebody has open."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO, TextIO

Target = str | Path | BinaryIO
"""A path, or a file that is open for writing bytes and stays open."""


@contextmanager
def replacing(path: str | Path) -> Iterator[str]:
    """Give a path to write to, which takes the place of ``path`` when all went well.

    Raises:
        IsADirectoryError: ``path`` is a directory.
    """
    target = os.path.abspath(path)
    if os.path.isdir(target):
        raise IsADirectoryError(f"{path} is a directory; name a file in it")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    # The suffix stays at the end: some writers go by it.
    folder, name = os.path.split(target)
    part = os.path.join(folder, f".{os.getpid()}.{os.urandom(4).hex()}.{name}")
    try:
        yield part
        os.replace(part, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(part)
        raise


@contextmanager
def replacing_bytes(target: Target) -> Iterator[BinaryIO]:
    """Give a file to write bytes to, as ``replacing``; an open one as it is."""
    if not isinstance(target, str | os.PathLike):
        yield target
        return
    with replacing(target) as part, open(part, "wb") as handle:
        yield handle


@contextmanager
def replacing_text(target: Target) -> Iterator[TextIO]:
    """Give a file to write UTF-8 to, as ``replacing_bytes``; line ends stay as they are written."""
    with replacing_bytes(target) as raw:
        text = TextIOWrapper(raw, encoding="utf-8", newline="")
        try:
            yield text
        finally:
            text.detach()  # which flushes, and leaves the file to its owner
