from collections import defaultdict

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, Ragged, SchemaError, Writer, load_from_disk
from nanorlhf.nanosets.build import build, first_bad, table


class TensorLike:
    """Has numpy's conversion protocol and nothing else, as a tensor of any library."""

    def __init__(self, values):
        self.values = np.asarray(values, np.int16)

    def __array__(self, dtype=None, copy=None):
        return self.values


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([None, None], "null"),
        ([], "null"),
        ([None, 1], "int64"),
        ([1, 2**63], "uint64"),
        ([1, None, 2.5], "float64"),
        ([True, None], "bool"),
        ([np.int8(1), np.int16(2)], "int16"),
        ([np.float32(1)], "float32"),
        ([np.bool_(True), False], "bool"),
        (["a", None, np.str_("b")], "utf8"),
        ([[], None, []], "list<null>"),
        ([[], [1], (2.0,)], "list<float64>"),
        ([range(3)], "list<int64>"),
        ([np.zeros(0), np.ones(2, np.int32)], "list<int32>"),
        ([np.zeros(0, np.int8), None], "list<int8>"),
        ([np.ones(1, np.int8), np.ones(2, np.float32)], "list<float32>"),
        ([np.array([1], np.int8), [2**40]], "list<int64>"),
        ([np.ones((2, 3), np.uint8)], "list<list<uint8>>"),
        ([np.array(["a"])], "list<utf8>"),
        ([np.array(True)], "bool"),
        ([TensorLike([1, 2])], "list<int16>"),
        (TensorLike([1, 2]), "int16"),
        (np.ones((2, 3), np.float16), "list<float16>"),
        (np.array([1, 2], ">i4"), "int32"),
        (np.array(["a", "b"]), "utf8"),
        (Ragged(np.array([True]), np.array([0, 1])), "list<bool>"),
        ([{"a": 1}, None, {"b": "x"}], "struct<a: int64, b: utf8>"),
        ([{}], "struct<>"),
    ],
)
def test_the_type_is_read_off_all_values(values, dtype, plain):
    found = build(values)
    assert str(found.dtype) == dtype
    assert found.length == (
        2 if isinstance(values, TensorLike) else len(values) - isinstance(values, Ragged)
    )


def test_values_come_back_as_they_went_in(plain):
    values = [{"a": [1, None], "b": None}, None, {"a": [], "b": {"c": "x"}}]
    assert plain(build(values).pylist()) == values
    assert plain(build(np.arange(6).reshape(2, 3)).pylist()) == [[0, 1, 2], [3, 4, 5]]
    assert build([np.ones((1, 2), np.int8), None]).pylist()[1] is None


