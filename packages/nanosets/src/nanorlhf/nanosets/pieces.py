"""Tables end to end that are never joined: cut into chunks, and their buffers in pieces."""

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Buffer, Numbers
from .convert import concat, concat_validity
from .nested import Bytes, Lists, Structs

PIECE_BYTES = 64 << 10
"""Mean bytes of pieces up to which it costs less to join them than to handle each."""

Pieces = Sequence[NDArray[Any]] | None
"""A buffer, end to end; None for an absent one."""


def cut(tables: Sequence[Structs], rows: int) -> Iterator[list[Structs]]:
    """Yield tables end to end, cut into pieces anew after every ``rows`` rows.

    >>> from .build import columns
    >>> some = [columns({"a": [1, 2, 3]}), columns({"a": [4, 5]})]
    >>> [[piece.length for piece in pieces] for pieces in cut(some, 2)]
    [[2], [1, 1], [1]]
    """
    found: list[Structs] = []
    room = rows
    for table in tables:
        edges = [0, *range(room, table.length, rows), table.length] if table.length else []
        for start, stop in pairwise(edges):
            found.append(table if stop - start == table.length else table.window(0, start, stop))
            room -= stop - start
            if not room:
                yield found
                found, room = [], rows
    if found:
        yield found


def buffers_of(arrays: Sequence[Array]) -> Iterator[Pieces]:
    """Yield the buffers, in file order, that ``concat`` of compact arrays of one type has.

    Args:
        arrays: At least one; without dictionaries if there are several.

    Raises:
        SchemaError: Elements are too many for their offsets.

    >>> from .build import build
    >>> some = [build(["ab", "c"]), build(["d"])]
    >>> [found and np.concatenate(found).tolist() for found in buffers_of(some)]
    [None, [0, 2, 3, 4], [97, 98, 99, 100]]
    """
    first = arrays[0]
    if len(arrays) == 1:
        yield from map(_whole, first.buffers())
    elif isinstance(first, Structs):
        parts = cast(Sequence[Structs], arrays)
        yield from map(_whole, islice(_bare(parts).buffers(), 1))
        for name in first.children:
            yield from buffers_of([part.children[name] for part in parts])
    elif isinstance(first, Lists):
        listed = cast(Sequence[Lists], arrays)
        yield from map(_whole, islice(_edged(listed).buffers(), 2))
        child = buffers_of([array.child for array in listed])
        yield from islice(child, 1, None) if isinstance(first, Bytes) else child
    elif isinstance(first, Numbers):
        valid = concat_validity(arrays)
        yield _whole(None if valid is None else valid.buffer_unless_all(_length(arrays)))
        yield _joined([a.values[: a.length] for a in cast(Sequence[Numbers], arrays)])
    else:
        yield from map(_whole, concat(arrays).buffers())


def _whole(buffer: Buffer) -> Pieces:
    return None if buffer is None else (buffer,)


def _joined(pieces: list[NDArray[Any]]) -> Pieces:
    """Return pieces as they are, or as one where they are short."""
    size = sum(piece.nbytes for piece in pieces)
    return pieces if size > PIECE_BYTES * len(pieces) else (np.concatenate(pieces),)


def _length(arrays: Sequence[Array]) -> int:
    return sum(array.length for array in arrays)


def _bare(arrays: Sequence[Structs]) -> Structs:
    """Return structs end to end without their fields."""
    return Structs(arrays[0].dtype, {}, length=_length(arrays), valid=concat_validity(arrays))


def _edged(arrays: Sequence[Lists]) -> Lists:
    """Return lists end to end over the elements of the first of them only."""
    first = arrays[0]
    edges = np.zeros(_length(arrays) + 1, np.int64)
    at = 0
    for array in arrays:
        end = at + array.length
        np.add(array.edges[1 : array.length + 1], edges[at], out=edges[at + 1 : end + 1])
        at = end
    return type(first)(first.dtype, edges, first.child, valid=concat_validity(arrays))
