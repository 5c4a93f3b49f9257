from datetime import date, datetime

import numpy as np
import pytest

from nanorlhf.nanosets import Column, Dataset, concatenate_datasets
from nanorlhf.nanosets.arrays import Numbers
from nanorlhf.nanosets.bits import Bits
from nanorlhf.nanosets.types import Number


def sorted_by_definition(values, *, reverse, first):
    """Values in order, then NaN, then nulls; or nulls, then NaN, then values. Ties stay."""
    rows = range(len(values))
    nulls = [i for i in rows if values[i] is None]
    nans = [i for i in rows if i not in nulls and values[i] != values[i]]
    others = [i for i in rows if i not in nulls and i not in nans]
    others = sorted(others, key=lambda i: values[i], reverse=reverse)
    return nulls + nans + others if first else others + nans + nulls


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([3, 1, None, 3, -(2**63), 2**63 - 1, 1], "int64"),
        ([0, 2**64 - 1, 5, None, 5, 2**63], "uint64"),
        ([-128, 127, 0, -128], "int8"),
        ([0.0, -0.0, None, float("nan"), float("-inf"), 2.5, float("nan"), 2.5], "float64"),
        ([1.5, None, -2.0, 1.5, 0.25], "bfloat16"),
        ([True, None, False, True], "bool"),
        (["b", "a", None, "", "b", "\u00e9", "\U0001f600", "\uffff"], "utf8"),
        (["b", "a", None, "b", "c"], "dictionary<utf8>"),
        ([b"b", b"\xff", None, b"", b"b"], "binary"),
        ([date(2020, 1, 2), None, date(1, 1, 1), date(2020, 1, 1)], "date32"),
        ([datetime(2020, 1, 2), None, datetime(1969, 1, 1), datetime(2020, 1, 1)], "timestamp[us]"),
        ([None, None], "int32"),
        ([], "int32"),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("place", ["at_end", "at_start"])
def test_sort_follows_its_definition(values, dtype, reverse, place):
    columns = {"v": values, "at": range(len(values))}
    ds = Dataset.from_dict(columns, features={"v": dtype, "at": "int64"})
    want = sorted_by_definition(values, reverse=reverse, first=place == "at_start")
    assert ds.sort("v", reverse=reverse, null_placement=place)["at"][:] == want
    twice = concatenate_datasets([ds.select([]), ds]).select(np.arange(len(values)))
    assert twice.sort("v", reverse=reverse, null_placement=place)["at"][:] == want


def test_what_lies_under_a_null_has_no_part_in_the_order():
    valid = Bits.pack(np.array([True, False, True, False]))
    column = Column.of(Numbers(Number("int64"), np.array([5, 9, 1, 2]), valid=valid))
    ds = Dataset({"v": column, "at": Dataset.from_dict({"at": range(4)})["at"]})
    assert ds.sort("v")["at"][:] == [2, 0, 1, 3]
    assert ds.sort("v", reverse=True)["at"][:] == [0, 2, 1, 3]
    assert ds.unique("v") == [5, None, 1]


@pytest.mark.parametrize("reverse", [False, True])
def test_many_equal_values_keep_their_order(reverse):
    values = np.random.default_rng(0).integers(0, 5, 2000).tolist()
    ds = Dataset.from_dict({"v": values})
    want = sorted_by_definition(values, reverse=reverse, first=False)
    found = ds.add_column("at", range(2000)).sort("v", reverse=reverse)
    assert found["at"][:] == want


def test_several_keys_sort_by_the_first_then_the_next():
    rng = np.random.default_rng(0)
    rows = [
        {"a": int(a), "b": "xyz"[b], "at": i}
        for i, (a, b) in enumerate(rng.integers(0, 3, (60, 2)))
    ]
    ds = Dataset.from_list(rows)
    want = sorted(rows, key=lambda row: row["at"])
    want = sorted(sorted(want, key=lambda row: row["b"]), key=lambda row: -row["a"])
    found = ds.sort(["a", "b"], reverse=[True, False])
    assert found.to_list() == want
    assert ds.sort([]) is ds


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"column_names": "z"}, KeyError, "no column 'z'"),
        ({"column_names": "t"}, TypeError, "column 't' of list<int64> has neither an order"),
        ({"column_names": "m"}, TypeError, "column 'm' of struct<k: int64> has neither"),
        ({"column_names": ["a"], "reverse": [True, False]}, ValueError, "reverse has 2 values"),
        ({"column_names": "a", "null_placement": "up"}, ValueError, "null_placement='up' is no"),
    ],
)
def test_what_has_no_order_is_refused(arguments, error, message):
    ds = Dataset.from_dict({"a": [1], "t": [[1]], "m": [{"k": 1}]})
    with pytest.raises(error, match=message):
        ds.sort(**arguments)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([3, 1, None, 3, None, 2, 1], "int64"),
        ([None, 1, 1], "int8"),
        ([0.5, -0.0, 0.0, 0.5], "float32"),
        ([True, None, True, False], "bool"),
        (["b", "a", None, "b", ""], "utf8"),
        (["b", "a", None, "b", ""], "dictionary<utf8>"),
        ([date(2020, 1, 2), None, date(2020, 1, 2), date(2019, 1, 1)], "date32"),
        ([], "utf8"),
    ],
)
def test_unique_values_come_in_the_order_of_first_sight(values, dtype):
    ds = Dataset.from_dict({"v": values}, features={"v": dtype})
    assert ds.unique("v") == list(dict.fromkeys(values))
    back = ds.select(range(len(values) - 1, -1, -1))
    assert back.unique("v") == list(dict.fromkeys(reversed(values)))
    with pytest.raises(KeyError, match="no column 'z'"):
        ds.unique("z")


def test_nan_is_one_value():
    found = Dataset.from_dict({"v": [float("nan"), 1.0, float("nan")]}).unique("v")
    assert str(found) == "[nan, 1.0]"


def test_lists_have_no_distinct_values():
    with pytest.raises(TypeError, match="column 't' of list<int64> has neither"):
        Dataset.from_dict({"t": [[1]]}).unique("t")
