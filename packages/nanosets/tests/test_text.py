import csv
import json
from pathlib import Path

import pytest

from nanorlhf.nanosets import Dataset, SchemaError, load_dataset, text
from nanorlhf.nanosets.replace import replacing
from nanorlhf.nanosets.text import BLOCK_LINES


def lines(path, *rows):
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return path


def test_json_lines_read_as_the_rows_they_are(tmp_path, rows, plain):
    assert plain(Dataset.from_jsonl(lines(tmp_path / "a.jsonl", *rows)).to_list()) == rows


def test_blank_lines_a_byte_order_mark_and_a_missing_last_newline_are_fine(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"a": 1}\r\n\r\n   \n{"a": "x\\u00e9"}'.replace(b'"x\\u00e9"', b"2")
    )
    assert Dataset.from_jsonl(path).to_dict() == {"a": [1, 2]}


def test_types_settle_over_all_blocks(tmp_path):
    rows = [{"a": 1, "b": None}] * BLOCK_LINES + [{"a": 0.5, "b": [1], "c": "x"}]
    ds = Dataset.from_jsonl(lines(tmp_path / "a.jsonl", *rows))
    assert repr(ds.schema) == "Schema({'a': 'float64', 'b': 'list<int64>', 'c': 'utf8'})"
    assert len(ds) == BLOCK_LINES + 1
    assert ds[0] == {"a": 1.0, "b": None, "c": None}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{"], r"a\.jsonl:1'.*not JSON: .*; mend the line"),
        ([{"a": 1}, "", [1]], r"a\.jsonl:3'.*a row is a JSON object, not a list"),
        ([{"a": 1}, "", {"a": "x"}], r"a\.jsonl:3: field a'.*holds both int and str"),
        ([{"m": [{"r": 1}]}, {"m": [{"r": "x"}]}], r"a\.jsonl:2: field m\[\]\.r'"),
        ([{"a": 2**70}], r"a\.jsonl:1: field a'.*fit neither int64 nor uint64"),
    ],
)
def test_an_error_names_the_line_and_the_field(rows, message, tmp_path):
    with pytest.raises(SchemaError, match=message):
        Dataset.from_jsonl(lines(tmp_path / "a.jsonl", *rows))


def test_a_conflict_between_blocks_names_the_line_too(tmp_path):
    rows = [{"a": 1}] * (BLOCK_LINES + 5) + [{"a": "x"}] * 3
    # The second block starts with ints, so it is mixed in itself.
    with pytest.raises(SchemaError, match=rf"a\.jsonl:{BLOCK_LINES + 6}: field a"):
        Dataset.from_jsonl(lines(tmp_path / "a.jsonl", *rows))
    rows = [{"a": 1}] * BLOCK_LINES + [{"a": None}, {"a": "x"}]
    with pytest.raises(SchemaError, match=rf"a\.jsonl:{BLOCK_LINES + 2}: field a"):
        Dataset.from_jsonl(lines(tmp_path / "a.jsonl", *rows))


def test_a_value_that_is_not_of_the_asked_type_names_the_line(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"a": 1}, {"a": 300}, {"a": 2})
    with pytest.raises(SchemaError, match=r"a\.jsonl:2: field a'.*300 does not fit int8"):
        Dataset.from_jsonl(path, features={"a": "int8"})
    assert str(Dataset.from_jsonl(path, features={"a": "int16"}).schema["a"]) == "int16"


def test_a_json_file_is_an_array_or_json_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\n [{"a": 1}, {"a": 2}]')
    assert Dataset.from_json(path).to_dict() == {"a": [1, 2]}
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert Dataset.from_json(path).to_dict() == {"a": [1, 2]}
    path.write_text('[{"a": 1}, 2]')
    with pytest.raises(SchemaError, match=r"a\.json:2'.*a row is a JSON object, not a int"):
        Dataset.from_json(path)
    path.write_text('[{"a": 1}')
    with pytest.raises(SchemaError, match=r"not JSON: .*; mend the file"):
        Dataset.from_json(path)


