"""Rows in order, some at a time: ranges of them, and columns cut at the same rows."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from .build import struct
from .column import Column
from .gather import Ints
from .nested import Structs
from .types import Binary, LargeList, List, Utf8

GATHER_BYTES = 32 << 20
"""Bytes, about, that are gathered at a time from columns whose rows are numbered."""
MAX_ROWS = 65_536
SAMPLE_ROWS = 256
"""Rows from which the bytes of a row are estimated."""


class Range(NamedTuple):
    """Rows ``start .. stop``."""

    start: int
    stop: int


def ranges(rows: int, size: int | None, *, drop_last: bool = False) -> list[Range]:
    """Return ``rows`` rows cut into ranges of ``size``; one range for None.

    Raises:
        ValueError: ``size`` is not positive.

    >>> ranges(5, 2)
    [Range(start=0, stop=2), Range(start=2, stop=4), Range(start=4, stop=5)]
    """
    if size is None:
        return [Range(0, rows)] if rows else []
    if size < 1:
        raise ValueError(f"batch_size={size} is not positive; use 1 or more")
    last = rows // size * size if drop_last else rows
    return [Range(start, min(start + size, last)) for start in range(0, last, size)]


def blocks(named: Mapping[str, Column]) -> Iterator[Structs]:
    """Yield all rows in order, as struct arrays whose fields are the columns.

    Columns whose rows are not numbered come out as views of their chunks; if the rows of one are,
    blocks are gathered, so that memory stays bounded.
    """
    for rows in cuts(named):
        yield block(named, rows)


def block(named: Mapping[str, Column], rows: Range) -> Structs:
    """Return some rows as one compact struct array whose fields are the columns."""
    children = {name: column.block(*rows) for name, column in named.items()}
    return struct(children, length=rows.stop - rows.start)


def blocks_ahead(named: Mapping[str, Column], found: Sequence[Range]) -> Iterator[Structs]:
    """Yield blocks of rows, each gathered by another thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(block, named, rows) for rows in found[:1])
        for rows in found[1:]:
            coming.append(thread.submit(block, named, rows))
            yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def is_numbered(named: Mapping[str, Column]) -> bool:
    """Return whether the rows of a column are numbered, so that blocks of it are gathered."""
    return any(column.rows is not None for column in named.values())


def cuts(
    named: Mapping[str, Column], *, max_rows: int = MAX_ROWS, max_bytes: int | None = None
) -> list[Range]:
    """Return ranges to read columns by: their chunks, or what is to be gathered at a time.

    The latter are of one size, but where rows are so long that ``max_bytes`` are exceeded twice.
    """
    if not is_numbered(named):
        edges = np.unique(np.concatenate([[0], *(_edges(column) for column in named.values())]))
        return [Range(*pair) for pair in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    limit = GATHER_BYTES if max_bytes is None else max_bytes
    ends = np.cumsum(np.sum([_row_bytes(column) for column in named.values()], axis=0))
    found: list[Range] = []
    total = int(ends[-1]) if len(ends) else 0
    start, size = 0, max(1, min(max_rows, limit * len(ends) // max(1, total)))
    while start < len(ends):
        before = ends[start - 1] if start else 0
        full = int(np.searchsorted(ends, before + 2 * limit))
        found.append(Range(start, min(start + size, max(start + 1, full), len(ends))))
        start = found[-1].stop
    return found


def _edges(column: Column) -> list[int]:
    """Return where the chunks of a column end."""
    lengths = np.concatenate([part.chunk_rows for part in column.parts])
    found: list[int] = np.cumsum(lengths).tolist()
    return found


def _row_bytes(column: Column) -> Ints:
    """Return about how many bytes each row takes, int64 [N].

    Known for strings and lists of numbers; what is inside of other lists is taken to be alike.
    """
    rows = len(column)
    at = np.unique(np.linspace(0, rows - 1, min(rows, SAMPLE_ROWS)).astype(np.int64))
    sample = column.take(at).nbytes
    if not isinstance(column.dtype, List | LargeList | Utf8 | Binary):
        return np.full(rows, -(-sample // max(1, len(at))))
    lengths = column.lengths()
    elements = int(lengths[at].sum())
    return 8 + lengths * max(1, round(sample / max(1, elements)))
