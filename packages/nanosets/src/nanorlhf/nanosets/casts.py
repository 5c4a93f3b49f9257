"""Flat arrays into other flat types: numbers, times, strings.

Every function takes the array and the field's name, and refuses the first value that the other
type does not hold.
"""

from datetime import date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Numbers
from .bfloat import Bfloats, narrowed, widened
from .bits import Mask
from .errors import SchemaError
from .nested import Bytes, Text
from .times import DAY_S, PER_SECOND, Times, rescaled, stored_dates, stored_stamps
from .types import Binary, Date, DType, Number, Timestamp, Utf8

INTEGER_OF = {Date: Number("int32"), Timestamp: Number("int64")}
"""The numbers as which times are stored."""


def flat(dtype: Number | Date | Timestamp, values: NDArray[Any], **more: Any) -> Numbers:
    """Return the array class of a type over its stored values."""
    if isinstance(dtype, Date | Timestamp):
        return Times(dtype, values, **more)
    return (Bfloats if dtype.is_bfloat16 else Numbers)(dtype, values, **more)


def cast_number(array: Numbers, dtype: Number, field: str) -> Numbers:
    """Return numbers in another width or kind."""
    assert isinstance(array.dtype, Number)
    old = array.as_numpy(array.values[: array.length])
    if old.dtype.kind == "f" and not dtype.is_bfloat16 and dtype.numpy.kind != "f":
        raise SchemaError(field, f"holds {array.dtype}, asked is {dtype}; round the values first")
    with np.errstate(all="ignore"):
        stored = narrowed(old) if dtype.is_bfloat16 else old.astype(dtype.numpy)
        new = widened(stored) if dtype.is_bfloat16 else stored
        if old.dtype.kind == "f":
            bad = np.isinf(new) & np.isfinite(old)
        else:
            # Out of range wraps and an inexact float rounds: neither comes back as it was. The
            # float 2**63 does come back from an int64 by wrapping, hence the second condition.
            bad = (new.astype(old.dtype) != old) | _changed_sign(new, old)
    _refuse_first(bad, array, old, f"{dtype}; ask for a wider type", field)
    return flat(dtype, stored, valid=array.valid)


def _changed_sign(new: NDArray[Any], old: NDArray[Any]) -> Mask:
    sign: Mask = (new < 0) != (old < 0)
    if new.dtype.kind == "f":
        sign |= np.abs(new) >= float(np.iinfo(old.dtype).max) + 1
    return sign


def _refuse_first(bad: Mask, array: Array, shown: NDArray[Any], rule: str, field: str) -> None:
    # What lies under a null is arbitrary, and must not stop the conversion.
    mask = array.validity()
    found = np.flatnonzero(bad if mask is None else bad & mask)
    if len(found):
        value = shown[found[0]]
        text = value if isinstance(value, np.datetime64) else value.item()
        raise SchemaError(field, f"{text} does not fit {rule}")


def cast_time(array: Numbers, dtype: Date | Timestamp, field: str) -> Numbers:
    """Return times in another unit or zone, or whole numbers as counts since 1970.

    Stored times are UTC: a naive time becomes that time in UTC, and the other way round.
    """
    if not isinstance(array, Times):
        assert isinstance(array.dtype, Number)
        counts = cast_number(array, INTEGER_OF[type(dtype)], field)
        return flat(dtype, counts.values, valid=array.valid)
    old = array.values[: array.length].astype(np.int64)
    new, bad = rescaled(old, _per_day(array.dtype), _per_day(dtype))
    shown = array.as_numpy(array.values[: array.length])
    if isinstance(dtype, Date):
        bad |= new != new.astype(np.int32)
    _refuse_first(bad, array, shown, f"{dtype}; ask for another unit", field)
    return flat(dtype, new.astype(dtype.numpy), valid=array.valid)


def _per_day(dtype: Number | Date | Timestamp) -> int:
    return DAY_S * PER_SECOND[dtype.unit] if isinstance(dtype, Timestamp) else 1


