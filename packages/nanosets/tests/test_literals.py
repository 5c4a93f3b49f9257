import datetime
import json

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, SchemaError
from nanorlhf.nanosets.cells import join, kind_of
from nanorlhf.nanosets.literals import as_json, json_parser, plain
from nanorlhf.nanosets.types import parse


def test_every_type_is_read_back_from_its_json(every_type, plain):
    for spelling, values in every_type.items():
        column = Dataset.from_dict({"x": values}, features={"x": spelling})["x"]
        read = [json.loads(as_json(value)) for value in column]
        parser = json_parser(parse(spelling))
        found = read if parser is None else [parser(value) for value in read]
        again = Dataset.from_dict({"x": found}, features={"x": spelling})["x"]
        assert plain(again.to_list()) == plain(column.to_list()), spelling


def test_nested_dates_are_parsed_where_they_stand():
    parser = json_parser(parse("struct<a: list<struct<d: date32, n: int8>>, s: utf8>"))
    row = {"a": [{"d": "2024-02-29", "n": 1}, None, {"d": None}], "s": "2024-02-29"}
    day = datetime.date(2024, 2, 29)
    assert parser(row) == {"a": [{"d": day, "n": 1}, None, {"d": None}], "s": "2024-02-29"}
    assert json_parser(parse("struct<a: list<int8>>")) is None


def test_times_keep_their_nanoseconds_and_their_zone():
    utc = datetime.UTC
    stamp = json_parser(parse("timestamp[ns]"))
    assert stamp("2024-01-01T00:00:00.123456789") == np.datetime64("2024-01-01T00:00:00.123456789")
    assert stamp("2024-01-01T00:00:00.1234") == datetime.datetime(2024, 1, 1, 0, 0, 0, 123400)
    zoned = json_parser(parse("timestamp[us, Europe/Paris]"))
    assert zoned("2024-01-01T02:00:00+02:00") == datetime.datetime(2024, 1, 1, tzinfo=utc)
    assert zoned("2024-01-01T00:00:00") == datetime.datetime(2024, 1, 1, tzinfo=utc)


@pytest.mark.parametrize(
    ("spelling", "value", "message"),
    [
        ("date32", "tomorrow", "field 'x': Invalid isoformat string: 'tomorrow'; mend the value"),
        ("date32", 5, "field 'x': 5 is not a date, such as 2024-02-29"),
        ("timestamp[us]", "2024-01-01T00:00:00Z", "has a time zone, timestamp.us. has none"),
        ("binary", "%%", "field 'x': .*base64"),
        ("struct<d: date32>", {"d": "?"}, r"field 'x\.d': Invalid isoformat"),
    ],
)
def test_what_is_not_of_the_type_is_refused(spelling, value, message):
    with pytest.raises(SchemaError, match=message):
        json_parser(parse(f"struct<x: {spelling}>"))({"x": value})


def test_a_value_without_a_spelling_is_refused():
    with pytest.raises(TypeError, match="complex has no spelling in JSON; map it"):
        plain(1j)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([], "null"),
        (["", ""], "null"),
        (["1", "-2", "+3"], "exact"),
        (["1", str(2**53 + 1)], "int"),
        ([str(-(2**63)), "1"], "int"),
        ([str(2**63)], "text"),
        (["007"], "text"),
        (["1", "2.5", ".5", "1e9", "nan", "-inf"], "float"),
        ([str(2**53 + 1), "0.5"], "text"),
        (["true", "False", ""], "bool"),
        (["true", "1"], "text"),
        (["1_000"], "text"),
        (["\u0663"], "text"),
        ([" 1"], "text"),
        (["2024-01-01"], "text"),
    ],
)
def test_cells_show_what_they_are(cells, kind):
    assert kind_of(cells) == kind


def test_kinds_join_as_their_cells_do():
    examples = {
        "null": "",
        "bool": "true",
        "exact": "1",
        "int": str(2**60),
        "float": "0.5",
        "text": "x",
    }
    for a, first in examples.items():
        for b, second in examples.items():
            assert join(a, b) == join(b, a) == kind_of([first, second]), (a, b)
