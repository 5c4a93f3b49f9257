"""How values are written in JSON, and read back.

Numbers, bools, strings, lists and structs are JSON's own. Dates and times are ISO 8601 strings,
bytes are base64, tensors are nested lists, NaN and the infinities are those of Python's json.
"""

import base64
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any

import numpy as np

from .errors import SchemaError
from .types import (
    Binary,
    Date,
    Dictionary,
    DType,
    FixedList,
    LargeList,
    List,
    Struct,
    Timestamp,
)

BEYOND_MICROSECONDS = re.compile(r"\.[0-9]{6}([0-9]{1,3})")

Parser = Callable[[Any], Any]
"""Makes a value of a column type from what text has; a ValueError if it cannot."""


def plain(value: object) -> object:
    """Return a value that json does not know as one that it does.

    Raises:
        TypeError: There is no such value.
    """
    if isinstance(value, np.datetime64):
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} has no spelling in JSON; map it to another type")


def as_json(value: object) -> str:
    """Return a value as JSON, on one line.

    >>> as_json({"day": date(2024, 2, 29), "raw": b"abc"})
    '{"day": "2024-02-29", "raw": "YWJj"}'
    """
    return json.dumps(value, default=plain, ensure_ascii=False)


def json_parser(dtype: DType) -> Parser | None:
    """Return what makes values of a type from JSON's values; None when nothing is to be done."""
    if isinstance(dtype, Dictionary):
        return json_parser(dtype.value)
    if isinstance(dtype, Date):
        return _unless_null(_day)
    if isinstance(dtype, Timestamp):
        return _unless_null(lambda value: _time(value, dtype))
    if isinstance(dtype, Binary):
        return _unless_null(_bytes)
    if isinstance(dtype, List | LargeList | FixedList):
        item = json_parser(dtype.item)
        return item and _unless_null(lambda values: [item(value) for value in values])
    if isinstance(dtype, Struct):
        return _struct_parser(dtype)
    return None


def _unless_null(parse: Parser) -> Parser:
    return lambda value: None if value is None else parse(value)


def _struct_parser(dtype: Struct) -> Parser | None:
    found = {field.name: json_parser(field.dtype) for field in dtype.fields}
    parsers = {name: parse for name, parse in found.items() if parse is not None}
    return _unless_null(lambda row: _parsed(row, parsers)) if parsers else None


def _parsed(row: Any, parsers: Mapping[str, Parser]) -> Any:  # noqa: ANN401 - a JSON value
    if not isinstance(row, dict):
        return row
    out = dict(row)
    for name, parse in parsers.items():
        try:
            out[name] = parse(row.get(name))
        except SchemaError as error:
            raise SchemaError(f"{name}.{error.field}", error.problem) from None
        except (ValueError, TypeError) as error:
            raise SchemaError(name, f"{error}; mend the value") from None
    return out


def _day(value: Any) -> date:  # noqa: ANN401 - a JSON value
    return date.fromisoformat(_str(value, "a date, such as 2024-02-29"))


def _time(value: Any, dtype: Timestamp) -> datetime | np.datetime64:  # noqa: ANN401
    text = _str(value, "a time, such as 2024-02-29T12:00:00")
    found = datetime.fromisoformat(text)
    if dtype.tz is None and found.tzinfo is not None:
        raise ValueError(f"{text!r} has a time zone, {dtype} has none; ask for one, such as UTC")
    if dtype.tz is not None:
        found = found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    nanoseconds = BEYOND_MICROSECONDS.search(text)
    if dtype.unit != "ns" or nanoseconds is None:
        return found
    return np.datetime64(found.replace(tzinfo=None), "ns") + int(nanoseconds[1].ljust(3, "0"))


def _bytes(value: Any) -> bytes:  # noqa: ANN401 - a JSON value
    return base64.b64decode(_str(value, "base64"), validate=True)


def _str(value: object, wanted: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not {wanted}")
    return value