def test_an_empty_file_is_an_empty_dataset(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("")
    assert len(Dataset.from_jsonl(path)) == 0
    assert Dataset.from_jsonl(path, features={"a": "utf8"}).column_names == ["a"]


def test_rows_are_written_as_json_and_read_back(tmp_path, rows, plain):
    ds = Dataset.from_list(rows)
    ds.to_json(tmp_path / "a.jsonl")
    assert plain(Dataset.from_jsonl(tmp_path / "a.jsonl").to_list()) == rows
    text.write_json(ds.select([1, 0]), tmp_path / "a.json")
    assert plain(Dataset.from_json(tmp_path / "a.json").to_list()) == [rows[1], rows[0]]
    text.write_json(ds.select([]), tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == []


def test_every_type_goes_through_json_lines_and_csv_by_its_features(tmp_path, every_type, plain):
    ds = Dataset.from_dict(every_type, features={t: t for t in every_type})
    text.write_jsonl(ds, tmp_path / "a.jsonl")
    found = Dataset.from_jsonl(tmp_path / "a.jsonl", features=ds.schema)
    assert found.schema == ds.schema
    assert plain(found.to_list()) == plain(ds.to_list())
    text.write_csv(ds, tmp_path / "a.csv")
    found = load_dataset(tmp_path / "a.csv", features=ds.schema)
    assert found.schema == ds.schema
    lost = {"utf8": ["a\u00e9", None, None], "binary": [b"\0x", None, None]}
    for name in ds.column_names:
        assert plain(found[name][:]) == plain(lost.get(name, ds[name][:])), name


def test_csv_types_are_those_of_all_cells(tmp_path):
    path = tmp_path / "a.csv"
    rows = [f"{i},{i},{i % 2 == 0},t{i}," for i in range(BLOCK_LINES)]
    path.write_text("\ufeffid,f,b,t,n\n" + "\n".join(rows) + '\n\n7,0.5,,"a ""b"",\nc",\n')
    ds = load_dataset(path)
    types = {"id": "int64", "f": "float64", "b": "bool", "t": "utf8", "n": "null"}
    assert {name: str(dtype) for name, dtype in ds.schema.items()} == types
    assert len(ds) == BLOCK_LINES + 1
    assert ds[-1] == {"id": 7, "f": 0.5, "b": None, "t": 'a "b",\nc', "n": None}
    assert ds[1] == {"id": 1, "f": 1.0, "b": False, "t": "t1", "n": None}


@pytest.mark.parametrize(
    ("content", "features", "message"),
    [
        ("a,b\n1,2\n\n1\n", None, r"a\.csv:4'.*1 cells in a file of 2 columns; mend the line"),
        ("a,a\n", None, r"a\.csv:1'.*a name stands twice in \['a', 'a'\]; rename"),
        ('a\n1\n"x', None, r"a\.csv:3'.*not CSV: unexpected end of data"),
        ("a\n1\n300\n", {"a": "int8"}, r"a\.csv:3: field a'.*300 does not fit int8"),
        ('a,b\n"x\ny",1\nz,2.5\n', {"a": "utf8", "b": "int8"}, r"a\.csv:4: field b'.*no int8: .*2"),
        ("a\ntrue\nmaybe\n", {"a": "bool"}, r"a\.csv:3: field a'.*'maybe' is neither true nor f"),
        ("a\n[1]\n[x]\n", {"a": "list<int8>"}, r"a\.csv:3: field a'.*no list<int8>: Expecting"),
        ("a\n2024-13-01\n", {"a": "date32"}, r"a\.csv:2: field a'.*no date32: month must be"),
        ("a\nx\n", {"b": "utf8"}, r"has the columns \['a'\], asked are \['b'\]; name these"),
        ("a\nx\n", {"a": "null"}, r"a\.csv:2: field a'.*'x' stands in a column of nulls"),
        (b"a\n\xff\n", None, r"not CSV: 'utf-8' codec can't decode"),
    ],
)
def test_an_error_in_a_csv_file_names_the_line_and_the_field(content, features, message, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SchemaError, match=message):
        load_dataset(path, features=features)


def test_the_longest_cell_and_another_delimiter_are_read(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text(f"a\tb\n{'x' * 200_000}\t1,5\n")
    found = text.read_csv(path, delimiter="\t").pylist()
    assert [len(found[0]["a"]), found[0]["b"]] == [200_000, "1,5"]
    assert csv.field_size_limit() == 131_072
    path.write_text("")
    assert text.read_csv(path).pylist() == []


def test_a_date_that_is_none_names_its_line(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"a": {"d": "2024-02-29"}}, "", {"a": {"d": "soon"}})
    with pytest.raises(SchemaError, match=r"a\.jsonl:3: field a\.d'.*Invalid isoformat"):
        Dataset.from_jsonl(path, features={"a": "struct<d: date32>"})


def test_a_file_that_fails_to_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("old")
    ds = Dataset.from_dict({"a": ["x"]})

    def broken():
        with replacing(path) as part:
            Path(part).write_text("new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        broken()
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    assert path.read_text() == "old"
    with pytest.raises(IsADirectoryError, match="is a directory; name a file in it"):
        ds.to_json(tmp_path)
