"""What the values of a column are like: how many are null, the least, the mean, the most."""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Bools, Numbers
from .coded import Coded
from .column import Column
from .convert import decoded
from .fixed import FixedLists
from .nested import Bytes, Lists

BLOCK_ROWS = 65_536

Measure = Literal["values", "bytes", "items", "nothing"]


class Stats(NamedTuple):
    """A column in a few numbers; None where there is no value, or values in no order."""

    nulls: int
    measure: Measure
    """What the rest is about: the values, the bytes of strings, the items of lists."""
    low: Any
    mean: float | None
    high: Any


class _Block(NamedTuple):
    """The same of some rows that hold a value at least."""

    rows: int
    low: Any
    total: float
    high: Any


def stats_of(column: Column) -> Stats:
    """Return the statistics of a column, which is read once, some rows at a time; NaN is left out.

    >>> from nanorlhf.nanosets import Dataset
    >>> from nanorlhf.nanosets.stats import stats_of  # of the package that is installed
    >>> stats_of(Dataset.from_dict({"a": [1, None, 4]})["a"])
    Stats(nulls=1, measure='values', low=1, mean=2.5, high=4)
    """
    nulls, found = 0, list[_Block]()
    measure: Measure = "nothing"
    for array in column.blocks(BLOCK_ROWS):
        mask = array.validity()
        nulls += 0 if mask is None else array.length - int(mask.sum())
        measure, numbers = _measured(decoded(array) if isinstance(array, Coded) else array)
        if measure != "nothing":
            found.extend(_block(numbers if mask is None else numbers[mask]))
    if not found:
        return Stats(nulls, measure, None, None, None)
    total, count = sum(block.total for block in found), sum(block.rows for block in found)
    low, high = min(block.low for block in found), max(block.high for block in found)
    return Stats(nulls, measure, low, None if np.isnan(total) else total / count, high)


def _measured(array: Array) -> tuple[Measure, NDArray[Any]]:
    """Return what is measured of a compact array, and one number for each of its elements."""
    if isinstance(array, Bools):
        return "values", array.flat()
    if isinstance(array, Numbers):
        return "values", array.as_numpy(array.values[: array.length])
    if isinstance(array, Lists):
        kind: Measure = "bytes" if isinstance(array, Bytes) else "items"
        return kind, np.diff(array.edges[: array.length + 1])
    if isinstance(array, FixedLists):
        return "items", np.full(array.length, array.dtype.size)
    return "nothing", np.zeros(0)


def _block(numbers: NDArray[Any]) -> list[_Block]:
    """Return the statistics of numbers or times; nothing if there is none."""
    if numbers.dtype.kind == "f":
        numbers = numbers[~np.isnan(numbers)]
    if not len(numbers):
        return []
    low, high = numbers.min(), numbers.max()
    if numbers.dtype.kind == "M":
        # The mean of times is of no use, and numpy has none.
        return [_Block(len(numbers), low, np.nan, high)]
    return [_Block(len(numbers), low.item(), float(numbers.sum(dtype=np.float64)), high.item())]
