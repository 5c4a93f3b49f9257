"""The one type that holds two others."""

from collections.abc import Iterable
from functools import reduce

import numpy as np

from .dtypes import (
    UNITS,
    Dictionary,
    DType,
    Field,
    FixedList,
    LargeList,
    List,
    Null,
    Number,
    Struct,
    Tensor,
    Timestamp,
)
from .errors import SchemaError

Lists = List | LargeList | FixedList


def unify(a: DType, b: DType, *, field: str = "") -> DType:
    """Return the smallest type that holds the values of both.

    Null gives way to anything, numbers widen as numpy's do (but two integers never become a
    float), times take the finer unit, structs get the fields of both, a dictionary takes plain
    values in.

    Raises:
        SchemaError: There is none.

    >>> from .spelling import parse
    >>> str(unify(parse("list<int32>"), parse("fixed_list<float32, 2>")))
    'list<float64>'
    """
    if a == b or isinstance(b, Null):
        return a
    if isinstance(a, Null):
        return b
    found: DType | None = None
    if isinstance(a, Dictionary) or isinstance(b, Dictionary):
        found = _unify_dictionaries(a, b, field)
    elif isinstance(a, Lists) and isinstance(b, Lists):
        found = _unify_lists(a, b, field)
    elif isinstance(a, Struct) and isinstance(b, Struct):
        found = _unify_structs(a, b, field)
    elif isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape:
        item = unify(a.item, b.item, field=f"{field}[]")
        assert isinstance(item, Number), "bool and number have no common type"
        found = Tensor(item, a.shape)
    elif isinstance(a, Number) and isinstance(b, Number):
        found = _unify_numbers(a, b)
    elif isinstance(a, Timestamp) and isinstance(b, Timestamp):
        found = _unify_times(a, b)
    if found is None:
        raise SchemaError(field, f"holds both {a} and {b}, which no one type holds; convert one")
    return found


def _unify_lists(a: Lists, b: Lists, field: str) -> DType:
    item = unify(a.item, b.item, field=f"{field}[]")
    if isinstance(a, FixedList) and isinstance(b, FixedList) and a.size == b.size:
        return FixedList(item, a.size)
    return LargeList(item) if LargeList in (type(a), type(b)) else List(item)


def _unify_dictionaries(a: DType, b: DType, field: str) -> DType | None:
    plain = [t.value if isinstance(t, Dictionary) else t for t in (a, b)]
    # A nested type cannot be the value of a dictionary, nor does it unify with one that can.
    return Dictionary(unify(*plain, field=field))


def _unify_numbers(a: Number, b: Number) -> Number | None:
    # bfloat16 and another type have no common 16-bit one: it then counts as float32.
    first, second = (np.dtype("float32") if n.is_bfloat16 else n.numpy for n in (a, b))
    both = np.result_type(first, second)
    if both.kind == "f" and "f" not in (first.kind, second.kind):
        return None
    return Number(both.name)


def _unify_times(a: Timestamp, b: Timestamp) -> Timestamp | None:
    if (a.tz is None) != (b.tz is None):
        return None
    unit = UNITS[max(UNITS.index(a.unit), UNITS.index(b.unit))]
    return Timestamp(unit, a.tz if a.tz == b.tz else "UTC")


def _unify_structs(a: Struct, b: Struct, field: str) -> Struct:
    types = {f.name: f.dtype for f in a.fields}
    for other in b.fields:
        path = f"{field}.{other.name}" if field else other.name
        types[other.name] = unify(types.get(other.name, other.dtype), other.dtype, field=path)
    return Struct(tuple(Field(name, dtype) for name, dtype in types.items()))


def unify_all(structs: Iterable[Struct]) -> Struct:
    """Return the smallest struct type that holds the values of all of them."""
    return reduce(lambda a, b: _unify_structs(a, b, ""), structs)
