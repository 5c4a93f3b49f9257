"""Which buffers a column has, and the directory of where they lie."""

from functools import cached_property, lru_cache
from itertools import chain

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


@lru_cache(maxsize=1024)
def slots_of(dtype: DType) -> tuple[str, ...]:
    """Return what each buffer of a column of this type is, in file order.

    >>> slots_of(List(Utf8()))
    ('validity', 'offsets', 'validity', 'offsets', 'data')
    """
    if isinstance(dtype, Null):
        return ()
    inner = chain.from_iterable(map(slots_of, dtype.children))
    if isinstance(dtype, List | LargeList):
        return ("validity", "offsets", *inner)
    if isinstance(dtype, FixedList | Tensor | Struct):
        return ("validity", *inner)
    if isinstance(dtype, Utf8 | Binary):
        return ("validity", "offsets", "data")
    return ("validity", "codes" if isinstance(dtype, Dictionary) else "data")


@lru_cache(maxsize=1024)
def dictionaries_of(dtype: DType) -> tuple[Dictionary, ...]:
    """Return the dictionary types in a type, in schema order."""
    if isinstance(dtype, Dictionary):
        return (dtype,)
    return tuple(chain.from_iterable(map(dictionaries_of, dtype.children)))


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


class Directory:
    """Where the buffers of every chunk lie.

    That the rows add up is checked at once, where the buffers lie when that is first asked for.

    Args:
        raw: int64, the directory as it stands in the file.
        footer: The footer.
        footer_offset: Where that starts; buffers lie before it.

    Attributes:
        entries: ``raw`` as int64 [chunks, 1 + slots * 3 or 4].
        rows: int64 [chunks].

    Raises:
        FormatError: It is not made for the schema, or the rows do not add up.
    """

    def __init__(self, raw: Ints, footer: Footer, footer_offset: int) -> None:
        counts = [len(slots_of(d.value)) for d in dictionaries_of(footer.schema.struct)]
        found = [len(values.slots) for values in footer.dictionaries]
        if footer.slots != len(slots_of(footer.schema.struct)) - 1 or found != counts:
            raise FormatError(
                f"footer: {footer.slots} slots and dictionaries of {found} do not fit it"
            )
        self.entries = raw.reshape(footer.chunks, 1 + footer.slot_width * footer.slots)
        self.rows: Ints = self.entries[:, 0].copy()
        counted = self.rows.tolist()
        in_range = min(counted, default=1) > 0 and max(counted, default=1) <= MAX_CHUNK_ROWS
        if not in_range or sum(counted) != footer.rows:
            raise FormatError(f"directory: its chunks do not add up to {footer.rows} rows")
        self._footer = footer
        self._footer_offset = footer_offset

    @cached_property
    def slots(self) -> Ints:
        """Offset, bytes, checksum, decompressed bytes: int64 [chunks, slots, 3 or 4].

        Raises:
            FormatError: A buffer is misaligned, outside the file's data, or overlaps another.
        """
        footer, width = self._footer, self._footer.slot_width
        found = self.entries[:, 1:].reshape(footer.chunks, footer.slots, width)
        every = found.reshape(footer.chunks * footer.slots, width)
        if footer.dictionaries:
            every = np.concatenate([every, value_slots(footer)])
        own = footer.directory, footer.directory + self.entries.nbytes
        _check_ranges(every, own, self._footer_offset)
        return found


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


def _check_ranges(slots: Ints, directory: tuple[int, int], footer_offset: int) -> None:
    present = slots[:, 0] != ABSENT
    if np.count_nonzero(present == (slots[:, 1] == ABSENT)):
        raise FormatError("directory: an absent buffer has a size, or one that is there has none")
    slots = slots.take(np.flatnonzero(present), axis=0)
    if not len(slots):
        return
    offset, size = slots[:, 0], slots[:, 1]
    if np.bitwise_or.reduce(offset) % ALIGNMENT:
        raise FormatError("directory: a buffer's offset is not a multiple of 64")
    # As uint64 a negative number is too large as well; and what is not, adds up without overflow.
    if np.maximum.reduce(slots[:, :2].view(np.uint64), axis=None) > footer_offset:
        raise FormatError("directory: a buffer starts or ends outside the data")
    if slots.shape[1] > 3 and slots[:, 3].min() < 0:
        raise FormatError("directory: a buffer has less than no bytes when decompressed")
    stop = offset + size
    # What a writer wrote lies in order, so that there is nothing to sort.
    in_order = not np.count_nonzero(offset[1:] < stop[:-1])
    if in_order and offset[0] >= HEADER.size and stop[-1] <= directory[0]:
        return
    if offset.min() < HEADER.size or stop.max() > footer_offset:
        raise FormatError("directory: a buffer starts or ends outside the data")
    used = size > 0
    starts = np.append(offset[used], directory[0])
    stops = np.append(stop[used], directory[1])
    order = np.argsort(starts, kind="stable")
    if (starts[order][1:] < stops[order][:-1]).any():
        raise FormatError("directory: two buffers overlap")
