import json

import pyarrow as pa
import pytest

from nanorlhf.nanosets import (
    Dataset,
    DatasetDict,
    SchemaError,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)


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
        ("empty", FileNotFoundError, r"holds no file of \.nano, .*; name a file"),
        ("a.txt", ValueError, r"ends in none of \.nano, \.jsonl, .*; rename or convert it"),
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


def test_a_directory_loads_one_kind_of_file(tmp_path):
    (tmp_path / "b.csv").write_text("a\n2\n")
    (tmp_path / "a.csv").write_text("a\n1\n")
    (tmp_path / "a.parquet").write_bytes(b"not read")
    assert load_dataset(tmp_path)["a"][:] == [1, 2]


def test_every_way_to_read_gives_the_same_rows(folder):
    for io in ("mmap", "pread", "ram"):
        assert load_dataset(folder / "*.nano", io=io)["a"][:] == [3, 1, 2]
        assert load_from_disk(folder / "part-1.nano", io=io)["a"][:] == [1, 2]
    with pytest.raises(ValueError, match="io='disk' is none of mmap, pread, ram"):
        load_dataset(folder / "part-1.nano", io="disk")


def test_splits_are_loaded_by_name(folder):
    paths = {"train": [folder / "part-0.nano", folder / "d.json"], "test": folder / "c.jsonl"}
    splits = load_dataset(paths, features={"a": "int8"})
    assert isinstance(splits, DatasetDict)
    assert {name: ds["a"][:] for name, ds in splits.items()} == {"train": [3, 5, 6], "test": [4]}
    assert str(splits["test"].schema["a"]) == "int8"
    assert load_dataset(paths, split="test")["a"][:] == [4]


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("train", range(10)),
        ("train[:3]", range(3)),
        ("train[7:]", range(7, 10)),
        ("train[-2:]", range(8, 10)),
        ("train[10%:50%]", range(1, 5)),
        ("train[:-90%]", range(1)),
        ("train[:]", range(10)),
        ("train[20:30]", range(0)),
    ],
)
def test_some_rows_of_a_split_are_loaded(split, rows, tmp_path):
    Dataset.from_dict({"a": range(10)}).save_to_disk(tmp_path / "a.nano")
    assert load_dataset(tmp_path / "a.nano", split=split)["a"][:] == list(rows)


@pytest.mark.parametrize("split", ["test", "train[", "train[1]", "train[a:]", ""])
def test_a_split_that_is_not_there_is_refused(split, folder):
    with pytest.raises(ValueError, match=r"is none of \['train'\]; write e.g. train\[:100\]"):
        load_dataset(folder / "part-0.nano", split=split)


def test_a_directory_of_saved_splits_is_named_as_such(tmp_path):
    ds = Dataset.from_dict({"a": range(8)})
    ds.train_test_split(2).save_to_disk(tmp_path / "splits")
    with pytest.raises(IsADirectoryError, match=r"holds saved splits; use load_from"):
        load_dataset(tmp_path / "splits")


def test_a_table_of_another_library_is_loaded_without_a_copy():
    table = pa.table({"a": pa.array([1, 2, 3])})
    ds = load_dataset(table, split="train[1:]")
    assert ds["a"][:] == [2, 3]
    assert ds["a"].parts[0].array.values.ctypes.data == table["a"].chunk(0).buffers()[1].address
    assert str(load_dataset(table, features={"a": "int8"}).schema["a"]) == "int8"


def test_what_was_saved_loads_as_it_was_a_dataset_or_splits(tmp_path):
    ds = Dataset.from_dict({"a": range(10)})
    ds.save_to_disk(tmp_path / "a.nano")
    ds.train_test_split(0.3, seed=0).save_to_disk(tmp_path / "splits")
    assert isinstance(load_from_disk(tmp_path / "a.nano"), Dataset)
    for io in ("mmap", "pread", "ram"):
        found = load_from_disk(tmp_path / "splits", io=io, verify=True)
        assert isinstance(found, DatasetDict)
        assert found.num_rows == {"train": 7, "test": 3}


def test_data_files_are_of_the_kind_that_is_named(folder):
    (folder / "e.txt").write_text('{"a": 7}\n')
    found = load_dataset("json", data_files=folder / "e.txt")
    assert {name: ds["a"][:] for name, ds in found.items()} == {"train": [7]}
    files = {"train": [str(folder / "c.jsonl"), str(folder / "d.json")], "test": folder / "e.txt"}
    found = load_dataset("json", data_files=files)
    assert found.num_rows == {"train": 3, "test": 1}
    assert load_dataset("json", data_files=files, split="train[1:]")["a"][:] == [5, 6]
    assert load_dataset("nano", data_files=str(folder / "*.nano"), split="train")["a"][:] == [
        3,
        1,
        2,
    ]
    with pytest.raises(
        ValueError, match=r"path='text' is no kind of data_files; use one of \['jso"
    ):
        load_dataset("text", data_files="a.txt")


def test_several_files_are_one_dataset_and_open_files_are_written_to(folder):
    lines = [folder / "c.jsonl", folder / "c.jsonl"]
    assert Dataset.from_json(lines)["a"][:] == [4, 4]
    assert Dataset.from_jsonl(path_or_paths=lines)["a"][:] == [4, 4]
    with pytest.raises(ValueError, match=r"path_or_paths=\[\] names no file"):
        Dataset.from_csv([])
    ds = Dataset.from_dict({"a": [1, 2], "b": ["x\ny", "\u00e9"]})
    for suffix in ("json", "csv", "parquet"):
        write, read = getattr(ds, f"to_{suffix}"), getattr(Dataset, f"from_{suffix}")
        with open(folder / "open", "wb") as handle:
            write(path_or_buf=handle)
            assert not handle.closed
        write(folder / "named")
        if suffix != "parquet":
            assert (folder / "open").read_bytes() == (folder / "named").read_bytes()
        assert read(folder / "open").to_dict() == ds.to_dict()
        assert read(path_or_paths=[folder / "open", folder / "named"])["a"][:] == [1, 2, 1, 2]
