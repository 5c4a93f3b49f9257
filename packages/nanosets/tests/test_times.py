"""Dates and times: what they are built from, stored as and come out as."""

from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, SchemaError
from nanorlhf.nanosets.build import build
from nanorlhf.nanosets.convert import convert
from nanorlhf.nanosets.types import parse

NOON = datetime(2024, 2, 29, 12, 0, 0, 7)
TOKYO = ZoneInfo("Asia/Tokyo")
WEST = timezone(-timedelta(hours=3, minutes=30))


def counted(value, unit):
    """Units since 1970 by the definition: whole Python integers."""
    delta = value.replace(tzinfo=value.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    nanos = (delta.days * 86_400 + delta.seconds) * 10**9 + delta.microseconds * 1000
    return nanos // {"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}[unit]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([NOON, None], "timestamp[us]"),
        ([NOON.replace(tzinfo=UTC)], "timestamp[us, UTC]"),
        ([NOON.replace(tzinfo=TOKYO), None], "timestamp[us, Asia/Tokyo]"),
        ([NOON.replace(tzinfo=WEST)], "timestamp[us, -03:30]"),
        ([NOON.replace(tzinfo=WEST), NOON.replace(tzinfo=TOKYO)], "timestamp[us, UTC]"),
        ([NOON.date(), None], "date32"),
        ([np.datetime64(5, "ms"), None], "timestamp[ms]"),
        ([np.datetime64(5, "s"), np.datetime64(5, "ns")], "timestamp[ns]"),
        ([np.datetime64(5, "ns"), NOON], "timestamp[ns]"),
        ([np.datetime64(5, "h")], "timestamp[s]"),
        ([np.datetime64("2024-02"), date(2024, 3, 1)], "date32"),
        ([np.datetime64(10**16, "s"), NOON.replace(microsecond=0)], "timestamp[s]"),
        ([np.datetime64("NaT"), None], "null"),
        (np.array(["2024", "NaT"], "M8[Y]"), "date32"),
        (np.array([1, 2], "M8[25us]"), "timestamp[us]"),
        (np.array([[1, 2]], "M8[ns]"), "list<timestamp[ns]>"),
        ([np.array([1], "M8[s]"), [None]], "list<timestamp[s]>"),
    ],
)
def test_times_have_the_type_of_their_unit_and_zone(values, dtype):
    assert str(build(values).dtype) == dtype


def test_numpy_arrays_keep_their_values_and_nat_is_null():
    array = build(np.array([1, "NaT", 3], "M8[25us]"))
    assert array.values.tolist() == [25, 0, 75]
    assert array.pylist() == [
        datetime(1970, 1, 1, 0, 0, 0, 25),
        None,
        datetime(1970, 1, 1, 0, 0, 0, 75),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([NOON, NOON.date()], "holds both date and datetime"),
        ([NOON, NOON.replace(tzinfo=UTC)], "holds datetimes with and without a zone"),
        ([NOON, 1], "holds both datetime and int"),
        ([np.datetime64(1, "ps")], "times in ps are finer than ns"),
        (np.array([1], "M8[as]"), "times in as are finer than ns"),
        ([np.datetime64(2**62, "s"), np.datetime64(1, "ns")], "no unit holds all of these times"),
        (np.array([2**40], "M8[D]"), "further from 1970 than"),
        (np.array([2**60], "M8[h]"), "does not fit s; use a finer unit"),
        ([datetime(1, 1, 1, tzinfo=TOKYO)], "leaves the years 1"),
    ],
)
def test_times_without_a_common_type_are_refused(values, message):
    with pytest.raises(SchemaError, match=message):
        build(values)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, UTC, TOKYO, WEST])
def test_stored_is_the_count_of_units_since_1970_and_out_comes_the_value(unit, zone):
    values = [datetime(1970, 1, 1), datetime(1969, 12, 31, 23, 59, 59), datetime(2200, 1, 1, 7)]
    values = [value.replace(tzinfo=zone) for value in values]
    name = {None: "", UTC: ", UTC", TOKYO: ", Asia/Tokyo", WEST: ", -03:30"}[zone]
    array = convert(build(values), parse(f"timestamp[{unit}{name}]"))
    assert array.values.tolist() == [counted(value, unit) for value in values]
    assert array.pylist() == values
    assert [v.utcoffset() for v in array.pylist()] == [v.utcoffset() for v in values]


