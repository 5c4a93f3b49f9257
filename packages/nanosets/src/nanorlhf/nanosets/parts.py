"""Files that a result is made of: written by workers, gone when the last dataset over them is."""

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from pathlib import Path

from .blocks import Range
from .calls import Block
from .column import Column
from .convert import all_null
from .errors import SchemaError
from .reader import File
from .types import DType, unify
from .workers import Done, Share
from .writer import Writer

PART_CHUNK_ROWS = 4096
"""Rows of a chunk of a part at most, whole batches where they fit: a few MiB, which the processor's
cache still holds when they are written, and the C library keeps for the next chunk and does not
give back to the system."""


def folder_for(output: str | Path | None) -> str:
    """Make a folder for parts: beside ``output``, or where the system keeps temporary files."""
    from tempfile import mkdtemp  # it and shutil take 10 ms that one process never needs

    if output is None:
        return mkdtemp(prefix="nanosets-")
    path = os.path.abspath(output)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return mkdtemp(prefix=f"{os.path.basename(path)}.parts.", dir=os.path.dirname(path))


def discard(folder: str) -> None:
    """Remove a folder for parts with all that is in it."""
    from shutil import rmtree

    rmtree(folder)


def write_part(make: Callable[[Range], Block], share: Share, done: Done) -> bool:
    """Write the new columns of a share to its part; return whether there are any.

    Raises:
        ValueError: The function returned None for some ranges only.
    """

    def blocks() -> Iterator[Block]:
        for rows in share.ranges:
            yield make(rows)
            done(rows)

    return write_blocks(share.part, blocks(), share.ranges)


def write_blocks(path: str, blocks: Iterable[Block], ranges: Sequence[Range]) -> bool:
    """Write new columns to a file as they are made; return whether there are any.

    Args:
        path: The file.
        blocks: What the function made of each range.
        ranges: The ranges, at least one.

    Raises:
        ValueError: There are none for some ranges only.
    """
    found = []
    # The file is gone before the machine is; chunks are small, so that blocks are soon let go.
    with Writer(path, sync=False, chunk_rows=_chunk_rows(ranges)) as writer:
        for block in blocks:
            found.append(block.rows is not None)
            if block.rows is not None:
                writer.write_table(block.rows)
    check_all_or_none(found)
    return any(found)


def _chunk_rows(ranges: Sequence[Range]) -> int:
    """Return the rows of a chunk: whole ranges if it can be, as a block that is cut costs more."""
    size = ranges[0].stop - ranges[0].start
    return PART_CHUNK_ROWS // size * size or PART_CHUNK_ROWS


def check_all_or_none(found: Sequence[bool]) -> None:
    """Refuse a function that makes columns of some ranges and returns None for others.

    Raises:
        ValueError: ``found`` is mixed.
    """
    if any(found) and not all(found):
        raise ValueError("the function returned None for some rows only; return columns for all")


def opened(paths: Sequence[str], *, empty: bool) -> dict[str, Column]:
    """Return the columns of all parts, one part after another; the files go when these do.

    A column that some part lacks is null there, and parts of narrower types are widened in memory.

    Args:
        paths: The files, in one folder.
        empty: Nothing was written to them; there are no columns.

    Raises:
        SchemaError: A column has types in two parts that no one type holds.
    """
    files = [_temporary(path) for path in paths]
    if empty:
        return {}
    names = dict.fromkeys(name for file in files for name in file.schema)
    return {name: _joined(name, files) for name in names}


def _temporary(path: str) -> File:
    file = File(path)
    weakref.finalize(file, remove, path, os.getpid())
    return file


def remove(path: str, owner: int) -> None:
    """Remove a part, and its folder when it was the last; a fork of the owner removes nothing."""
    if os.getpid() != owner:
        return
    try:
        os.unlink(path)
        os.rmdir(os.path.dirname(path))
    except OSError:
        return  # the folder holds other parts, or someone tidied up before


def _joined(name: str, files: Sequence[File]) -> Column:
    dtype: DType = reduce(
        lambda a, b: unify(a, b, field=name),
        (file.schema[name] for file in files if name in file.schema),
    )
    columns = [_as(file, name, dtype) for file in files]
    return Column(dtype, [part for column in columns for part in column.parts])


def _as(file: File, name: str, dtype: DType) -> Column:
    if name not in file.schema:
        return Column.of(all_null(dtype, file.footer.rows))
    try:
        return Column.of_file(file, name).converted(dtype, field=name)
    except SchemaError as error:
        raise SchemaError(error.field, f"parts differ: {error.problem}") from None
