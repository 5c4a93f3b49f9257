import pickle

import numpy as np
import pytest

from nanorlhf.nanosets import Column, Dataset, SchemaError, load_from_disk
from nanorlhf.nanosets.build import build, struct


@pytest.fixture
def ds():
    return Dataset.from_dict({"a": [1, 2], "b": ["x", "y"], "c": [True, None]})


def test_columns_are_renamed_in_place_and_may_change_names(ds):
    assert ds.rename_columns({"a": "n", "c": "m"}).column_names == ["n", "b", "m"]
    swapped = ds.rename_columns({"a": "b", "b": "a"})
    assert swapped.to_dict() == {"b": [1, 2], "a": ["x", "y"], "c": [True, None]}
    assert ds.rename_columns({}).column_names == ["a", "b", "c"]
    for mapping in ({"a": "b"}, {"a": "n", "b": "n"}):
        with pytest.raises(ValueError, match="is there already; remove it first"):
            ds.rename_columns(mapping)
    with pytest.raises(KeyError, match="no column 'z'"):
        ds.rename_columns({"z": "a"})


def test_one_column_is_cast_and_the_others_are_shared(ds):
    found = ds.cast_column("a", "int8")
    assert {n: str(t) for n, t in found.schema.items()} == {"a": "int8", "b": "utf8", "c": "bool"}
    assert found.columns["b"] is ds.columns["b"]
    assert found["a"][:] == [1, 2]
    with pytest.raises(SchemaError, match="field 'b': holds utf8, asked is int8"):
        ds.cast_column("b", "int8")
    with pytest.raises(KeyError, match="no column 'z'"):
        ds.cast_column("z", "int8")


def flat_by_definition(row, prefix=""):
    """Structs as dotted names; a null struct is a null in each of its fields."""
    found = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= flat_by_definition(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


STRUCTS = [
    {"id": i, "m": {"a": i * 2, "b": {"c": [i] * i, "d": str(i)}, "e": None if i % 2 else i}}
    for i in range(7)
]


@pytest.mark.parametrize("order", [range(7), [6, 2, 2, 0]])
def test_structs_become_columns_without_a_copy(order, tmp_path):
    Dataset.from_list(STRUCTS).save_to_disk(tmp_path / "a.nano", chunk_rows=3)
    ds = load_from_disk(tmp_path / "a.nano")
    found = ds.select(order).flatten()
    assert found.column_names == ["id", "m.a", "m.b.c", "m.b.d", "m.e"]
    want = [flat_by_definition(STRUCTS[i]) for i in order]
    assert found.to_list() == want
    assert pickle.loads(pickle.dumps(found)).to_list() == want
    assert found.columns["m.a"].parts[0].source == str(tmp_path / "a.nano")
    found.save_to_disk(tmp_path / "b.nano")
    assert load_from_disk(tmp_path / "b.nano").to_list() == want
    assert ds.flatten(max_depth=1).column_names == ["id", "m"]
    assert ds.flatten(max_depth=2).column_names == ["id", "m.a", "m.b", "m.e"]


def test_a_null_struct_is_a_null_in_each_column(tmp_path):
    rows = [
        {"m": {"a": 1, "t": [1], "n": {"k": "x"}}},
        {"m": None},
        {"m": {"a": 3, "t": None, "n": None}},
    ]
    memory = Dataset.from_list(rows)
    memory.save_to_disk(tmp_path / "a.nano", chunk_rows=2)
    for ds in (memory, load_from_disk(tmp_path / "a.nano")):
        found = ds.select([2, 1, 0]).flatten()
        assert found.to_dict() == {
            "m.a": [3, None, 1],
            "m.t": [None, None, [1]],
            "m.n.k": [None, None, "x"],
        }
        assert ds.to_list() == rows


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_field_under_a_null_struct_is_null_whatever_lies_there(compression, tmp_path):
    if compression:
        pytest.importorskip("zstandard", reason="zstandard is not installed")
    fields = {"a": build([1, 2, None]), "b": build(["x", "y", "z"])}
    column = Column.of(struct(fields, length=3, valid=np.array([True, False, True])))
    memory = Dataset({"m": column})
    memory.save_to_disk(tmp_path / "a.nano", chunk_rows=2, compression=compression)
    for ds in (memory, load_from_disk(tmp_path / "a.nano")):
        found = ds.flatten()
        assert found.to_dict() == {"m.a": [1, None, None], "m.b": ["x", None, "z"]}
        assert [found["m.b"][i] for i in (2, 0, 1)] == ["z", "x", None]
        assert ds.to_list() == [
            {"m": {"a": 1, "b": "x"}},
            {"m": None},
            {"m": {"a": None, "b": "z"}},
        ]


def test_a_name_that_is_taken_is_refused():
    ds = Dataset.from_list([{"m": {"a": 1}, "m.a": 2}])
    with pytest.raises(ValueError, match=r"column 'm\.a' is there already; rename it first"):
        ds.flatten()