def test_what_no_datetime_holds_comes_out_as_numpys():
    ends = [datetime.min, datetime.max.replace(microsecond=0)]
    far = [np.datetime64(10**12, "s"), np.datetime64(-(10**12), "s")]
    array = convert(build([*ends, *far]), parse("timestamp[s]"))
    assert array.pylist() == [*ends, *far]
    assert convert(array, parse("timestamp[s, Asia/Tokyo]")).pylist()[:2] == [
        np.datetime64(ends[0], "s"),
        np.datetime64(ends[1], "s"),
    ]
    assert np.isnat(convert(build([-(2**63)]), parse("timestamp[ns]")).pylist()[0])
    days = [date.min, date.max, np.datetime64(2**31 - 1, "D"), np.datetime64(-(2**31), "D")]
    assert build(days).pylist() == days
    nanos = [np.datetime64(1, "ns"), datetime(2024, 1, 1)]
    assert build(nanos).pylist() == nanos


def test_columns_of_times_are_datetime64_to_numpy_and_lists_of_values_in_rows():
    ds = Dataset.from_dict({"t": [NOON, NOON], "d": [NOON.date()] * 2, "l": [[NOON], []]})
    assert ds["t"].numpy().dtype == np.dtype("M8[us]")
    assert ds["t"].numpy().tolist() == [NOON, NOON]
    assert ds["d"].numpy().tolist() == [NOON.date()] * 2
    assert ds[0] == {"t": NOON, "d": NOON.date(), "l": [NOON]}
    assert ds.gather("l").values.tolist() == [NOON]


@pytest.mark.parametrize(
    ("values", "dtype", "want"),
    [
        ([date(2024, 2, 29)], "timestamp[ms]", [datetime(2024, 2, 29)]),
        ([datetime(2024, 2, 29)], "date32", [date(2024, 2, 29)]),
        ([NOON], "timestamp[us, Asia/Tokyo]", [NOON.replace(tzinfo=UTC)]),
        ([NOON.replace(tzinfo=TOKYO)], "timestamp[us]", [datetime(2024, 2, 29, 3, 0, 0, 7)]),
        ([7, None], "timestamp[s]", [datetime(1970, 1, 1, 0, 0, 7), None]),
        ([7], "date32", [date(1970, 1, 8)]),
        ([date(1970, 1, 8), None], "int8", [7, None]),
        (["2024-02-29", None], "date32", [date(2024, 2, 29), None]),
        (["2024-02-29T12:00"], "timestamp[s]", [datetime(2024, 2, 29, 12)]),
        (["2024-02-29T12:00+09:00"], "timestamp[s, UTC]", [datetime(2024, 2, 29, 3, tzinfo=UTC)]),
    ],
)
def test_times_convert_from_and_to_what_is_close(values, dtype, want):
    assert convert(build(values), parse(dtype)).pylist() == want


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([NOON], "timestamp[ms]", r"2024-02-29T12:00:00.000007 does not fit timestamp\[ms\]"),
        ([NOON], "date32", "does not fit date32; ask for another unit"),
        ([datetime(2500, 1, 1)], "timestamp[ns]", "does not fit"),
        ([np.datetime64(2**31 * 86_400, "s")], "date32", "does not fit date32"),
        ([NOON], "float64", "asked is float64; map the values"),
        ([1.5], "date32", "asked is date32; map the values"),
        ([2**40], "date32", "does not fit int32"),
        (["noon"], "timestamp[s]", r"'noon' is no timestamp\[s\]; write it in ISO 8601"),
        (["2024-01-01T00:00Z"], "timestamp[s]", "has an offset and .* has no zone; ask for"),
    ],
)
def test_times_that_do_not_fit_are_refused(values, dtype, message):
    with pytest.raises(SchemaError, match=message):
        convert(build(values), parse(dtype))


def test_an_unknown_zone_is_named_when_a_value_is_asked_for():
    array = convert(build([0]), parse("timestamp[s, Mars/Olympus]"))
    with pytest.raises(
        SchemaError, match="'Mars/Olympus': is no time zone that this machine knows"
    ):
        array.pylist()
