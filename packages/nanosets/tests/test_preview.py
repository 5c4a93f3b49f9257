import re

from nanorlhf.nanosets import Dataset, load_from_disk


def lines(ds):
    return repr(ds).splitlines()[4:]


def test_a_dataset_shows_its_first_rows():
    ds = Dataset.from_dict({"i": range(7), "s": ["a\nb", "", "c" * 40, None, "e", "f", "g"]})
    assert lines(ds) == [
        "i  s",
        "0  a\\nb",
        "1",
        "2  ccccccccccccccccccccccccccccc...",
        "3  None",
        "4  e",
        "... 2 more rows",
    ]


def test_lists_structs_and_many_columns_are_shortened():
    ds = Dataset.from_dict({"t": [list(range(100))], "m": [{"a": 1, "b": [0.5]}]})
    assert lines(ds)[1] == "[0, 1, 2, 3, 4, 5, ... 100]  {a: 1, b: [0.5]}"
    wide = Dataset.from_dict({f"column_{i:03}": [i] for i in range(40)})
    assert lines(wide)[0].endswith("  ... 32 more columns")
    assert max(map(len, lines(wide))) < 130


def test_no_rows_show_nothing():
    assert lines(Dataset.from_list([])) == []
    assert lines(Dataset.from_dict({"a": []})) == []


def test_a_format_does_not_change_what_is_shown():
    ds = Dataset.from_dict({"a": [1], "b": [2]})
    assert repr(ds.with_format("numpy", columns=["a"])) == repr(ds)
    assert repr(ds.with_transform(lambda batch: 1 / 0)) == repr(ds)


def test_a_damaged_file_is_said_to_be_so(tmp_path):
    path = tmp_path / "a.nano"
    Dataset.from_dict({"s": ["abc" * 30] * 50}).save_to_disk(path)
    data = path.read_bytes()
    at = data.index(b"abcabc")
    path.write_bytes(data[:at] + b"\xff" + data[at + 1 :])
    assert re.search(r"\(its rows cannot be shown: .*not UTF-8", repr(load_from_disk(path)))
