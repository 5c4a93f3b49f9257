import json

import pytest

from nanorlhf.nanosets import Dataset, SchemaError
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
