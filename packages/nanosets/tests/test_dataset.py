import os
import pickle

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, Ragged, SchemaError, load_dataset, load_from_disk


@pytest.fixture
def letters():
    return Dataset.from_dict({"i": list(range(10)), "c": list("abcdefghij")})


def test_rows_batches_and_columns_come_out_by_key(letters):
    assert letters[3] == {"i": 3, "c": "d"}
    assert letters[np.int64(-1)] == {"i": 9, "c": "j"}
    assert letters[2:4] == {"i": [2, 3], "c": ["c", "d"]}
    assert letters[[4, 4]] == {"i": [4, 4], "c": ["e", "e"]}
    assert letters["c"][0] == "a"
    assert letters.column_names == ["i", "c"]
    assert letters.num_rows == len(letters) == 10
    assert letters.features == letters.schema
    assert letters.__getitems__([1, 0]) == [{"i": 1, "c": "b"}, {"i": 0, "c": "a"}]
    assert letters.to_list()[9] == {"i": 9, "c": "j"}
    with pytest.raises(IndexError, match="row 10 is not in a dataset of 10 rows"):
        letters[10]
    with pytest.raises(KeyError, match=r"no column 'x'; there are \['i', 'c'\]"):
        letters["x"]
    with pytest.raises(TypeError, match="picked by a slice"):
        letters[1.0]


