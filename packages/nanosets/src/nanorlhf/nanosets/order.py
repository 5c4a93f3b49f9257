"""Rows in the order of their values, and the values that differ.

A column is turned into ranks, arrays of numbers that sort as its values do; then several columns,
nulls and descending order are all one stable sort of numbers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Bools, Numbers
from .bits import Mask
from .coded import Coded
from .times import Times

if TYPE_CHECKING:
    from .dataset import Dataset

NullPlacement = Literal["at_start", "at_end", "first", "last"]


class Flat(NamedTuple):
    """Numbers that stand for the values of a column."""

    values: NDArray[Any]
    """[N], integers or floats, 0 under a null."""
    valid: Mask | None
    """bool [N], None without nulls."""


def sort(
    ds: "Dataset",
    column_names: str | Sequence[str],
    reverse: bool | Sequence[bool] = False,
    null_placement: NullPlacement = "at_end",
) -> "Dataset":
    """Return the rows in the order of one or several columns; no data is copied.

    Equal rows keep their order. A NaN comes after all other numbers, in descending order too, and
    stands between them and the nulls. Strings are compared by code point.

    Args:
        ds: The dataset.
        column_names: The columns, the most important first.
        reverse: Descending order, of all of them or of each.
        null_placement: ``"at_end"`` or ``"at_start"`` (also ``"last"``, ``"first"``), where nulls
            and NaN go.

    Raises:
        KeyError: There is no such column.
        TypeError: A column's values have no order.
        ValueError: ``reverse`` or ``null_placement`` does not fit.

    >>> from nanorlhf.nanosets import Dataset
    >>> Dataset.from_dict({"a": [1, 0, None, 1], "b": list("xyzw")}).sort(["a", "b"])["b"][:]
    ['y', 'w', 'x', 'z']
    """
    names = [column_names] if isinstance(column_names, str) else list(column_names)
    down = [reverse] * len(names) if isinstance(reverse, bool) else list(reverse)
    if len(down) != len(names):
        raise ValueError(f"reverse has {len(down)} values for {len(names)} columns; give one each")
    if null_placement not in ("at_start", "at_end", "first", "last"):
        raise ValueError(f"{null_placement=} is no place; use 'at_start' or 'at_end'")
    first = null_placement in ("at_start", "first")
    keys: list[NDArray[Any]] = []
    for name, descending in zip(names, down, strict=True):
        flat = _flat(ds[name].block(0, len(ds)), name)
        keys += _keys(flat, descending=descending, nulls_first=first)
    if not keys:
        return ds
    if len(keys) == 1:
        return ds.select(np.argsort(keys[0], kind="stable"))
    return ds.select(np.lexsort(keys[::-1]))


def unique(ds: "Dataset", column: str) -> list[Any]:
    """Return the distinct values of a column, in the order in which they first appear.

    Raises:
        KeyError: There is no such column.
        TypeError: The column holds lists or structs.
    """
    found = ds[column]
    array = found.block(0, len(found))
    if not isinstance(array, Bools | Numbers | Coded):
        return list(_distinct(array.pylist(), array, column))
    flat = _flat(array, column)
    present = np.arange(len(found)) if flat.valid is None else np.flatnonzero(flat.valid)
    first = present[np.unique(flat.values[present], return_index=True)[1]]
    if len(present) < len(found):
        assert flat.valid is not None
        first = np.append(first, int(np.argmin(flat.valid)))
    return array.take(0, np.sort(first)).pylist()


def _keys(flat: Flat, *, descending: bool, nulls_first: bool) -> list[NDArray[Any]]:
    """Return arrays that sort as a column does, the most important first."""
    values, valid = flat
    # Flipping the bits of an integer turns its order round, and nothing can overflow.
    key = values if not descending else -values if values.dtype.kind == "f" else ~values
    place = np.zeros(len(values), np.int8)
    if values.dtype.kind == "f":
        place[np.isnan(values)] = 1
    if valid is not None:
        place[~valid] = 2
    if not place.any():
        return [key]
    return [-place if nulls_first else place, key]


def _flat(array: Array, name: str) -> Flat:
    """Return numbers that sort as the values of a compact array do."""
    valid = array.validity()
    if isinstance(array, Bools):
        values: NDArray[Any] = array.flat().astype(np.uint8)
    elif isinstance(array, Times):
        values = array.values[: array.length]
    elif isinstance(array, Numbers):
        values = array.as_numpy(array.values[: array.length])
    elif isinstance(array, Coded):
        ranks = np.append(_flat(array.values, name).values, 0)
        values = ranks[array.codes.values[: array.length]]
    else:
        values = _ranks(array, name)
    return Flat(values if valid is None else np.where(valid, values, values.dtype.type(0)), valid)


def _ranks(array: Array, name: str) -> NDArray[Any]:
    values = array.pylist()
    distinct = _distinct(values, array, name)
    distinct.pop(None, None)
    ranks = {value: rank for rank, value in enumerate(sorted(distinct))}
    return np.fromiter((ranks.get(value, 0) for value in values), np.int64, len(values))


def _distinct(values: list[Any], array: Array, name: str) -> dict[Any, None]:
    """Return the distinct values as the keys of a dict, in the order of their appearance."""
    try:
        return dict.fromkeys(values)
    except TypeError:
        rule = "has neither an order nor distinct values; map it to numbers or strings first"
        raise TypeError(f"column {name!r} of {array.dtype} {rule}") from None
