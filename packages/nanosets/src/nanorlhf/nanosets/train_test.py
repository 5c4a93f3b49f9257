"""Rows for training and rows for testing."""

from collections.abc import Callable
from math import ceil, floor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .dataset_dict import DatasetDict
from .rows import random_order

if TYPE_CHECKING:
    from .dataset import Dataset

DEFAULT_TEST_SIZE = 0.25


class SplitSizes(NamedTuple):
    """Rows of each side."""

    train: int
    test: int


def train_test_split(
    ds: "Dataset",
    test_size: float | int | None = None,
    train_size: float | int | None = None,
    *,
    shuffle: bool = True,
    seed: int | None = None,
    generator: "np.random.Generator | None" = None,
) -> DatasetDict:
    """Return disjoint datasets ``{"train": ..., "test": ...}``; no data is copied.

    Args:
        ds: The dataset.
        test_size: Rows (int) or part of them (float); default what ``train_size`` leaves, a
            quarter without it.
        train_size: As ``test_size``; default what ``test_size`` leaves.
        shuffle: Draw the rows at random; else the test rows are the last ones.
        seed: Of the draw.
        generator: Draws the rows in place of ``seed``.

    Raises:
        ValueError: The sizes do not fit the dataset, or leave one side empty.
    """
    sizes = split_sizes(len(ds), test_size, train_size)
    if shuffle:
        # The test rows are drawn first, as Hugging Face datasets draws them.
        order = random_order(len(ds), seed, generator)
        test, train = order[: sizes.test], order[sizes.test : sizes.test + sizes.train]
    else:
        order = np.arange(len(ds))
        train, test = order[: sizes.train], order[sizes.train : sizes.train + sizes.test]
    return DatasetDict({"train": ds.select(train), "test": ds.select(test)})


def split_sizes(
    rows: int, test_size: float | int | None, train_size: float | int | None
) -> SplitSizes:
    """Return the rows of each side; a side without a size gets what the other leaves.

    Raises:
        ValueError: The sizes do not fit ``rows``, or leave one side empty.

    >>> split_sizes(10, 0.25, None)
    SplitSizes(train=7, test=3)
    """
    if test_size is None and train_size is None:
        test_size = DEFAULT_TEST_SIZE
    test = None if test_size is None else _rows("test_size", test_size, rows, ceil)
    train = None if train_size is None else _rows("train_size", train_size, rows, floor)
    if train is None:
        train = rows - (test or 0)
    if test is None:
        test = rows - train
    if min(train, test) < 1 or train + test > rows:
        raise ValueError(
            f"test_size={test_size} and train_size={train_size} ask for {test} + {train} of "
            f"{rows} rows; leave at least one to each side"
        )
    return SplitSizes(train, test)


def _rows(name: str, size: float | int, rows: int, rounded: Callable[[float], int]) -> int:
    if isinstance(size, float):
        if not 0 < size < 1:
            raise ValueError(f"{name}={size} is not between 0 and 1; use an int for rows")
        return rounded(size * rows)
    if not 0 < size < rows:
        raise ValueError(f"{name}={size} is not between 0 and the {rows} rows; use fewer")
    return size
