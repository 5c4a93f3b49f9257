"""Files that are there as a whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
