"""Flat arrays of numpy, one a row, into a column of lists."""

from collections.abc import Sequence
from functools import reduce
from operator import attrgetter, countOf
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .bits import Mask
from .convert import concat, convert
from .errors import SchemaError
from .gather import Ints, Ragged, offsets_of
from .nested import Lists, lists
from .types import unify
from .vectors import as_array, flat_array, is_flat

DTYPE, NDIM = attrgetter("dtype"), attrgetter("ndim")


def lists_of_ragged(rows: Ragged, field: str) -> Lists:
    """Return rows that lie end to end as lists, over the same memory if they can be.

    Raises:
        SchemaError: The offsets do not run from 0 up to the values, or no type holds these.
    """
    values, offsets = as_array(rows.values), as_array(rows.offsets)
    if values.ndim != 1 or offsets.ndim != 1 or offsets.dtype.kind not in "iu" or not len(offsets):
        shapes = f"{values.dtype} {list(values.shape)} and {offsets.dtype} {list(offsets.shape)}"
        rule = "a pair of arrays is (values, offsets), both 1-d and the offsets integers"
        raise SchemaError(field, f"{rule}, not {shapes}; give a list for two rows")
    offsets = offsets.astype(np.int64, copy=False)
    if offsets[0] != 0 or offsets[-1] != len(values) or (offsets[1:] < offsets[:-1]).any():
        rule = f"offsets run from 0 up to the {len(values)} values, these do not; mend them"
        raise SchemaError(field, rule)
    return lists(offsets, flat_array(values, field))


def lists_of_alike(rows: Sequence[Any], field: str) -> Lists | None:
    """Return flat arrays of one dtype, as most functions return them, as lists; else None.

    Args:
        rows: The first is a numpy array; the others are anything.
        field: Name of the values, for errors.
    """
    dtype, count = rows[0].dtype, len(rows)
    try:  # most dtypes of a kind are one object, and to count it is faster than to compare
        alike = countOf(map(DTYPE, rows), dtype) == countOf(map(NDIM, rows), 1) == count
    except AttributeError:  # one is no array
        return None
    if not alike or not is_flat(dtype):
        return None
    try:  # short arrays are joined as bytes in half the time
        values = np.frombuffer(b"".join(cast(Any, rows)), dtype)
    except (TypeError, ValueError):  # one is no stretch of bytes
        values = np.concatenate(rows)
    return lists(_offsets(rows), flat_array(values, field))


def lists_of_some(rows: Sequence[NDArray[Any] | None], field: str) -> Lists:
    """Return flat arrays and None, at least one of them an array, as lists of a common type.

    Raises:
        SchemaError: There is none.
    """
    valid: Mask | None = np.fromiter((row is not None for row in rows), np.bool_, len(rows))
    full = [np.zeros(0) if row is None else row for row in rows]
    # An empty array is float64 by numpy's default, not by anyone's intent.
    flats = [row for row in full if len(row)] or [row for row in rows if row is not None][:1]
    if len({row.dtype for row in flats}) == 1:
        return lists(_offsets(full), flat_array(np.concatenate(flats), field), valid=valid)
    parts = [flat_array(row, field) for row in flats]
    dtype = reduce(lambda a, b: unify(a, b, field=f"{field}[]"), {p.dtype for p in parts})
    child = concat([convert(p, dtype, field=f"{field}[]") for p in parts])
    return lists(_offsets(full), child, valid=valid)


def _offsets(rows: Sequence[NDArray[Any]]) -> Ints:
    return offsets_of(np.fromiter(map(len, rows), np.int64, len(rows)))