def counts_of(array: Times, dtype: Number, field: str) -> Numbers:
    """Return times as the numbers that are stored."""
    assert isinstance(array.dtype, Date | Timestamp)
    plain = Numbers(INTEGER_OF[type(array.dtype)], array.values[: array.length], valid=array.valid)
    return plain if plain.dtype == dtype else cast_number(plain, dtype, field)


def parse_times(array: Text, dtype: Date | Timestamp, field: str) -> Numbers:
    """Return strings in ISO 8601 as times; one without an offset counts as UTC in a zoned type."""
    kind = date if isinstance(dtype, Date) else datetime
    found: list[Any] = []
    for text in array.pylist():
        try:
            found.append(None if text is None else kind.fromisoformat(text))
        except ValueError:
            rule = f"{text[:60]!r} is no {dtype}; write it in ISO 8601"
            raise SchemaError(field, rule) from None
    filled = [kind(1970, 1, 1) if value is None else value for value in found]
    if isinstance(dtype, Date):
        return flat(dtype, stored_dates(filled), valid=array.valid)
    if dtype.tz is None and any(getattr(value, "tzinfo", None) is not None for value in filled):
        rule = f"a time has an offset and {dtype} has no zone; ask for timestamp[{dtype.unit}, UTC]"
        raise SchemaError(field, rule)
    micros = Times(Timestamp("us", dtype.tz), stored_stamps(filled, field), valid=array.valid)
    return micros if micros.dtype == dtype else cast_time(micros, dtype, field)


def cast_bytes(array: Bytes, dtype: Utf8 | Binary, field: str) -> Bytes:
    """Return strings as their UTF-8, or bytes that are UTF-8 as strings; the data is shared."""
    more: dict[str, Any] = {"valid": array.valid}
    if isinstance(dtype, Binary):
        return Bytes(dtype, array.edges, array.child, **more)
    row = first_not_utf8(array)
    if row is not None:
        raise SchemaError(field, f"value {row} is not UTF-8; mend it, or ask for binary")
    return Text(dtype, array.edges, array.child, **more)


def first_not_utf8(array: Bytes) -> int | None:
    """Return the number of the first value of a compact array that is not UTF-8, None for none."""
    edges = array.edges[: array.length + 1]
    data = array.child.values[int(edges[0]) : int(edges[-1])]
    starts = (edges[:-1] - edges[0])[np.diff(edges) > 0]
    try:
        str(data.data, "utf-8")
        # The whole is text; so is each value that starts at a character, not inside of one.
        if not ((data[starts] & 0xC0) == 0x80).any():
            return None
    except UnicodeDecodeError:
        pass
    plain = Bytes(Binary(), array.edges, array.child, length=array.length, valid=array.valid)
    for row, value in enumerate(plain.pylist()):
        try:
            (value or b"").decode()
        except UnicodeDecodeError:
            return row
    return None


def cast_flat(array: Array, dtype: DType, field: str) -> Array | None:
    """Return a flat array in another flat type; None where the two have nothing in common."""
    if isinstance(array, Bytes) and isinstance(dtype, Utf8 | Binary):
        return cast_bytes(array, dtype, field)
    if isinstance(array, Text) and isinstance(dtype, Date | Timestamp):
        return parse_times(array, dtype, field)
    if isinstance(array, Times) and isinstance(dtype, Number):
        whole = dtype.numpy.kind != "f" and not dtype.is_bfloat16
        return counts_of(array, dtype, field) if whole else None
    if isinstance(array, Numbers) and isinstance(dtype, Number):
        return cast_number(array, dtype, field)
    if isinstance(array, Numbers) and isinstance(dtype, Date | Timestamp):
        kind = array.values.dtype.kind
        whole = isinstance(array, Times) or (kind in "iu" and not isinstance(array, Bfloats))
        return cast_time(array, dtype, field) if whole else None
    return None