def test_iter_yields_batches_and_may_drop_the_last(letters):
    assert [batch["i"] for batch in letters.iter(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(list(letters.iter(4, drop_last_batch=True))) == 2
    with pytest.raises(ValueError, match="batch_size=0 is not positive; use 1 or more"):
        list(letters.iter(0))


def test_selections_compose(letters):
    assert letters.select([5, 2, 7])["c"][:] == ["f", "c", "h"]
    assert letters.select([5, 2, 7]).select([-1, 0])["c"][:] == ["h", "f"]
    assert letters.select(np.array([], int)).to_list() == []
    with pytest.raises(IndexError, match="row 3 is not in a dataset of 3 rows"):
        letters.select(range(3)).select([3])


def test_a_shuffle_is_a_permutation_that_its_seed_fixes(letters):
    first = letters.shuffle(seed=3)["i"][:]
    assert sorted(first) == list(range(10))
    assert first != list(range(10))
    assert letters.shuffle(seed=3)["i"][:] == first
    assert letters.shuffle(seed=4)["i"][:] != first
    assert first == np.random.default_rng(3).permutation(10).tolist()


@pytest.mark.parametrize(
    ("sizes", "train", "test"),
    [
        ({}, 7, 3),
        ({"test_size": 0.2}, 8, 2),
        ({"test_size": 3}, 7, 3),
        ({"train_size": 0.55}, 5, 5),
        ({"train_size": 2, "test_size": 1}, 2, 1),
    ],
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_split_is_disjoint_and_as_large_as_asked(sizes, train, test, shuffle, letters):
    split = letters.train_test_split(**sizes, shuffle=shuffle, seed=0)
    found = [split[side]["i"][:] for side in ("train", "test")]
    assert [len(side) for side in found] == [train, test]
    assert len({*found[0], *found[1]}) == train + test
    assert letters.train_test_split(**sizes, shuffle=shuffle, seed=0)["test"]["i"][:] == found[1]
    if not shuffle:
        assert found == [list(range(train)), list(range(train, train + test))]
    else:
        order = np.random.default_rng(0).permutation(10).tolist()
        assert found == [order[test : test + train], order[:test]]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"test_size": 1.5}, "test_size=1.5 is not between 0 and 1; use an int for rows"),
        ({"test_size": 10}, "test_size=10 is not between 0 and the 10 rows"),
        ({"test_size": 6, "train_size": 6}, "ask for 6 . 6 of 10 rows"),
        ({"train_size": 0.01}, "leave at least one to each side"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(sizes, message, letters):
    with pytest.raises(ValueError, match=message):
        letters.train_test_split(**sizes)


def test_columns_are_selected_removed_renamed_and_added(letters):
    assert letters.select_columns(["c"]).column_names == ["c"]
    assert letters.select_columns("c")[0] == {"c": "a"}
    assert letters.remove_columns("i").column_names == ["c"]
    assert letters.rename_column("i", "n").column_names == ["n", "c"]
    assert letters.rename_column("i", "i").column_names == ["i", "c"]
    with pytest.raises(ValueError, match="column 'c' is there already; remove it first"):
        letters.rename_column("i", "c")
    for verb in (letters.select_columns, letters.remove_columns):
        with pytest.raises(KeyError, match="no column 'x'"):
            verb(["i", "x"])
    more = letters.shuffle(seed=0).add_column("k", np.arange(10, dtype=np.int8))
    assert more["k"][:] == list(range(10))
    assert more.select([4])[0] == {**letters.shuffle(seed=0)[4], "k": 4}
    assert str(letters.add_column("k", [1] * 10, feature="int32").schema["k"]) == "int32"
    twice = letters.shuffle(seed=1).add_column("again", letters["c"])
    assert twice["again"][:] == list("abcdefghij")
    with pytest.raises(ValueError, match="column 'i' is there already"):
        letters.add_column("i", range(10))
    with pytest.raises(ValueError, match="column 'k' has 2 values for 10 rows"):
        letters.add_column("k", [1, 2])


def test_columns_of_one_dataset_share_their_row_numbers(letters):
    columns = letters.shuffle(seed=0).select(range(5)).columns
    assert columns["i"].rows is columns["c"].rows


def test_cast_changes_types_and_refuses_other_names(letters):
    ds = letters.shuffle(seed=0)
    wide = ds.cast({"i": "float32", "c": "utf8"})
    assert str(wide.schema["i"]) == "float32"
    assert wide["i"][:] == ds["i"][:]
    with pytest.raises(SchemaError, match=r"asked are \['i'\], there are \['i', 'c'\]; name all"):
        letters.cast({"i": "int8"})
    with pytest.raises(SchemaError, match="field 'c': holds utf8, asked is int8"):
        letters.cast({"i": "int8", "c": "int8"})


def test_saving_a_few_rows_of_many_writes_only_those(tmp_path):
    big = Dataset.from_dict({"t": np.arange(1_000_000).reshape(10_000, 100)})
    big.save_to_disk(tmp_path / "big.nano")
    few = load_from_disk(tmp_path / "big.nano").select([9000, 3, 5000])
    few.save_to_disk(tmp_path / "few.nano")
    assert os.path.getsize(tmp_path / "few.nano") < 6000
    assert [t[0] for t in load_from_disk(tmp_path / "few.nano")["t"]] == [900_000, 300, 500_000]


def test_rows_larger_than_a_save_block_are_written_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr("nanorlhf.nanosets.export.GATHER_BYTES", 100)
    ds = Dataset.from_dict({"t": [[i] * 50 for i in range(300)]}).shuffle(seed=0)
    ds.save_to_disk(tmp_path / "a.nano")
    assert load_from_disk(tmp_path / "a.nano").to_dict()["t"][7] == ds[7]["t"].tolist()


def test_a_path_may_be_relative_and_its_folder_missing(tmp_path, monkeypatch, letters):
    monkeypatch.chdir(tmp_path)
    letters.save_to_disk("a.nano")
    letters.save_to_disk("deep/er/b.nano")
    ds = load_dataset("a.nano")
    monkeypatch.chdir("deep")
    assert pickle.loads(pickle.dumps(ds))[0] == letters[0]


def test_a_dataset_in_memory_pickles_with_its_values(letters):
    found = pickle.loads(pickle.dumps(letters.select([2, 1])))
    assert found.to_list() == letters.select([2, 1]).to_list()


def test_ragged_and_columns_make_columns():
    ragged = Ragged(np.array([1, 2, 3]), np.array([0, 2, 3]))
    ds = Dataset.from_dict({"t": ragged})
    again = Dataset.from_dict({"u": ds.select([1])["t"], "n": [1]})
    assert again[0]["u"].tolist() == [3]


def test_an_empty_dataset_has_no_rows_and_every_verb():
    ds = Dataset.from_list([])
    assert len(ds) == 0
    assert ds.to_list() == []
    assert ds.column_names == []
    empty = Dataset.from_list([], features={"t": "list<int8>"})
    assert empty[:] == {"t": []}
    assert empty.shuffle(seed=0).filter(lambda row: True).map(lambda row: row).to_list() == []
    assert empty.gather("t", []).values.tolist() == []
