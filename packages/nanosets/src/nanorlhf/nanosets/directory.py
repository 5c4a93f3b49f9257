"""Which buffers a column has, and the directory of where they lie."""

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np

from .format import ALIGNMENT, HEADER, Footer, FormatError
from .gather import Ints
from .types import (
    Binary,
    Dictionary,
    DType,
    FixedList,
    LargeList,
    List,
    Null,
    Struct,
    Tensor,
    Utf8,
)

MAX_CHUNK_ROWS = 2**31 - 1
ABSENT = -1


class Directory(NamedTuple):
    """Where the buffers of every chunk lie."""

    rows: Ints
    """int64 [chunks]."""
    slots: Ints
    """int64 [chunks, slots, 3 or 4]: offset, bytes, checksum, decompressed bytes."""


def slots_of(dtype: DType) -> Iterator[str]:
    """Yield what each buffer of a column of this type is, in file order.

    >>> list(slots_of(List(Utf8())))
    ['validity', 'offsets', 'validity', 'offsets', 'data']
    """
    if isinstance(dtype, Null):
        return
    yield "validity"
    if isinstance(dtype, List | LargeList | Utf8 | Binary):
        yield "offsets"
    for child in dtype.children:
        yield from slots_of(child)
    if not isinstance(dtype, List | LargeList | FixedList | Tensor | Struct):
        yield "codes" if isinstance(dtype, Dictionary) else "data"


def dictionaries_of(dtype: DType) -> Iterator[Dictionary]:
    """Yield the dictionary types in a type, in schema order."""
    if isinstance(dtype, Dictionary):
        yield dtype
    for child in dtype.children:
        yield from dictionaries_of(child)


def is_weightless(dtype: DType) -> bool:
    """Return whether values of a type take no bytes, so that a file's size bounds no count.

    >>> is_weightless(Struct(())), is_weightless(FixedList(Utf8(), 1))
    (True, False)
    """
    if isinstance(dtype, FixedList | Tensor) and dtype.size == 0:
        return True
    if isinstance(dtype, Null | Struct | FixedList):
        return all(map(is_weightless, dtype.children))
    return False


def decode_directory(raw: Ints, footer: Footer, footer_offset: int) -> Directory:
    """Return the directory that int64 ``raw`` holds.

    Raises:
        FormatError: A buffer is misaligned, outside the file's data, or overlaps another; or it
            is not made for the schema.
    """
    width = footer.slot_width
    dictionaries = list(dictionaries_of(footer.schema.struct))
    counts = [sum(1 for _ in slots_of(d.value)) for d in dictionaries]
    found = [len(values.slots) for values in footer.dictionaries]
    if footer.slots != sum(1 for _ in slots_of(footer.schema.struct)) - 1 or found != counts:
        raise FormatError(f"footer: {footer.slots} slots and dictionaries of {found} do not fit it")
    entries = raw.reshape(footer.chunks, 1 + width * footer.slots)
    rows = entries[:, 0].copy()
    if ((rows <= 0) | (rows > MAX_CHUNK_ROWS)).any() or int(rows.sum()) != footer.rows:
        raise FormatError(f"directory: its chunks do not add up to {footer.rows} rows")
    slots = entries[:, 1:].reshape(footer.chunks, footer.slots, width)
    # Column by column, so that no temporary array is large: fresh pages cost more than the checks.
    columns = [entries[:, 1 + i :: width].ravel() for i in range(width)]
    if footer.dictionaries:
        apart = value_slots(footer).T
        columns = [np.concatenate(pair) for pair in zip(columns, apart, strict=True)]
    _check_ranges(columns, (footer.directory, footer.directory + raw.nbytes), footer_offset)
    return Directory(rows, slots)


def value_slots(footer: Footer) -> Ints:
    """Return the slots of all dictionaries, int64 [slots, 3 or 4].

    Raises:
        FormatError: They are not that.
    """
    flat = list(chain.from_iterable(values.slots for values in footer.dictionaries))
    if not all(type(n) is int and -(2**63) <= n < 2**63 for slot in flat for n in slot):
        raise FormatError("footer: a dictionary lies at something that is no number")
    if any(len(slot) != footer.slot_width for slot in flat):
        raise FormatError(f"footer: a dictionary's slot is not {footer.slot_width} numbers")
    return np.array(flat, np.int64).reshape(len(flat), footer.slot_width)


def _check_ranges(columns: list[Ints], directory: tuple[int, int], footer_offset: int) -> None:
    offset, size, _, *decoded = columns
    absent = offset == ABSENT
    if absent.any():
        if any((absent & (column != ABSENT)).any() for column in columns[1:]):
            raise FormatError("directory: an absent buffer has a size")
        offset, size, *decoded = (c[~absent] for c in (offset, size, *decoded))
    if not len(offset):
        return
    lowest = min(column.min() for column in (offset, size, *decoded))
    if lowest < 0 or np.bitwise_or.reduce(offset) % ALIGNMENT:
        raise FormatError("directory: a buffer's offset is not a multiple of 64")
    if offset.min() < HEADER.size or offset.max() > footer_offset:
        raise FormatError("directory: a buffer starts outside the data")
    stop = offset + np.minimum(size, footer_offset)
    if size.max() > footer_offset or stop.max() > footer_offset:
        raise FormatError("directory: a buffer ends after the data")
    # What a writer wrote lies in order, so that there is nothing to sort.
    if (offset[1:] >= stop[:-1]).all() and stop[-1] <= directory[0]:
        return
    used = size > 0
    starts = np.append(offset[used], directory[0])
    stops = np.append(stop[used], directory[1])
    order = np.argsort(starts, kind="stable")
    if (starts[order][1:] < stops[order][:-1]).any():
        raise FormatError("directory: two buffers overlap")
