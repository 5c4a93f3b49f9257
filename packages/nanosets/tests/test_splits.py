import json

import pytest

from nanorlhf.nanosets import CorruptFileError, Dataset, DatasetDict


@pytest.fixture
def splits():
    ds = Dataset.from_dict({"i": range(10), "m": [{"a": i, "b": str(i)} for i in range(10)]})
    return ds.train_test_split(3, shuffle=False)


def test_it_is_a_dictionary_with_numbers_of_rows_and_columns(splits):
    assert isinstance(splits, DatasetDict)
    assert list(splits) == ["train", "test"]
    assert splits.num_rows == {"train": 7, "test": 3}
    assert splits.num_columns == {"train": 2, "test": 2}
    assert splits.shape == {"train": (7, 2), "test": (3, 2)}
    assert splits.column_names == {"train": ["i", "m"], "test": ["i", "m"]}
    text = repr(splits)
    assert text.startswith("DatasetDict({\n    train: Dataset({\n")
    assert "num_rows: 3" in text


VERBS = {
    "map": ((lambda row: {"n": row["i"]},), {}),
    "filter": ((lambda row: row["i"] % 2,), {}),
    "sort": (("i",), {"reverse": True}),
    "select_columns": ((["i"],), {}),
    "remove_columns": (("i",), {}),
    "rename_column": (("i", "j"), {}),
    "rename_columns": (({"i": "j"},), {}),
    "cast_column": (("i", "int8"), {}),
    "flatten": ((), {}),
    "with_format": (("numpy",), {"columns": ["i"]}),
    "with_transform": ((lambda batch: {"k": batch["i"]},), {}),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_called_on_every_split(verb, splits, plain):
    args, options = VERBS[verb]
    found = getattr(splits, verb)(*args, **options)
    assert isinstance(found, DatasetDict)
    for name, ds in splits.items():
        want = getattr(ds, verb)(*args, **options)
        assert found[name].schema == want.schema
        assert plain(found[name][:2]) == plain(want[:2])
        assert len(found[name]) == len(want)


def test_cast_and_unique_go_to_every_split(splits):
    found = splits.cast({"i": "int8", "m": "struct<a: int8, b: utf8>"})
    assert str(found["test"].schema["i"]) == "int8"
    assert splits.unique("i") == {"train": list(range(7)), "test": [7, 8, 9]}


def test_splits_are_shuffled_by_one_seed_or_one_each(splits):
    assert splits.shuffle(seed=3)["test"]["i"][:] == splits["test"].shuffle(3)["i"][:]
    assert splits.shuffle(3)["train"]["i"][:] == splits["train"].shuffle(3)["i"][:]
    each = splits.shuffle({"train": 1, "test": 2})
    assert each["train"]["i"][:] == splits["train"].shuffle(1)["i"][:]
    assert each["test"]["i"][:] == splits["test"].shuffle(2)["i"][:]
    with pytest.raises(ValueError, match="are both given; leave one out"):
        splits.shuffle(1, 2)
    with pytest.raises(ValueError, match=r"seeds are given for \['train'\], the splits are"):
        splits.shuffle({"train": 1})


def test_splits_are_saved_to_a_folder_and_loaded(splits, tmp_path):
    splits.save_to_disk(tmp_path / "deep" / "data")
    names = sorted(path.name for path in (tmp_path / "deep" / "data").iterdir())
    assert names == ["dataset_dict.json", "test.nano", "train.nano"]
    found = DatasetDict.load_from_disk(tmp_path / "deep" / "data", verify=True)
    assert {n: ds.to_list() for n, ds in found.items()} == {
        n: ds.to_list() for n, ds in splits.items()
    }
    assert list(found) == ["train", "test"]


def test_map_writes_every_split_to_its_file(splits, tmp_path):
    found = splits.map(lambda row: {"n": row["i"] + 1}, output=tmp_path / "out")
    again = DatasetDict.load_from_disk(tmp_path / "out")
    assert again["test"]["n"][:] == found["test"]["n"][:] == [8, 9, 10]


def test_names_that_are_no_file_names_are_refused(splits, tmp_path):
    with pytest.raises(ValueError, match=r"split '\.\./x' is no file name"):
        DatasetDict({"../x": splits["train"]}).save_to_disk(tmp_path / "a")
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["/etc/passwd"]}))
    with pytest.raises(CorruptFileError, match="names no splits: split '/etc/passwd'"):
        DatasetDict.load_from_disk(tmp_path)
    (tmp_path / "dataset_dict.json").write_text("[")
    with pytest.raises(CorruptFileError, match="names no splits"):
        DatasetDict.load_from_disk(tmp_path)
    with pytest.raises(FileNotFoundError):
        DatasetDict.load_from_disk(tmp_path / "none")
