"""Fixtures of this suite: a plain view of values, and a small file with every kind of column."""

import math

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset


def as_plain(value):
    """Arrays as lists and NaN as a str, so that ``==`` compares values."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: as_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(inner) for inner in value]
    return "nan" if isinstance(value, float) and math.isnan(value) else value


@pytest.fixture(scope="session")
def plain():
    return as_plain


@pytest.fixture(scope="session")
def rows():
    """Nine rows with every kind of column, nulls in all but one."""
    return [
        {
            "id": i,
            "flag": None if i == 4 else i % 3 == 0,
            "score": None if i == 2 else i / 8,
            "text": None if i == 5 else "\u00e9" * i,
            "tokens": None if i == 7 else list(range(i % 4)),
            "mask": [k % 2 == 0 for k in range(i % 5)],
            "messages": [{"role": "user", "content": str(k)} for k in range(i % 3)],
            "nested": [list(range(k)) for k in range(i % 3)] if i != 3 else None,
            "extra": None if i == 6 else {"a": i, "b": None if i % 2 else [str(i)]},
            "nothing": None,
        }
        for i in range(9)
    ]


@pytest.fixture
def small_file(rows, tmp_path):
    """The rows in chunks of four."""
    path = tmp_path / "small.nano"
    Dataset.from_list(rows).save_to_disk(path, chunk_rows=4)
    return path
