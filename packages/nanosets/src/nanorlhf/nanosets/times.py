"""Dates and times: stored as counts since 1970, out as ``datetime`` values.

A count that no ``datetime`` holds (years outside 1 .. 9999, nanoseconds between two microseconds)
comes out as ``numpy.datetime64``, in UTC if the type has a zone. Lists of times are Python lists.
"""

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Numbers
from .bits import Chunk
from .errors import SchemaError
from .gather import Ints
from .types import Date, Timestamp

OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)")
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
DAY_S = 86_400
FIRST_DAY, LAST_DAY = -719_162, 2_932_896
"""0001-01-01 and 9999-12-31, in days since 1970-01-01."""


class Times(Numbers):
    """Dates or timestamps."""

    __slots__ = ()

    dtype: Date | Timestamp

    def python(self, values: NDArray[Any]) -> list[Any]:
        """Return dates or datetimes."""
        return dates(values) if isinstance(self.dtype, Date) else stamps(values, self.dtype)

    def as_numpy(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return timestamps as a view of numpy's, dates as a copy."""
        if isinstance(self.dtype, Date):
            return values.astype("M8[D]")
        return values.view(f"<M8[{self.dtype.unit}]")

    def item(self, chunk: int, local: int) -> Any:  # noqa: ANN401 - date, datetime or None
        """Return a date, a datetime or None."""
        if self.is_null(chunk, local):
            return None
        at = self.starts[chunk] + local
        return self.python(self.values[at : at + 1])[0]

    def run(self, chunk: int, start: int, stop: int) -> Any:  # noqa: ANN401 - a list
        """Return a range as a list."""
        return Array.run(self, chunk, start, stop)

    def runs(self, chunk: Chunk, starts: Ints, stops: Ints) -> list[Any]:
        """Return ranges as lists."""
        return Array.runs(self, chunk, starts, stops)


def dates(days: NDArray[Any]) -> list[Any]:
    """Return days since 1970-01-01 as ``date`` values."""
    found: list[Any] = days.astype("M8[D]").tolist()
    for i in np.flatnonzero((days < FIRST_DAY) | (days > LAST_DAY)).tolist():
        found[i] = np.datetime64(int(days[i]), "D")
    return found


def stamps(counts: NDArray[Any], dtype: Timestamp) -> list[Any]:
    """Return counts of a unit since 1970-01-01 00:00 as ``datetime`` values."""
    # A zone may move the first and last day out of the calendar: leave those to numpy.
    margin, per = (0 if dtype.tz is None else 1), DAY_S * PER_SECOND[dtype.unit]
    if dtype.unit == "ns":
        odd = counts % 1000 != 0
        found: list[Any] = (counts // 1000).view("<M8[us]").tolist()
    else:
        odd = (counts < (FIRST_DAY + margin) * per) | (counts >= (LAST_DAY + 1 - margin) * per)
        found = counts.view(f"<M8[{dtype.unit}]").tolist()
    out_of_calendar = np.flatnonzero(odd).tolist()
    for i in out_of_calendar:
        found[i] = np.datetime64(int(counts[i]), dtype.unit)
    if dtype.tz is None:
        return found
    zone, skip = zone_of(dtype.tz), set(out_of_calendar)
    return [
        t if i in skip else cast(datetime, t).replace(tzinfo=UTC).astimezone(zone)
        for i, t in enumerate(found)
    ]


@lru_cache(maxsize=64)
def zone_of(name: str) -> tzinfo:
    """Return a time zone by its name, or its offset such as +02:00.

    Raises:
        SchemaError: This machine does not know it.
    """
    if name in ("UTC", "Z"):
        return UTC
    offset = OFFSET.fullmatch(name)
    if offset is not None:
        sign, hours, minutes = offset.groups()
        delta = timedelta(hours=int(hours), minutes=int(minutes))
        if delta < timedelta(days=1):
            return timezone(delta if sign == "+" else -delta)
    from zoneinfo import ZoneInfo  # 5 ms that most datasets never need

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        rule = "is no time zone that this machine knows; install the tzdata package or cast to UTC"
        raise SchemaError(name, rule) from None


def name_of(zone: tzinfo, when: datetime) -> str:
    """Return the name under which ``zone_of`` finds a zone; UTC where it has none."""
    key = getattr(zone, "key", None)
    if isinstance(key, str):
        return key
    offset = zone.utcoffset(when)
    if not isinstance(zone, timezone) or not offset or offset % timedelta(minutes=1):
        return "UTC"
    minutes = abs(offset) // timedelta(minutes=1)
    return f"{'-' if offset < timedelta(0) else '+'}{minutes // 60:02}:{minutes % 60:02}"


def rescaled(counts: NDArray[Any], source: int, target: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return counts in other units, and which of them that changes.

    Args:
        counts: int64 counts.
        source: Their units per day, or per second.
        target: The units asked for in the same time.
    """
    if target >= source:
        factor = target // source
        limit = np.iinfo(np.int64).max // factor
        return counts * np.int64(factor), (counts > limit) | (counts < -limit)
    factor = source // target
    return counts // factor, counts % factor != 0


def stored_dates(values: list[Any]) -> NDArray[np.int32]:
    """Return ``date`` values as days since 1970-01-01."""
    return np.array(values, "M8[D]").astype(np.int32)


def stored_stamps(values: list[Any], field: str) -> NDArray[np.int64]:
    """Return ``datetime`` values as microseconds since 1970-01-01 00:00, UTC.

    Raises:
        SchemaError: One is in UTC before year 1 or after 9999.
    """
    try:
        plain = [t if t.tzinfo is None else t.astimezone(UTC).replace(tzinfo=None) for t in values]
    except OverflowError:
        rule = "a time leaves the years 1 .. 9999 when it is taken to UTC; mend it"
        raise SchemaError(field, rule) from None
    return np.array(plain, "M8[us]").astype(np.int64)
