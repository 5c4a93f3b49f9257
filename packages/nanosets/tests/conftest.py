"""Fixtures of this suite: a plain view of values, values of every type, and a small file."""

import datetime
import math

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset
from nanorlhf.nanosets.types import NUMBERS


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


@pytest.fixture(scope="session")
def every_type():
    """Spelling of each type: three values, a null in the middle."""
    at = datetime.datetime
    return {
        "null": [None, None, None],
        "bool": [True, None, False],
        **{name: [1, None, 3] for name in NUMBERS},
        "utf8": ["a\u00e9", None, ""],
        "binary": [b"\0x", None, b""],
        "date32": [datetime.date(2024, 2, 29), None, datetime.date(1960, 1, 1)],
        "timestamp[s]": [at(2020, 1, 2, 3), None, at(1960, 1, 1)],
        "timestamp[ms]": [at(2020, 1, 2, 3), None, at(1960, 1, 1)],
        "timestamp[us]": [at(2020, 1, 2, 3, 4, 5, 6), None, at(1960, 1, 1)],
        "timestamp[ns]": [at(2020, 1, 2, 3, 4, 5, 6), None, at(1960, 1, 1)],
        "timestamp[ms, UTC]": [at(2020, 1, 2, tzinfo=datetime.UTC), None, None],
        "list<int32>": [[1, None], None, []],
        "large_list<utf8>": [["a", None], None, []],
        "fixed_list<int8, 2>": [[1, 2], None, [3, None]],
        "tensor<float32, 2, 3>": [np.arange(6.0).reshape(2, 3), None, np.ones((2, 3))],
        "struct<a: int8, b: list<utf8>>": [{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}],
        "dictionary<utf8>": ["x", None, "x"],
        "dictionary<int16>": [5, None, 6],
        "list<dictionary<utf8>>": [["x"], None, ["y", "x", None]],
        "list<list<struct<a: list<bool>>>>": [[[{"a": [True, None]}], None], None, []],
    }


@pytest.fixture
def small_file(rows, tmp_path):
    """The rows in chunks of four."""
    path = tmp_path / "small.nano"
    Dataset.from_list(rows).save_to_disk(path, chunk_rows=4)
    return path
