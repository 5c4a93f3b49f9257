"""Dates, datetimes and numpy's datetimes into arrays."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Nulls
from .bits import Bits, Mask
from .errors import SchemaError
from .times import PER_SECOND, Times, name_of, rescaled, stored_dates, stored_stamps
from .types import UNITS, Date, Timestamp

STORED = {
    **dict.fromkeys(("Y", "M", "W", "D"), "D"),
    **dict.fromkeys(("h", "m"), "s"),
    **{str(unit): str(unit) for unit in UNITS},
}
"""The unit in which times of each of numpy's units are stored."""
MIXED = "holds both date and datetime, which no one type holds; convert one"


def build_times(rows: list[Any], kinds: Collection[type], field: str) -> Array:
    """Return dates, or datetimes of one zone or none, with nulls, as an array.

    Zones that differ become UTC, and units that differ the finest of them.
    """
    if any(hasattr(kind, "to_datetime64") for kind in kinds):  # what pandas calls a timestamp
        numpys = [row.to_datetime64() if hasattr(row, "to_datetime64") else row for row in rows]
    else:
        numpys = rows
    zone = _zone([row for row in rows if isinstance(row, datetime)], field)
    groups: dict[str, list[int]] = {}
    for at, row in enumerate(numpys):
        unit = _unit(row, field)
        if unit:
            groups.setdefault(unit, []).append(at)
    if not groups:
        return Nulls(len(rows))
    if "D" in groups and len(groups) > 1:
        raise SchemaError(field, MIXED)
    valid = np.zeros(len(rows), np.bool_)
    parts = {unit: _counts([numpys[i] for i in at], unit, field) for unit, at in groups.items()}
    unit = _common_unit(parts, field)
    counts = np.zeros(len(rows), np.int64)
    for name, places in groups.items():
        valid[places] = True
        counts[places] = _in_unit(parts[name], name, unit)[0]
    return _times(counts, valid, unit, zone, field)


def times_of_array(array: NDArray[Any], field: str) -> Array:
    """Return a 1-d array of numpy's datetimes as dates or timestamps, NaT as null."""
    valid = ~np.isnat(array)
    unit, _ = np.datetime_data(array.dtype)
    if unit == "generic":
        return Nulls(len(array))
    _check_unit(unit, field)
    counts = array.astype(f"M8[{STORED[unit]}]")
    wrong = np.flatnonzero(valid & (counts.astype(array.dtype) != array))
    if len(wrong):
        rule = f"{array.dtype} value {wrong[0]} does not fit {STORED[unit]}; use a finer unit"
        raise SchemaError(field, rule)
    return _times(counts.astype(np.int64), valid, STORED[unit], None, field)


def _times(counts: NDArray[Any], valid: Mask, unit: str, zone: str | None, field: str) -> Times:
    counts = np.where(valid, counts, 0)
    if unit != "D":
        dtype = Timestamp(UNITS[UNITS.index(unit)], zone)
        return Times(dtype, counts, valid=Bits.unless_all(valid))
    days = counts.astype(np.int32)
    if (days != counts).any():
        raise SchemaError(field, "a date is further from 1970 than 2**31 days; store it as str")
    return Times(Date(), days, valid=Bits.unless_all(valid))


def _unit(row: object, field: str) -> str | None:
    """Return the unit in which one value is stored, None for no value."""
    if row is None:
        return None
    if isinstance(row, np.datetime64):
        unit, _ = np.datetime_data(row.dtype)
        if np.isnat(row):
            return None
        _check_unit(unit, field)
        return STORED[unit]
    return "us" if isinstance(row, datetime) else "D"


def _check_unit(unit: str, field: str) -> None:
    if unit not in STORED:
        raise SchemaError(field, f"times in {unit} are finer than ns; convert to datetime64[ns]")


def _counts(values: list[Any], unit: str, field: str) -> NDArray[np.int64]:
    """Return values that are stored in one unit as counts of it."""
    found = np.zeros(len(values), np.int64)
    mask = np.fromiter((isinstance(v, np.datetime64) for v in values), np.bool_, len(values))
    plain = [value for value in values if not isinstance(value, np.datetime64)]
    if plain:
        found[~mask] = stored_dates(plain) if unit == "D" else stored_stamps(plain, field)
    if mask.any():
        numpys = [value for value in values if isinstance(value, np.datetime64)]
        found[mask] = np.array(numpys, f"M8[{unit}]").astype(np.int64)
    return found


def _common_unit(parts: dict[str, NDArray[np.int64]], field: str) -> str:
    """Return the finest unit that holds all counts, of which some may be too far from 1970."""
    if len(parts) == 1:
        return next(iter(parts))
    finest = max(map([*UNITS].index, parts))  # type: ignore[arg-type]
    for unit in reversed(UNITS[: finest + 1]):
        if not any(_in_unit(counts, name, unit)[1].any() for name, counts in parts.items()):
            return unit
    rule = f"no unit holds all of these times, in {', '.join(parts)}; drop the far ones"
    raise SchemaError(field, rule)


def _in_unit(
    counts: NDArray[np.int64], unit: str, target: str
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return counts in another unit, and which of them that changes."""
    if unit == target:
        return counts, np.zeros(len(counts), np.bool_)
    return rescaled(counts, PER_SECOND[unit], PER_SECOND[target])


def _zone(values: list[datetime], field: str) -> str | None:
    """Return the name of the one zone of all values, UTC for several, None for none."""
    zones = {value.tzinfo for value in values}
    if len(zones) > 1 and None in zones:
        raise SchemaError(field, "holds datetimes with and without a zone; give all one, or none")
    names = {name_of(v.tzinfo, v) for v in values if v.tzinfo is not None}
    if not names:
        return None
    return names.pop() if len(names) == 1 else "UTC"
