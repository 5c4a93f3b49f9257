import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, concatenate_datasets, load_dataset


@pytest.fixture
def tokens(tmp_path):
    """Lists of int32 in chunks of two, and the same in memory behind them, shuffled."""
    lists = [[1, 2], [], None, [3], [4, 5, 6]]
    memory = Dataset.from_dict({"tokens": lists}, features={"tokens": "list<int32>"})
    memory.save_to_disk(tmp_path / "a.nano", chunk_rows=2)
    order = [7, 0, 4, 9, 2]
    both = concatenate_datasets([load_dataset(tmp_path / "a.nano"), memory]).select(order)
    return both["tokens"], [(lists + lists)[i] for i in order]


def test_a_column_is_a_sequence_of_values(tokens, plain):
    column, want = tokens
    assert plain(list(column)) == want
    assert plain(column.to_list()) == want
    assert plain(column[1:4]) == want[1:4]
    assert plain(column[[-1, 0]]) == [want[-1], want[0]]
    assert plain(column[-2]) == want[-2]
    assert len(column) == 5
    assert repr(column) == "Column(list<int32>, 5 rows)"
    with pytest.raises(IndexError, match=r"row 5 is not in a dataset of 5 rows; use 0 \.\. 4"):
        column[5]
    with pytest.raises(IndexError, match="row -1 is not"):
        column[-6]


def test_lists_of_numbers_are_read_only_views(tmp_path):
    ds = Dataset.from_dict({"t": np.arange(6, dtype=np.int16).reshape(2, 3)})
    ds.save_to_disk(tmp_path / "a.nano")
    for found in (ds, load_dataset(tmp_path / "a.nano")):
        for value in (found[1]["t"], found[[1]]["t"][0], found["t"][1]):
            assert value.tolist() == [3, 4, 5]
            assert value.dtype == np.int16
            assert not value.flags.owndata
            with pytest.raises(ValueError, match="read-only"):
                value[0] = 9


def test_a_list_with_a_null_inside_comes_out_as_a_list():
    column = Dataset.from_dict({"t": [[1, None], [2]], "b": [[True], [None]]})
    assert column["t"][0] == [1, None]
    assert column[:]["t"][0] == [1, None]
    assert column["t"][1].tolist() == [2]
    assert column["b"][1] == [None]
    assert column["b"][0].dtype == np.bool_


def test_gather_owns_what_it_returns_even_of_neighbouring_rows(tmp_path):
    Dataset.from_dict({"t": np.arange(6).reshape(2, 3)}).save_to_disk(tmp_path / "a.nano")
    ragged = load_dataset(tmp_path / "a.nano").gather("t")
    ragged.values[:] = 0
    assert load_dataset(tmp_path / "a.nano")[1]["t"].tolist() == [3, 4, 5]


def test_padded_rows_are_a_rectangle(tokens):
    column, _ = tokens
    assert column.padded([2, 0, 1], pad_value=-1).tolist() == [[4, 5, 6], [-1, -1, -1], [1, 2, -1]]
    assert column.padded([1], length=3, left=True).tolist() == [[0, 1, 2]]


def test_gather_refuses_what_has_no_packed_form():
    ds = Dataset.from_list([{"s": "x", "n": 1, "t": [None, 1], "u": ["a"], "w": [[1]], "e": []}])
    for name in ("s", "n", "u", "w"):
        with pytest.raises(TypeError, match="gather takes lists of numbers, not"):
            ds.gather(name)
    with pytest.raises(ValueError, match="has a null inside; filter it first"):
        ds.gather("t")
    assert ds.gather("e").offsets.tolist() == [0, 0]


def test_lengths_are_elements_of_lists_and_bytes_of_strings(tokens):
    column, want = tokens
    assert column.lengths().tolist() == [len(v or ()) for v in want]
    ds = Dataset.from_dict({"s": ["\u00e9", None, ""], "n": [1, 2, 3]})
    assert ds["s"].lengths([0, 1]).tolist() == [2, 0]
    with pytest.raises(TypeError, match="a column of int64 has no lengths"):
        ds["n"].lengths()


