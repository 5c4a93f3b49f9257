import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, SchemaError
from nanorlhf.nanosets.build import build
from nanorlhf.nanosets.convert import all_null, concat, convert
from nanorlhf.nanosets.types import parse


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, None, -128], "int8"),
        ([0, 255], "uint8"),
        ([2**63 - 1], "uint64"),
        ([1, 2**53], "float64"),
        ([1, 2048], "float16"),
        ([0.5, None, float("inf")], "float16"),
        ([None], "list<struct<a: utf8>>"),
        ([[1], None, []], "list<uint16>"),
        ([{"a": 1}, None], "struct<b: utf8, a: int8>"),
    ],
)
def test_values_that_fit_keep_their_value(values, dtype, plain):
    found = convert(build(values), parse(dtype))
    assert found.dtype == parse(dtype)
    want = [{"b": None, **v} if isinstance(v, dict) else v for v in values]
    assert plain(found.pylist()) == want


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([1, 128], "int8", "128 does not fit int8; ask for a wider type"),
        ([-1], "uint64", "-1 does not fit uint64"),
        ([2**63], "int64", "9223372036854775808 does not fit int64"),
        ([2**53 + 1], "float64", "9007199254740993 does not fit float64"),
        ([2**63 - 1], "float64", "9223372036854775807 does not fit float64"),
        ([2**64 - 1], "float64", "18446744073709551615 does not fit float64"),
        ([2049], "float16", "2049 does not fit float16"),
        ([70000], "float16", "70000 does not fit float16"),
        ([1e5], "float16", "100000.0 does not fit float16"),
        ([1.0], "int32", "holds float64, asked is int32; round the values first"),
        (["1"], "int32", "holds utf8, asked is int32; map the values to that first"),
        ([[1, 300]], "list<int8>", r"field 'x\[\]': 300 does not fit int8"),
        ([{"a": 1}], "struct<b: int8>", r"field 'x\.a': is not among the asked fields \['b'\]"),
    ],
)
def test_values_that_do_not_fit_are_refused(values, dtype, message):
    with pytest.raises(SchemaError, match=message):
        convert(build(values), parse(dtype), field="x")


def test_what_lies_under_a_null_does_not_stop_a_conversion():
    array = build([1, None, 2])
    array.values = np.array([1, 10**9, 2])
    assert convert(array, parse("int8")).pylist() == [1, None, 2]


@pytest.mark.parametrize(
    "dtype", ["null", "bool", "utf8", "int8", "list<int8>", "struct<a: int8, b: list<utf8>>"]
)
def test_all_null_is_null_everywhere_and_joins_values(dtype):
    nulls = all_null(parse(dtype), 3)
    assert nulls.pylist() == [None] * 3
    assert concat([nulls, all_null(parse(dtype), 10)]).pylist() == [None] * 13


def test_features_convert_a_whole_dataset_and_refuse_unknown_columns():
    ds = Dataset.from_list([{"t": [1, 2]}], features={"t": "list<int32>", "more": "utf8"})
    assert ds[0]["t"].dtype == np.int32
    assert ds[0]["more"] is None
    with pytest.raises(SchemaError, match=r"field 'b': is not among the asked fields \['a'\]"):
        Dataset.from_list([{"a": 1, "b": 2}], features={"a": "int8"})
