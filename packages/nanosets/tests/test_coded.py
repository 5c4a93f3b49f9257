"""Dictionary arrays against the list of their values."""

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, Ragged, SchemaError, Writer
from nanorlhf.nanosets.build import build
from nanorlhf.nanosets.coded import Vocabulary, coded
from nanorlhf.nanosets.column import Column
from nanorlhf.nanosets.convert import concat, convert, encoded
from nanorlhf.nanosets.reader import File
from nanorlhf.nanosets.types import parse


def test_each_distinct_value_is_stored_once_in_the_order_of_first_sight():
    array = encoded(build(["b", "a", None, "b", "a"]))
    assert array.values.pylist() == ["b", "a"]
    assert array.codes.values.tolist() == [0, 1, 0, 0, 1]
    assert array.pylist() == ["b", "a", None, "b", "a"]


def test_floats_are_told_apart_by_their_bits():
    array = encoded(build([0.0, -0.0, float("nan"), float("nan")]))
    assert array.codes.values.tolist() == [0, 1, 2, 2]


def test_codes_of_another_library_are_checked_and_its_nulls_moved():
    values = build(["a", None, "b", "a"])
    valid = np.array([True, True, True, False, True])
    array = coded(np.array([2, 1, 0, 99, 3]), values, valid=valid)
    assert array.pylist() == ["b", None, "a", None, "a"]
    assert None not in array.values.pylist()
    for bad in ([4], [-1]):
        with pytest.raises(SchemaError, match="do not name 4 values; mend them"):
            coded(np.array(bad), values)
    assert coded(np.array([7]), values, valid=np.array([False])).pylist() == [None]
    nothing = convert(build([None]), parse("utf8"))
    assert coded(np.array([0, 0]), nothing).pylist() == [None, None]


def test_arrays_of_different_dictionaries_join_into_one():
    dtype = parse("dictionary<utf8>")
    values = (["a", "b"], ["c", None, "a"], [None], [])
    arrays = [convert(build(some), dtype) for some in values]
    both = concat(arrays)
    assert both.pylist() == ["a", "b", "c", None, "a", None]
    assert both.values.pylist() == ["a", "b", "c"]
    shared = concat([arrays[0].window(0, 0, 1), arrays[0].window(0, 1, 2)])
    assert shared.values is arrays[0].values


@pytest.mark.parametrize(
    ("dtype", "want"),
    [("int64", [1, 1, None, 300]), ("dictionary<float64>", [1.0, 1.0, None, 300.0])],
)
def test_a_dictionary_converts_from_and_to_what_its_values_do(dtype, want):
    array = convert(build([1, 1, None, 300]), parse("dictionary<int16>"))
    assert str(array.dtype) == "dictionary<int16>"
    assert convert(array, parse(dtype)).pylist() == want
    with pytest.raises(SchemaError, match="300 does not fit int8"):
        convert(array, parse("dictionary<int8>"))


def test_values_that_become_equal_share_a_code():
    array = encoded(build([1.0, 1.0 + 2**-40, 2.0]))
    found = convert(array, parse("dictionary<float32>"))
    assert found.pylist() == [1.0, 1.0, 2.0]
    assert found.values.pylist() == [1.0, 2.0]


def test_a_vocabulary_keeps_the_numbers_of_values_that_repeat():
    known = Vocabulary(build(["a", "a", "b"]))
    assert known.codes_of(build(["b", "new", "a", "new"])).tolist() == [2, 3, 0, 3]
    assert concat(known.parts).pylist() == ["a", "a", "b", "new"]


def test_blocks_with_their_own_dictionaries_become_one_in_a_file(tmp_path):
    with Writer(tmp_path / "a.nano", chunk_rows=2) as writer:
        for words in (["x", "y"], ["y", "z"], [None, "x"]):
            writer.write_batch({"w": encoded(build(words)), "l": [words, []]})
    file = File(tmp_path / "a.nano", verify=True)
    array = file.array("w")
    assert array.values.pylist() == ["x", "y", "z"]
    assert list(Column.of_file(file, "w")) == ["x", "y", "y", "z", None, "x"]
    assert Column.of_file(file, "w").block(0, 6).codes.values.tolist() == [0, 1, 1, 2, 0, 0]


def test_plain_values_that_follow_a_dictionary_are_taken_into_it(tmp_path):
    with Writer(tmp_path / "a.nano", chunk_rows=1) as writer:
        writer.write_batch({"w": encoded(build([1]))})
        writer.write_batch({"w": [None, 2**40]})
    column = Column.of_file(File(tmp_path / "a.nano", verify=True), "w")
    assert str(column.dtype) == "dictionary<int64>"
    assert list(column) == [1, None, 2**40]


def test_dictionaries_in_a_dataset_select_and_concatenate():
    ds = Dataset.from_dict({"w": ["a", "b", None]}, features={"w": "dictionary<utf8>"})
    assert ds.select([2, 1, 1])["w"][:] == [None, "b", "b"]
    assert ds.select([1])["w"].block(0, 1).values.pylist() == ["a", "b"]
    ragged = Ragged(np.array([1, 2]), np.array([0, 2]))
    assert Dataset.from_dict({"w": ragged}, features={"w": "list<dictionary<int8>>"})[0]["w"] == [
        1,
        2,
    ]
