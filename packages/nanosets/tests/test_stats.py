import datetime

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, load_dataset
from nanorlhf.nanosets.stats import Stats, stats_of


def by_definition(values):
    """Least, mean and most of Python values, None left out."""
    full = [v for v in values if v is not None and v == v]
    mean = None if isinstance(full[0], datetime.date) else sum(full) / len(full)
    return min(full), mean, max(full)


@pytest.mark.parametrize(
    ("spelling", "values"),
    [
        ("int64", [5, None, -3, 2**60]),
        ("uint8", [0, 255]),
        ("float32", [0.5, float("nan"), None, -2.0]),
        ("bfloat16", [1.5, 2.0]),
        ("bool", [True, False, None, True]),
        ("date32", [datetime.date(2024, 2, 29), None, datetime.date(1960, 1, 1)]),
        ("dictionary<int16>", [7, None, 7, 9]),
    ],
)
def test_values_are_measured_as_they_are_defined(spelling, values, tmp_path):
    Dataset.from_dict({"x": values}, features={"x": spelling}).save_to_disk(
        tmp_path / "a.nano", chunk_rows=2
    )
    found = stats_of(load_dataset(tmp_path / "a.nano")["x"])
    assert (found.nulls, found.measure) == (values.count(None), "values")
    low, mean, high = by_definition(values)
    assert (found.low, found.high) == (low, high)
    assert found.mean == (None if mean is None else pytest.approx(mean))


def test_strings_and_lists_are_measured_by_their_length():
    ds = Dataset.from_dict({"s": ["\u00e9", None, ""], "t": [[1, 2, 3], [], None]})
    assert stats_of(ds["s"]) == Stats(1, "bytes", 0, 1.0, 2)
    assert stats_of(ds["t"]) == Stats(1, "items", 0, 1.5, 3)
    tensors = Dataset.from_dict({"x": np.zeros((3, 4))}, features={"x": "fixed_list<float64, 4>"})
    assert stats_of(tensors["x"]) == Stats(0, "items", 4, 4.0, 4)
    words = ds.select_columns("s").cast({"s": "dictionary<utf8>"})
    assert stats_of(words["s"]) == Stats(1, "bytes", 0, 1.0, 2)


def test_what_is_in_no_order_and_what_is_not_there_has_no_ends():
    ds = Dataset.from_list([{"d": {"a": 1}, "n": None, "i": None}], features=None)
    assert stats_of(ds["d"]) == Stats(0, "nothing", None, None, None)
    assert stats_of(ds["n"]) == Stats(1, "nothing", None, None, None)
    assert stats_of(ds.cast({**ds.schema, "i": "int8"})["i"]).low is None
    assert stats_of(ds.select([])["d"]).nulls == 0
