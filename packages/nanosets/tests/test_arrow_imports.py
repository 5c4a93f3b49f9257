"""What Arrow libraries hold that we do not, and what nobody may hold."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from nanorlhf.nanosets import Dataset, SchemaError
from nanorlhf.nanosets.arrow import import_array
from nanorlhf.nanosets.arrow_abi import opened

IMPORTED = {
    "large_utf8": (pa.array(["a", None, "bc"], pa.large_string()), "utf8"),
    "string_view": (pa.array(["a", None, "b" * 13, "c" * 40], pa.string_view()), "utf8"),
    "large_binary": (pa.array([b"a", None], pa.large_binary()), "binary"),
    "binary_view": (pa.array([b"a" * 30, None, b""], pa.binary_view()), "binary"),
    "fixed_size_binary": (pa.array([b"ab", None, b"cd"], pa.binary(2)), "binary"),
    "date64": (pa.array([0, None, 86_400_000 * 3], pa.int64()).cast(pa.date64()), "date32"),
    "list_view": (pa.array([[1, 2], None, [], [3]], pa.list_view(pa.int8())), "list<int8>"),
    "large_list_view": (pa.array([[1], None], pa.large_list_view(pa.int8())), "large_list<int8>"),
    "map": (pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())), "list"),
    "dictionary8": (
        pa.array(["x", None, "y"]).dictionary_encode().cast(pa.dictionary(pa.uint8(), pa.string())),
        "dictionary<utf8>",
    ),
    "uuid": (pa.array([b"0" * 16, None], pa.uuid()), "binary"),
    "json": (pa.array(["{}", None], pa.json_()), "utf8"),
}


@pytest.mark.parametrize("name", IMPORTED)
def test_types_that_we_lack_are_read_as_the_nearest_one(name, plain):
    theirs, spelling = IMPORTED[name]
    theirs = theirs.storage if isinstance(theirs, pa.ExtensionArray) and name == "uuid" else theirs
    for array in (theirs, theirs[1:], pa.concat_arrays([theirs, theirs])[1:-1]):
        found = import_array(array)
        assert str(found.dtype).startswith(spelling)
        wanted = array.to_pylist()
        if name == "map":
            wanted = [v if v is None else [{"key": a, "value": b} for a, b in v] for v in wanted]
        assert plain(found.pylist()) == wanted


def test_what_lies_under_a_null_string_view_is_not_looked_at():
    views = pa.array(["a" * 20, "b" * 20, "c"], pa.string_view()).buffers()
    raw = bytearray(views[1].to_pybytes())
    raw[16:32] = b"\xff" * 16
    valid = pa.py_buffer(bytes([0b101]))
    buffers = [valid, pa.py_buffer(bytes(raw)), *views[2:]]
    found = import_array(pa.Array.from_buffers(pa.string_view(), 3, buffers))
    assert found.pylist() == ["a" * 20, None, "c"]


def test_list_views_in_any_order_and_dictionaries_with_nulls_come_in_right():
    views = pa.ListViewArray.from_arrays([3, 0, 2], [2, 3, 0], pa.array([1, 2, 3, 4, 5]))
    assert [v.tolist() for v in import_array(views).pylist()] == [[4, 5], [1, 2, 3], []]
    codes = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 2]), pa.array(["x", None, "x"]))
    assert import_array(codes).pylist() == ["x", None, None, "x"]
    nested = pa.DictionaryArray.from_arrays(pa.array([1, 0, None]), pa.array([[1], None]))
    found = import_array(nested)
    assert str(found.dtype) == "list<int64>"
    assert [v if v is None else v.tolist() for v in found.pylist()] == [None, [1], None]


@pytest.mark.parametrize(
    "dtype",
    [pa.time32("s"), pa.duration("us"), pa.decimal128(10), pa.month_day_nano_interval()],
)
def test_types_that_nothing_here_holds_are_refused_by_name(dtype):
    table = pa.table({"a": pa.array([{"b": None}], pa.struct({"b": dtype}))})
    with pytest.raises(SchemaError, match=r"'a\.b': the Arrow type .* is no column type here"):
        Dataset.from_arrow(table)


def test_what_is_no_table_is_refused():
    with pytest.raises(TypeError, match="a list has no __arrow_c_stream__; give a table"):
        Dataset.from_arrow([1])
    with pytest.raises(SchemaError, match=r"one column of int64, no table; give it as \{name: col"):
        Dataset.from_arrow(pa.chunked_array([[1]]))
    rows = pa.chunked_array([pa.array([{"a": 1}, None])])
    with pytest.raises(SchemaError, match="a row of the Arrow table is null as a whole"):
        Dataset.from_arrow(rows)
    used = Dataset.from_dict({"a": [1]}).__arrow_c_stream__()
    opened(used, "arrow_array_stream")
    with pytest.raises(ValueError, match="was used already; ask for a new capsule"):
        opened(used, "arrow_array_stream")
    with pytest.raises(ValueError, match="is no PyCapsule of an arrow_schema"):
        opened(used, "arrow_schema")


def test_offsets_that_run_backwards_or_out_of_their_list_are_refused():
    offsets = pa.py_buffer(np.array([0, 2, 1], "<i4"))
    values = pa.array([1, 2, 3])
    wrong = pa.Array.from_buffers(pa.list_(pa.int64()), 2, [None, offsets], children=[values])
    with pytest.raises(SchemaError, match="Arrow offsets run backwards; mend the source"):
        import_array(wrong)
    numbers = np.array([0, 2, 3], "<i4")
    buffers = [None, pa.py_buffer(numbers)]
    wrong = pa.Array.from_buffers(pa.list_(pa.int64()), 2, buffers, children=[values])
    numbers[2] = 9
    with pytest.raises(SchemaError, match="Arrow offsets reach 9 of 3 elements; mend the source"):
        import_array(wrong)


def test_columns_of_arrow_libraries_are_values_like_any_other():
    ds = Dataset.from_dict({"a": pa.array([1, None]), "b": pl.Series([[1.5], []])})
    assert repr(ds.schema) == "Schema({'a': 'int64', 'b': 'large_list<float64>'})"
    assert ds.add_column("c", pa.chunked_array([["x"], ["y"]]))["c"][:] == ["x", "y"]


@pytest.mark.parametrize("sizes", [[40], [3], [40] * 50 + [3] * 50, [40, 3], [0, 13, 12, 5000]])
def test_string_views_of_any_mixture_of_lengths_come_in_right(sizes):
    strings = [f"{i:03}"[:size].ljust(size, "x") for i, size in enumerate(sizes * 200)]
    frame = pl.concat([pl.DataFrame({"s": strings}), pl.DataFrame({"s": [None, *strings]})])
    assert Dataset.from_arrow(frame)["s"][:] == frame["s"].to_list()
