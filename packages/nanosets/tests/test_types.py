import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanorlhf.nanosets import Schema, SchemaError
from nanorlhf.nanosets.types import (
    Binary,
    Bool,
    Date,
    Dictionary,
    Field,
    FixedList,
    LargeList,
    List,
    Null,
    Number,
    Struct,
    Tensor,
    Timestamp,
    Utf8,
    depth_of,
    parse,
    unify,
    unify_all,
)

FLAT = st.sampled_from(
    [
        *(Bool(), Utf8(), Binary(), Date(), Number("int8"), Number("bfloat16")),
        *(Timestamp("s"), Timestamp("ns", "America/Argentina/Buenos_Aires")),
        Timestamp("us", "-03:30"),
    ]
)
ITEMS = st.sampled_from([Bool(), Number("float32"), Number("bfloat16")])
SHAPES = st.lists(st.integers(0, 70), min_size=1, max_size=3).map(tuple)
LEAVES = FLAT | st.just(Null()) | FLAT.map(Dictionary) | st.builds(Tensor, ITEMS, SHAPES)
TYPES = st.recursive(
    LEAVES,
    lambda inner: (
        inner.map(List)
        | inner.map(LargeList)
        | st.builds(FixedList, inner, st.integers(0, 2**31 - 1))
        | st.dictionaries(st.text(max_size=5), inner, max_size=3).map(
            lambda fields: Struct(tuple(Field(n, t) for n, t in fields.items()))
        )
    ),
    max_leaves=6,
)


@given(TYPES)
def test_any_type_is_read_back_from_its_spelling(dtype):
    assert parse(str(dtype)) == dtype


@pytest.mark.parametrize(
    "name", ["", "a b", "A\u00b7", "\u00e9", '"', "a:int8>", "\n", "1", "\ud7ff"]
)
def test_any_field_name_survives(name):
    dtype = Struct((Field(name, Utf8()),))
    assert parse(str(dtype)) == dtype
    assert str(dtype).isascii()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int31", "expected a type name at character 0"),
        ("list<int8", "expected '>' at character 9"),
        ("list<int8> x", "expected the end at character 11"),
        ("struct<a int8>", "expected ':' at character 9"),
        ("struct<: int8>", "expected a field name at character 7"),
        ('struct<"a: int8>', "expected a closed quote"),
        ("struct<a: int8, a: int8>", "'a': the name stands twice"),
        ("list<" * 40 + "int8" + ">" * 40, "expected at most 32 levels of nesting"),
        ("fixed_list<" * 40 + "int8" + ", 1>" * 40, "expected at most 32 levels of nesting"),
        ("fixed_list<int8>", "expected ',' at character 15"),
        ("fixed_list<int8, -1>", "expected a number up to 2147483647 at character 17"),
        ("fixed_list<int8, 2147483648>", "expected a number up to 2147483647"),
        ("fixed_list<int8, 1x>", "expected a number up to"),
        ("tensor<float32>", "'()': no shape"),
        ("tensor<float32, 65536, 65536>", "no shape; use sizes of product <= 2147483647"),
        ("tensor<utf8, 2>", "'utf8': no item of a tensor; use a number type or bool"),
        ("timestamp", "expected '['"),
        ("timestamp[m]", "expected one of s, ms, us, ns at character 10"),
        ("timestamp[us, ]", "expected a time zone"),
        ("timestamp[us, a b]", "expected ']'"),
        ("dictionary<list<int8>>", "no value of a dictionary; use a flat type"),
        ("dictionary<dictionary<utf8>>", "no value of a dictionary"),
    ],
)
def test_what_is_no_type_is_refused_with_its_place(text, message):
    with pytest.raises(SchemaError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_a_number_type_has_one_of_the_known_names():
    with pytest.raises(SchemaError, match="no such number type; use one of int8"):
        Number("int7")


@pytest.mark.parametrize(
    ("a", "b", "both"),
    [
        ("null", "list<int8>", "list<int8>"),
        ("int8", "int32", "int32"),
        ("uint8", "int8", "int16"),
        ("int64", "float32", "float64"),
        ("int8", "float16", "float16"),
        ("list<null>", "list<utf8>", "list<utf8>"),
        ("struct<a: int8>", "struct<b: utf8, a: int16>", "struct<a: int16, b: utf8>"),
        ("bfloat16", "float16", "float32"),
        ("bfloat16", "float64", "float64"),
        ("bfloat16", "int64", "float64"),
        ("timestamp[s]", "timestamp[ns]", "timestamp[ns]"),
        ("timestamp[s, Asia/Tokyo]", "timestamp[ms, +01:00]", "timestamp[ms, UTC]"),
        ("list<int8>", "large_list<int16>", "large_list<int16>"),
        ("list<int8>", "fixed_list<int16, 3>", "list<int16>"),
        ("fixed_list<int8, 3>", "fixed_list<int16, 3>", "fixed_list<int16, 3>"),
        ("fixed_list<int8, 3>", "fixed_list<int8, 2>", "list<int8>"),
        ("tensor<int8, 2, 1>", "tensor<float32, 2, 1>", "tensor<float32, 2, 1>"),
        ("dictionary<utf8>", "utf8", "dictionary<utf8>"),
        ("dictionary<int8>", "dictionary<int32>", "dictionary<int32>"),
    ],
)
def test_two_types_unify_both_ways_round(a, b, both):
    assert unify(parse(a), parse(b)) == parse(both)
    other = unify(parse(b), parse(a))
    assert unify(other, parse(both)) == other


@pytest.mark.parametrize(
    ("a", "b", "path"),
    [
        ("int64", "uint64", "''"),
        ("bool", "int8", "''"),
        ("utf8", "binary", "''"),
        ("date32", "timestamp[s]", "''"),
        ("timestamp[s]", "timestamp[s, UTC]", "''"),
        ("tensor<int8, 2>", "tensor<int8, 1, 2>", "''"),
        ("tensor<int8, 2>", "list<int8>", "''"),
        ("dictionary<utf8>", "int8", "''"),
        ("dictionary<utf8>", "list<utf8>", "''"),
        ("list<int8>", "list<utf8>", "'[]'"),
        ("struct<a: list<bool>>", "struct<a: list<utf8>>", "'a[]'"),
    ],
)
def test_types_without_a_common_one_are_refused_with_the_path(a, b, path):
    with pytest.raises(SchemaError, match="which no one type holds; convert one") as caught:
        unify(parse(a), parse(b))
    assert f"field {path}" in str(caught.value)


def test_unify_all_keeps_the_order_of_first_sight():
    structs = [parse("struct<b: int8>"), parse("struct<a: null>"), parse("struct<a: utf8>")]
    assert str(unify_all(structs)) == "struct<b: int8, a: utf8>"


def test_depth_counts_lists_and_structs():
    types = ("int8", "struct<>", "list<list<struct<a: utf8>>>", "tensor<int8, 2, 2>")
    assert [depth_of(parse(t)) for t in types] == [0, 1, 3, 1]


def test_a_schema_is_a_mapping_that_compares_and_pickles():
    schema = Schema.of({"a": "int8", "b": List(Utf8())})
    assert dict(schema) == {"a": Number("int8"), "b": List(Utf8())}
    assert schema == Schema.of({"a": "int8", "b": "list<utf8>"}) == Schema.of(schema)
    assert schema != Schema.of({"b": "list<utf8>", "a": "int8"})
    assert pickle.loads(pickle.dumps(schema)) == schema
    assert repr(schema) == "Schema({'a': 'int8', 'b': 'list<utf8>'})"
