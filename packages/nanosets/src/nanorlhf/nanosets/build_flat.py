"""Values that hold no others into arrays: bools, numbers, strings and bytes.

Each function gets the rows, their types and the name of their column for errors.
"""

from collections.abc import Collection
from functools import reduce
from typing import Any

import numpy as np

from .arrays import Array, Bools, Numbers
from .bits import Bits, Mask
from .errors import SchemaError
from .gather import Ints, offsets_of
from .nested import Bytes, Text
from .types import Binary, DType, Number, Utf8, unify

EXACT_FLOAT = 2**53
"""Largest range of ints that float64 holds without gaps."""


def validity(rows: list[Any], kinds: Collection[type]) -> Mask | None:
    """Return which rows are not None; None when all are."""
    if type(None) not in kinds:
        return None
    mask = np.fromiter((row is not None for row in rows), np.bool_, len(rows))
    return None if mask.all() else mask


def filled(rows: list[Any], fill: object) -> list[Any]:
    """Return the rows with None replaced."""
    return [fill if row is None else row for row in rows]


def build_bools(rows: list[Any], kinds: Collection[type], field: str) -> Array:
    """Return bools and None as an array."""
    del field
    valid = validity(rows, kinds)
    bits = Bits.pack(np.array(filled(rows, False), np.bool_))
    return Bools(bits, length=len(rows), valid=Bits.unless_all(valid))


def build_numbers(rows: list[Any], kinds: Collection[type], field: str) -> Array:
    """Return ints, floats, numpy's scalars and None as an array of the type that holds them.

    Raises:
        SchemaError: There is none.
    """
    valid = validity(rows, kinds)
    full = rows if valid is None else filled(rows, 0)
    kinds = set(kinds) - {type(None)}
    dtype = reduce(lambda a, b: unify(a, b, field=field), map(_number_type, kinds))
    assert isinstance(dtype, Number)
    if dtype.numpy.kind == "f" and any(not issubclass(k, float | np.floating) for k in kinds):
        _refuse_inexact(full, field)
    try:
        values = np.fromiter(full, dtype.numpy, len(full))
    except OverflowError:
        dtype = Number("uint64")
        try:
            values = np.array(full, np.uint64)
        except OverflowError:
            low, high = min(full), max(full)
            rule = f"the ints {low} .. {high} fit neither int64 nor uint64; store them as str"
            raise SchemaError(field, rule) from None
    return Numbers(dtype, values, valid=Bits.unless_all(valid))


def _number_type(kind: type) -> DType:
    if issubclass(kind, np.generic) and kind is not np.longdouble:
        return Number(np.dtype(kind).name)
    return Number("int64" if issubclass(kind, int) else "float64")


def _refuse_inexact(rows: list[Any], field: str) -> None:
    for value in rows:
        if isinstance(value, int | np.integer) and abs(int(value)) > EXACT_FLOAT:
            rule = f"{value} stands among floats and float64 does not hold it; store them as str"
            raise SchemaError(field, rule)


def build_text(rows: list[Any], kinds: Collection[type], field: str) -> Array:
    """Return strings and None as an array.

    Raises:
        SchemaError: A string cannot be UTF-8.
    """
    valid = validity(rows, kinds)
    try:
        encoded = [row.encode() for row in (rows if valid is None else filled(rows, ""))]
    except UnicodeEncodeError as error:
        rule = f"a str with the lone surrogate {error.object[error.start]!r} is not UTF-8; mend it"
        raise SchemaError(field, rule) from None
    return Text(Utf8(), *_joined(encoded), valid=Bits.unless_all(valid))


def build_bytes(rows: list[Any], kinds: Collection[type], field: str) -> Array:
    """Return what holds bytes, and None, as an array."""
    del field
    valid = validity(rows, kinds)
    full = [bytes(row) for row in (rows if valid is None else filled(rows, b""))]
    return Bytes(Binary(), *_joined(full), valid=Bits.unless_all(valid))


def _joined(strings: list[bytes]) -> tuple[Ints, Numbers]:
    lengths = np.fromiter(map(len, strings), np.int64, len(strings))
    data = np.frombuffer(b"".join(strings), np.uint8)
    return offsets_of(lengths), Numbers(Number("uint8"), data)