def test_numpy_takes_flat_columns_without_nulls():
    ds = Dataset.from_dict({"n": np.arange(3, dtype=np.int8), "b": [True, False, True]})
    ds = concatenate_datasets([ds, ds]).select([5, 0])
    assert ds["n"].numpy().tolist() == [2, 0]
    assert ds["n"].numpy().dtype == np.int8
    assert ds["b"].numpy([1]).tolist() == [True]
    ds["n"].numpy()[0] = 7
    other = Dataset.from_dict({"n": [1, None], "s": ["x", "y"]})
    with pytest.raises(ValueError, match="a row of this int64 column is null"):
        other["n"].numpy()
    with pytest.raises(TypeError, match="a column of utf8 is no array of numbers"):
        other["s"].numpy()


def test_blocks_are_views_of_the_chunks_in_order(tmp_path):
    ds = Dataset.from_dict({"n": np.arange(10, dtype=np.int32)})
    ds.save_to_disk(tmp_path / "a.nano", chunk_rows=4)
    column = load_dataset(tmp_path / "a.nano")["n"]
    blocks = list(column.blocks(3))
    assert [block.values.tolist() for block in blocks] == [[0, 1, 2], [3], [4, 5, 6], [7], [8, 9]]
    assert not any(block.values.flags.owndata for block in blocks)
    assert [b.pylist() for b in column.select(np.array([9, 0, 5])).blocks(2)] == [[9, 0], [5]]
    assert list(Dataset.from_dict({"n": []})["n"].blocks(2)) == []
    with pytest.raises(ValueError, match="max_rows=0 is not positive; use 1 or more"):
        next(column.blocks(0))


@pytest.mark.parametrize("rows", [slice(None), slice(1, 4), slice(3, 1), slice(None, None, 2)])
def test_slices_read_without_numbering_rows_are_the_same(rows, tmp_path):
    lists = [[1], None, [], [2, 3], [4]]
    numbers = [5, 6, 7, 8, 9]
    ds = Dataset.from_dict({"t": lists, "n": numbers})
    ds.save_to_disk(tmp_path / "a.nano", chunk_rows=2)
    disk = load_dataset(tmp_path / "a.nano")
    for found in (ds, disk, concatenate_datasets([disk, ds]).select(range(5))):
        assert found["t"].lengths(rows).tolist() == [len(v or ()) for v in lists[rows]]
        assert found["n"].numpy(rows).tolist() == numbers[rows]
    both = concatenate_datasets([disk, ds])
    assert both["n"].numpy(slice(3, 8)).tolist() == [8, 9, 5, 6, 7]
    assert both["t"].lengths(slice(3, 8)).tolist() == [2, 1, 1, 0, 0]


def test_numbers_of_a_column_belong_to_the_caller(tmp_path):
    ds = Dataset.from_dict({"n": np.arange(4)})
    ds.save_to_disk(tmp_path / "a.nano")
    for found in (ds, load_dataset(tmp_path / "a.nano")):
        found["n"].numpy()[:] = 7
        assert found["n"][:] == [0, 1, 2, 3]


def test_numbered_rows_that_follow_one_another_are_read_as_they_lie(tmp_path):
    values = [f"v{i}" for i in range(10)]
    ds = Dataset.from_dict({"s": values, "n": np.arange(10)})
    ds.save_to_disk(tmp_path / "a.nano", chunk_rows=4)
    for numbers in (range(2, 9), [2, 3, 4, 8, 7, 6, 5], [3, 3, 4, 6], [5], []):
        picked = load_dataset(tmp_path / "a.nano").select(numbers)
        assert picked["s"][:] == list(picked["s"]) == [values[i] for i in numbers]
        assert picked["n"].block(0, len(numbers)).pylist() == list(numbers)
    assert not picked.select([])["n"][:]
    kept = load_dataset(tmp_path / "a.nano").select(range(4, 8))
    assert not kept["n"].block(0, 3).values.flags.owndata
