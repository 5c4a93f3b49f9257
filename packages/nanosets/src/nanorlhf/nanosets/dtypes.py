"""The column types, one frozen class each.

A type says what its values are (``str``, ``datetime``, array), and of which buffers they are made:
``children`` are the types whose buffers follow its own.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal

import numpy as np

from .errors import SchemaError

BFLOAT16 = "bfloat16"
NUMBERS = (
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64"),
)
WORD = re.compile("[A-Za-z0-9_]+")
"""A field name that needs no quotes."""
ZONE = re.compile("[A-Za-z0-9_+:/-]+")
"""A time zone: a name of the tz database, or an offset such as +02:00."""
MAX_SIZE = 2**31 - 1
"""Most elements of a fixed-size list or tensor."""

Unit = Literal["s", "ms", "us", "ns"]
UNITS: tuple[Unit, ...] = ("s", "ms", "us", "ns")


@dataclass(frozen=True)
class DType:
    """Base of the column types."""

    @property
    def children(self) -> "tuple[DType, ...]":
        """The types nested in this one; none in a flat type."""
        return ()


@dataclass(frozen=True)
class Null(DType):
    """The type of a column that holds nothing but nulls; any other type can take its place."""

    def __str__(self) -> str:
        return "null"


@dataclass(frozen=True)
class Bool(DType):
    """True or False, stored as one bit."""

    def __str__(self) -> str:
        return "bool"


@dataclass(frozen=True)
class Utf8(DType):
    """A ``str``, stored as UTF-8."""

    def __str__(self) -> str:
        return "utf8"


@dataclass(frozen=True)
class Binary(DType):
    """A ``bytes``."""

    def __str__(self) -> str:
        return "binary"


@dataclass(frozen=True)
class Number(DType):
    """An integer or a float of a fixed width, such as ``Number("int32")``.

    bfloat16 is stored as the uint16 of its bits, since numpy has no such type; its values are
    ``float``, its arrays float32.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in NUMBERS:
            raise SchemaError(self.name, f"no such number type; use one of {', '.join(NUMBERS)}")

    def __str__(self) -> str:
        return self.name

    @cached_property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype of the buffer, little-endian."""
        return np.dtype("uint16" if self.is_bfloat16 else self.name).newbyteorder("<")

    @property
    def is_bfloat16(self) -> bool:
        """Whether the buffer holds the bits of bfloat16, not numbers of its numpy dtype."""
        return self.name == BFLOAT16


@dataclass(frozen=True)
class Date(DType):
    """A ``datetime.date``, stored as int32 days since 1970-01-01."""

    def __str__(self) -> str:
        return "date32"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype of the buffer, little-endian."""
        return np.dtype("<i4")


@dataclass(frozen=True)
class Timestamp(DType):
    """A ``datetime.datetime``, stored as int64 units since 1970-01-01 00:00.

    Args:
        unit: s, ms, us or ns. What no ``datetime`` holds comes out as ``numpy.datetime64``.
        tz: The zone in which values come out (stored is UTC); None for naive times.
    """

    unit: Unit
    tz: str | None = None

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise SchemaError(self.unit, f"no such time unit; use one of {', '.join(UNITS)}")
        if self.tz is not None and not ZONE.fullmatch(self.tz):
            raise SchemaError(self.tz[:80], "no such time zone; write e.g. UTC or +02:00")

    def __str__(self) -> str:
        return (
            f"timestamp[{self.unit}]" if self.tz is None else f"timestamp[{self.unit}, {self.tz}]"
        )

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype of the buffer, little-endian."""
        return np.dtype("<i8")


@dataclass(frozen=True)
class List(DType):
    """Any number of values of one type; int32 offsets."""

    item: DType

    def __str__(self) -> str:
        return f"list<{self.item}>"

    @property
    def children(self) -> tuple[DType, ...]:
        """The item."""
        return (self.item,)


@dataclass(frozen=True)
class LargeList(DType):
    """Any number of values of one type; int64 offsets, so a chunk may hold more than 2**31."""

    item: DType

    def __str__(self) -> str:
        return f"large_list<{self.item}>"

    @property
    def children(self) -> tuple[DType, ...]:
        """The item."""
        return (self.item,)


@dataclass(frozen=True)
class FixedList(DType):
    """Always ``size`` values of one type; no offsets."""

    item: DType
    size: int

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_SIZE:
            raise SchemaError(f"{self.size:.3g}", f"no size of a list; use 0 .. {MAX_SIZE}")

    def __str__(self) -> str:
        return f"fixed_list<{self.item}, {self.size}>"

    @property
    def children(self) -> tuple[DType, ...]:
        """The item."""
        return (self.item,)


@dataclass(frozen=True)
class Tensor(DType):
    """A numpy array of one shape, row-major, without nulls in it.

    Raises:
        SchemaError: The item is neither a number nor bool, or the shape is empty or too large.
    """

    item: Number | Bool
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.item, Number | Bool):
            raise SchemaError(f"{self.item}", "no item of a tensor; use a number type or bool")
        if not self.shape or min(self.shape) < 0 or prod(self.shape) > MAX_SIZE:
            raise SchemaError(f"{self.shape}"[:80], f"no shape; use sizes of product <= {MAX_SIZE}")

    def __str__(self) -> str:
        return f"tensor<{', '.join(map(str, (self.item, *self.shape)))}>"

    @property
    def children(self) -> tuple[DType, ...]:
        """The item."""
        return (self.item,)

    @property
    def size(self) -> int:
        """Elements of one value."""
        return prod(self.shape)


@dataclass(frozen=True)
class Dictionary(DType):
    """Values of a flat type, each distinct one stored once and named by an int32 code.

    Raises:
        SchemaError: The value is nested, null or a dictionary.
    """

    value: DType

    def __post_init__(self) -> None:
        if not isinstance(self.value, Bool | Number | Utf8 | Binary | Date | Timestamp):
            raise SchemaError(
                f"{self.value}"[:80], "no value of a dictionary; use a flat type, such as utf8"
            )

    def __str__(self) -> str:
        return f"dictionary<{self.value}>"


@dataclass(frozen=True)
class Field:
    """A named type: a field of a struct, or a column."""

    name: str
    dtype: DType

    def __str__(self) -> str:
        name = self.name if WORD.fullmatch(self.name) else json.dumps(self.name)
        return f"{name}: {self.dtype}"


@dataclass(frozen=True)
class Struct(DType):
    """Named values of their own types.

    Raises:
        SchemaError: Two fields have one name.
    """

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        seen = set()
        for field in self.fields:
            if field.name in seen:
                raise SchemaError(field.name, "the name stands twice in one struct; rename one")
            seen.add(field.name)

    def __str__(self) -> str:
        return f"struct<{', '.join(map(str, self.fields))}>"

    @property
    def children(self) -> tuple[DType, ...]:
        """The types of the fields."""
        return tuple(field.dtype for field in self.fields)


def depth_of(dtype: DType) -> int:
    """Return how deep a type nests: 0 for a number, 1 for a list of numbers.

    >>> depth_of(List(Struct((Field("a", Utf8()),))))
    2
    """
    if isinstance(dtype, Struct) and not dtype.fields:
        return 1
    return max((1 + depth_of(child) for child in dtype.children), default=0)