def test_a_key_that_only_a_later_row_has_is_a_null_before():
    assert table([{"a": 1}, {"b": "x"}]).pylist() == [{"a": 1, "b": None}, {"a": None, "b": "x"}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1}, {"a": 2}, {"a": "x"}], "row 2, field 'a': holds both int and str"),
        ([{"a": True}, {"a": 1}], "row 1, field 'a': holds both bool and int"),
        ([{"a": [1]}, {"a": 1}], "row 1, field 'a': holds both int and list"),
        ([{}, {"m": [{"r": 1}, {"r": [1]}]}], r"row 1, field 'm\[\]\.r': holds both int and list"),
        ([{"a": {1}}], "row 0, field 'a': set is no column type; convert to bool"),
        ([{"a": 1j}], "complex is no column type"),
        ([{"a": 2**64}], "fit neither int64 nor uint64; store them as str"),
        ([{"a": -1}, {"a": 2**63}], "row 1, field 'a': the ints -1 .. 9223372036854775808"),
        ([{"a": 0.5}, {"a": 2**53 + 1}], "row 1, field 'a': 9007199254740993 stands among floats"),
        ([{"a": "\ud800"}], "a str with the lone surrogate"),
        ([{1: 2}], "the key 1 is not a str; give str keys"),
        ([{"a": 1}, 7], "row 1, field '': a row is a mapping, not 7; give a dict"),
        ([{"a": np.ones(1)}, {"a": np.ones((1, 1))}], r"row 1, .*arrays of \[1, 2\] dimensions"),
        ([{"a": [np.int64(-1)]}, {"a": [np.uint64(1)]}], "holds both"),
        ([{"a": 1j}], "field 'a': complex is no column type"),
        ([{"a": np.array([1j])}], r"field 'a\[\]': complex128 is no column type"),
        ([{"a": np.zeros(1, "i4,i4")}], r"field 'a\[\]': void is no column type"),
        ([{"a": np.zeros(1, "m8[s]")}], r"field 'a\[\]': timedelta64 is no column type"),
    ],
)
def test_a_value_without_a_type_is_named_by_row_and_field(rows, message):
    with pytest.raises(SchemaError, match=message):
        Dataset.from_list(rows)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("abc", "a column is a sequence of values, not a str; wrap it in a list"),
        ({"a": 1}, "not a dict"),
        (np.array(1), "a column is a sequence of values, not array"),
    ],
)
def test_what_is_no_column_is_refused(values, message):
    with pytest.raises(SchemaError, match=message):
        Dataset.from_dict({"a": values})


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i4", "<u8", ">u8", "i8"])
def test_rows_end_to_end_may_have_offsets_of_any_integers(dtype, tmp_path):
    rows = Ragged(np.arange(3), np.array([0, 1, 1, 3], dtype))
    with Writer(tmp_path / "a.nano") as writer:
        writer.write_batch({"x": rows})
        writer.write_batch({"x": rows})
    found = load_from_disk(tmp_path / "a.nano")["x"]
    assert [x.tolist() for x in found] == [[0], [], [1, 2]] * 2


@pytest.mark.parametrize(
    ("values", "offsets", "message"),
    [
        (np.arange(3), [1, 3], "'x': offsets run from 0 up to the 3 values"),
        (np.arange(3), [0, 2], "'x': offsets run from 0 up to the 3 values"),
        (np.arange(3), [0, 2, 1, 3], "'x': offsets run from 0 up to the 3 values"),
        (np.arange(3), [0, 4], "'x': offsets run from 0 up to the 3 values"),
        (np.arange(3), [], r"not int64 \[3\] and float64 \[0\]"),
        (np.arange(3), [0.0, 3.0], r"not int64 \[3\] and float64 \[2\]"),
        (np.zeros((3, 1)), [0, 3], r"not float64 \[3, 1\] and int64 \[2\]"),
    ],
)
def test_rows_end_to_end_are_all_of_the_values(values, offsets, message):
    with pytest.raises(SchemaError, match=message):
        Dataset.from_dict({"x": Ragged(values, np.array(offsets))})


def test_columns_of_different_length_are_refused():
    with pytest.raises(SchemaError, match=r"columns differ in length: {'a': 1, 'b': 2}"):
        Dataset.from_dict({"a": [1], "b": [1, 2]})


def test_first_bad_finds_the_row_that_breaks_the_prefix():
    def attempt(rows):
        if 7 in rows:
            raise SchemaError("", "seven")

    assert [first_bad([*range(bad), 7, 7], attempt) for bad in (0, 1, 5)] == [0, 1, 5]


def test_a_row_that_makes_up_missing_keys_is_not_asked_for_them():
    rows = [defaultdict(list, a=1), {"a": 2, "b": [3]}]
    assert table(rows).pylist()[0] == {"a": 1, "b": None}
    assert dict(rows[0]) == {"a": 1}


def test_values_of_one_kind_and_of_several_have_the_same_type_in_any_order():
    assert str(build([1.5, 2]).dtype) == str(build([2, 1.5]).dtype) == "float64"
    assert build([None, 1]).pylist() == [None, 1]
    assert build([1, None]).pylist() == [1, None]
