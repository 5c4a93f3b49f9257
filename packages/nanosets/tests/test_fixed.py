"""Lists of one size and tensors against nested lists."""

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, SchemaError, concatenate_datasets, load_dataset
from nanorlhf.nanosets.build import build
from nanorlhf.nanosets.convert import convert
from nanorlhf.nanosets.fixed import Tensors, fixed_lists
from nanorlhf.nanosets.types import parse

CUBE = np.arange(24, dtype=np.int16).reshape(4, 2, 3)


def test_tensors_come_out_as_read_only_views_of_their_shape(tmp_path):
    ds = Dataset.from_dict({"x": CUBE}, features={"x": "tensor<int16, 2, 3>"})
    ds.save_to_disk(tmp_path / "a.nano", chunk_rows=3)
    for found in (ds, load_dataset(tmp_path / "a.nano")):
        for value in (found[3]["x"], found["x"][3], found[[0, 3]]["x"][1]):
            assert np.array_equal(value, CUBE[3])
            assert value.dtype == np.int16
            with pytest.raises(ValueError, match="read-only"):
                value[0, 0] = 1
        assert np.array_equal(found["x"].numpy(), CUBE)
        assert np.array_equal(found["x"].numpy([2, 0]), CUBE[[2, 0]])
        found["x"].numpy()[:] = 0
        assert np.array_equal(found[3]["x"], CUBE[3])


def test_building_a_tensor_from_an_array_shares_its_memory():
    array = convert(build(CUBE), parse("tensor<int16, 2, 3>"))
    assert np.shares_memory(array.dense(), CUBE)


def test_a_null_takes_the_room_of_a_value():
    array = convert(build([[1, 2], None, [3, 4]]), parse("fixed_list<int8, 2>"))
    assert array.child.length == 6
    assert [None if v is None else v.tolist() for v in array.pylist()] == [[1, 2], None, [3, 4]]
    column = Dataset.from_dict({"x": array})["x"]
    assert column.lengths().tolist() == [2, 0, 2]
    assert column.gather().values.tolist() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="is null; filter or fill it first"):
        column.numpy()
    assert column.numpy([2, 0]).tolist() == [[3, 4], [1, 2]]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("list<list<int16>>", "tensor<float32, 2, 3>"),
        ("large_list<fixed_list<int16, 3>>", "tensor<int16, 2, 3>"),
        ("tensor<int16, 2, 3>", "list<list<int32>>"),
        ("tensor<int16, 2, 3>", "fixed_list<tensor<int16, 3>, 2>"),
        ("tensor<int16, 2, 3>", "large_list<fixed_list<float32, 3>>"),
        ("tensor<int16, 2, 3>", "tensor<bfloat16, 2, 3>"),
        ("fixed_list<list<int16>, 2>", "list<large_list<int16>>"),
        ("fixed_list<fixed_list<int16, 3>, 2>", "fixed_list<list<int8>, 2>"),
    ],
)
def test_nested_lists_and_tensors_turn_into_each_other(source, target, plain):
    values = [None if i == 1 else CUBE[i].tolist() for i in range(4)]
    array = convert(convert(build(values), parse(source)), parse(target))
    assert array.dtype == parse(target)
    assert plain(array.pylist()) == values
    assert plain(array.take(0, np.array([3, 1])).pylist()) == [values[3], None]
    empty = convert(convert(build([]), parse(source)), parse(target))
    assert empty.pylist() == []
    nothing = convert(convert(build([None, None]), parse(source)), parse(target))
    assert nothing.pylist() == [None, None]


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([[1], [1, 2]], "fixed_list<int8, 1>", "value 1 has 2 elements, asked are 1; pad or cut"),
        ([[[1, 2]]], "tensor<int8, 2, 1>", "value 0 has 1 elements, asked are 2"),
        ([[[1], [2, 3]]], "tensor<int8, 2, 1>", r"'x\[\]': value 1 has 2 elements, asked are 1"),
        ([[1, 2]], "tensor<int8, 2, 1>", "nest lists as deep"),
        ([["a"]], "tensor<int8, 1>", "holds utf8, asked is int8"),
        ([[1, None]], "tensor<int8, 2>", "an element of a tensor<int8, 2> is null; fill it"),
        ([[[1], None]], "tensor<int8, 2, 1>", "an inner list of a tensor<int8, 2, 1> is null"),
        ([[300]], "tensor<int8, 1>", "300 does not fit int8"),
        ([1], "fixed_list<int8, 1>", "holds int64, asked is fixed_list"),
    ],
)
def test_what_has_not_the_shape_is_refused(values, dtype, message):
    with pytest.raises(SchemaError, match=message):
        convert(build(values), parse(dtype), field="x")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("fixed_list<int8, 2>", "fixed_list<int8, 3>", "asked are 3 elements; map it first"),
        ("tensor<int8, 2>", "tensor<int8, 2, 1>", "map the values to that shape first"),
    ],
)
def test_sizes_that_differ_are_refused(source, target, message):
    array = convert(build([[1, 2]]), parse(source))
    with pytest.raises(SchemaError, match=message):
        convert(array, parse(target))


def test_nulls_under_a_null_row_do_not_stop_a_tensor():
    child = build([1, 2, None, None])
    rows = fixed_lists(2, child, length=2, valid=build([True, False]).bits)
    found = convert(rows, parse("tensor<int64, 2>"))
    assert found.pylist()[0].tolist() == [1, 2]
    assert found.pylist()[1] is None
    with pytest.raises(SchemaError, match="an element of a tensor<int64, 2> is null"):
        Tensors(parse("tensor<int64, 2>"), child, length=2)


def test_tensors_concatenate_and_refuse_to_be_gathered():
    ds = Dataset.from_dict({"x": CUBE}, features={"x": "tensor<int16, 2, 3>"})
    both = concatenate_datasets([ds, ds]).select([7, 0])
    assert np.array_equal(both["x"].numpy(), CUBE[[3, 0]])
    with pytest.raises(TypeError, match="gather takes lists of numbers, not tensor"):
        ds.gather("x")


def test_sizes_of_nothing_are_allowed(plain):
    array = convert(build([[], None]), parse("fixed_list<int8, 0>"))
    assert plain(array.pylist()) == [[], None]
    found = convert(build(np.zeros((2, 0, 3), np.int8)), parse("tensor<int8, 0, 3>"))
    assert [v.shape for v in found.pylist()] == [(0, 3), (0, 3)]
