import json

import pytest

from nanorlhf.nanosets import Dataset, SchemaError, concatenate_datasets, load_dataset


@pytest.fixture
def folder(tmp_path):
    Dataset.from_dict({"a": [1, 2]}).save_to_disk(tmp_path / "part-1.nano")
    Dataset.from_dict({"a": [3]}).save_to_disk(tmp_path / "part-0.nano")
    (tmp_path / "c.jsonl").write_text('{"a": 4}\n')
    (tmp_path / "d.json").write_text(json.dumps([{"a": 5}, {"a": 6}]))
    return tmp_path


def test_files_globs_folders_and_lists_load_in_order(folder):
    assert load_dataset(folder / "part-1.nano")["a"][:] == [1, 2]
    assert load_dataset(str(folder / "part-*.nano"))["a"][:] == [3, 1, 2]
    assert load_dataset(folder)["a"][:] == [3, 1, 2]
    mixed = [folder / "d.json", folder / "c.jsonl", str(folder / "*.nano")]
    assert load_dataset(mixed, verify=True)["a"][:] == [5, 6, 4, 3, 1, 2]
    assert str(load_dataset(mixed, features={"a": "int8"}).schema["a"]) == "int8"


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder):
    Dataset.from_dict({"a": [9]}).save_to_disk(folder / "x[1].nano")
    assert load_dataset(folder / "x[1].nano")["a"][:] == [9]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("none.nano", FileNotFoundError, "names no file; check the path or pattern"),
        ("*.csv", FileNotFoundError, "names no file"),
        ("empty", FileNotFoundError, r"holds no \.nano file; name a file"),
        ("a.txt", ValueError, r"ends in none of \.nano, \.jsonl, \.json; rename or convert it"),
    ],
)
def test_what_is_not_there_is_refused(name, error, message, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(error, match=message):
        load_dataset(tmp_path / name)


def test_an_empty_list_is_refused():
    with pytest.raises(FileNotFoundError, match=r"path=\[\] names no file"):
        load_dataset([])
    with pytest.raises(ValueError, match="holds no dataset; give at least one"):
        concatenate_datasets([])


def test_concatenation_fills_missing_columns_and_widens_numbers():
    first = Dataset.from_dict({"a": [1]}, features={"a": "int8"})
    second = Dataset.from_dict({"a": [300], "b": ["x"]})
    third = Dataset.from_dict({"a": [None], "b": [None]})
    found = concatenate_datasets([first, second, third])
    assert found.to_dict() == {"a": [1, 300, None], "b": [None, "x", None]}
    assert repr(found.schema) == "Schema({'a': 'int64', 'b': 'utf8'})"
    with pytest.raises(SchemaError, match="field 'a': holds both int8 and utf8"):
        concatenate_datasets([first, Dataset.from_dict({"a": ["x"]})])


def test_concatenation_copies_nothing_and_shares_row_numbers(folder):
    ds = load_dataset(folder / "part-1.nano").map(lambda row: {"b": row["a"]})
    both = concatenate_datasets([ds.shuffle(seed=0), ds])
    assert both.columns["a"].parts == (*ds.columns["a"].parts, *ds.columns["a"].parts)
    assert both.columns["a"].rows is both.columns["b"].rows
