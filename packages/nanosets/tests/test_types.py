import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanorlhf.nanosets import Schema, SchemaError
from nanorlhf.nanosets.types import (
    Bool,
    Field,
    List,
    Null,
    Number,
    Struct,
    Utf8,
    depth_of,
    parse,
    unify,
    unify_all,
)

LEAVES = st.sampled_from([Bool(), Utf8(), Null(), Number("int8"), Number("float32")])
TYPES = st.recursive(
    LEAVES,
    lambda inner: (
        inner.map(List)
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
    assert [depth_of(parse(t)) for t in ("int8", "struct<>", "list<list<struct<a: utf8>>>")] == [
        0,
        1,
        3,
    ]


def test_a_schema_is_a_mapping_that_compares_and_pickles():
    schema = Schema.of({"a": "int8", "b": List(Utf8())})
    assert dict(schema) == {"a": Number("int8"), "b": List(Utf8())}
    assert schema == Schema.of({"a": "int8", "b": "list<utf8>"}) == Schema.of(schema)
    assert schema != Schema.of({"b": "list<utf8>", "a": "int8"})
    assert pickle.loads(pickle.dumps(schema)) == schema
    assert repr(schema) == "Schema({'a': 'int8', 'b': 'list<utf8>'})"
