"""Compact arrays into one array, or into another type.

A value that the other type cannot hold is an error; a float may be rounded to the other precision.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np

from .arrays import Array, Bools, Nulls, Numbers
from .bits import Bits
from .casts import cast_flat, flat
from .coded import CODE, Coded, Vocabulary, coded
from .errors import SchemaError
from .fixed import FixedLists, Tensors
from .gather import offsets_of
from .nested import Bytes, Lists, Structs, Text
from .reshape import Listed, elements, evened, peeled, tensors
from .types import (
    Binary,
    Bool,
    Date,
    Dictionary,
    DType,
    FixedList,
    LargeList,
    List,
    Number,
    Struct,
    Tensor,
    Timestamp,
    Utf8,
    unify_all,
)


def all_null(dtype: DType, length: int) -> Array:
    """Return a compact array of ``length`` nulls of a type."""
    valid = Bits.unless_all(np.zeros(length, np.bool_))
    if isinstance(dtype, Number | Date | Timestamp):
        return flat(dtype, np.zeros(length, dtype.numpy), valid=valid)
    if isinstance(dtype, Bool):
        return Bools(Bits.pack(np.zeros(length, np.bool_)), length=length, valid=valid)
    if isinstance(dtype, Struct):
        children = {f.name: all_null(f.dtype, length) for f in dtype.fields}
        return Structs(dtype, children, length=length, valid=valid)
    if isinstance(dtype, FixedList | Tensor):
        return _fixed(dtype, _blank(dtype.item, length * dtype.size), length=length, valid=valid)
    if isinstance(dtype, Dictionary):
        codes = Numbers(CODE, np.zeros(length, "<i4"))
        return Coded(codes, all_null(dtype.value, 0), length=length, valid=valid)
    edges = np.zeros(length + 1, np.int64)
    if isinstance(dtype, Utf8 | Binary):
        data = Numbers(Number("uint8"), np.zeros(0, np.uint8))
        return (Text if isinstance(dtype, Utf8) else Bytes)(dtype, edges, data, valid=valid)
    if isinstance(dtype, List | LargeList):
        return Lists(dtype, edges, all_null(dtype.item, 0), valid=valid)
    return Nulls(length)


def _fixed(
    dtype: FixedList | Tensor, child: Array, *, length: int, valid: Bits | None
) -> FixedLists:
    maker = Tensors if isinstance(dtype, Tensor) else FixedLists
    return maker(dtype, child, length=length, valid=valid)


def _blank(dtype: DType, length: int) -> Array:
    """Return elements to lie under nulls; those of a tensor cannot be null themselves."""
    found = all_null(dtype, length)
    if isinstance(dtype, Number | Bool):
        found.valid = None
    return found


def concat(arrays: Sequence[Array]) -> Array:
    """Return compact arrays of one type end to end; the array itself when there is one."""
    first = arrays[0]
    if len(arrays) == 1:
        return first
    length = sum(a.length for a in arrays)
    if isinstance(first, Nulls):
        return Nulls(length)
    valid = concat_validity(arrays)
    if isinstance(first, Numbers):
        values = np.concatenate([a.values[: a.length] for a in cast(list[Numbers], arrays)])
        return type(first)(first.dtype, values, valid=valid)
    if isinstance(first, Bools):
        mask = np.concatenate([a.flat() for a in cast(list[Bools], arrays)])
        return Bools(Bits.pack(mask), length=length, valid=valid)
    if isinstance(first, Structs):
        parts = cast(list[Structs], arrays)
        children = {name: concat([a.children[name] for a in parts]) for name in first.children}
        return Structs(first.dtype, children, length=length, valid=valid)
    if isinstance(first, Coded):
        return _concat_coded(cast(list[Coded], arrays), length, valid)
    child = concat([a.child for a in cast(list[Listed], arrays)])
    if isinstance(first, FixedLists):
        return type(first)(first.dtype, child, length=length, valid=valid)
    assert isinstance(first, Lists)
    lengths = [np.diff(a.edges[: a.length + 1]) for a in cast(list[Lists], arrays)]
    return type(first)(first.dtype, offsets_of(np.concatenate(lengths)), child, valid=valid)


def _concat_coded(arrays: list[Coded], length: int, valid: Bits | None) -> Coded:
    values = arrays[0].values
    codes = [a.codes.values[: a.length] for a in arrays]
    if any(a.values is not values for a in arrays):
        known = Vocabulary()
        codes = [known.recode(a) for a in arrays]
        values = concat(known.parts or [values])
    data = Numbers(CODE, np.concatenate(codes).astype("<i4", copy=False))
    return Coded(data, values, length=length, valid=valid)


def decoded(array: Coded) -> Array:
    """Return a compact dictionary array as plain values."""
    if array.values.length == 0:
        return all_null(array.dtype.value, array.length)
    found = array.values.take(0, array.codes.values[: array.length].astype(np.int64))
    found.valid = array.valid
    return found


def encoded(array: Array) -> Coded:
    """Return a compact array of flat values as a dictionary of its distinct ones."""
    mask = array.validity()
    known = Vocabulary()
    if mask is None:
        codes = known.codes_of(array)
    else:
        codes = np.zeros(array.length, np.int64)
        codes[mask] = known.codes_of(array.take(0, np.flatnonzero(mask)))
    return coded(codes, concat(known.parts or [array.window(0, 0, 0)]), valid=mask)


def merge(parts: Sequence[Structs]) -> Structs:
    """Return struct arrays end to end, in the smallest type that holds all of them.

    Raises:
        SchemaError: There is none.
    """
    wide = unify_all(part.dtype for part in parts)
    return cast(Structs, concat([convert(part, wide) for part in parts]))


def concat_validity(arrays: Sequence[Array]) -> Bits | None:
    """Return which elements of arrays end to end are not null; None when all are."""
    if all(a.valid is None for a in arrays):
        return None
    masks = [a.validity() for a in arrays]
    whole = [
        np.ones(a.length, np.bool_) if m is None else m for a, m in zip(arrays, masks, strict=True)
    ]
    return Bits.unless_all(np.concatenate(whole))


def convert(array: Array, dtype: DType, *, field: str = "") -> Array:
    """Return a compact array in another type; the array itself when it has that type.

    Null becomes anything. Numbers become wider ones, or narrower ones that hold every value; an
    int becomes a float only if that is exact; a float may be rounded to a narrower float, not to
    infinity. Times change unit where that is exact, and turn from and to whole counts since 1970;
    naive times count as UTC. Strings become bytes, bytes that are UTF-8 strings, ISO 8601 strings
    times. Lists, large lists, lists of one size and tensors turn into each other where the sizes
    allow, plain values and dictionaries always. Structs get missing fields as nulls.

    Raises:
        SchemaError: A value does not fit, or the types have nothing to do with each other.
    """
    if array.dtype == dtype:
        return array
    if isinstance(array, Nulls):
        return all_null(dtype, array.length)
    if isinstance(array, Coded):
        return _convert_coded(array, dtype, field)
    if isinstance(dtype, Dictionary):
        return encoded(convert(array, dtype.value, field=field))
    if isinstance(array, Structs) and isinstance(dtype, Struct):
        return _convert_structs(array, dtype, field)
    if isinstance(array, Listed) and not isinstance(array, Bytes):
        found = _convert_lists(array, dtype, field)
    else:
        found = cast_flat(array, dtype, field)
    if found is not None:
        return found
    raise SchemaError(field, f"holds {array.dtype}, asked is {dtype}; map the values to that first")


def _convert_coded(array: Coded, dtype: DType, field: str) -> Array:
    if not isinstance(dtype, Dictionary):
        return convert(decoded(array), dtype, field=field)
    values = convert(array.values, dtype.value, field=field)
    # Two values may have become equal, such as floats that were rounded.
    mask = array.validity()
    distinct = encoded(values)
    codes = distinct.codes.values[array.codes.values[: array.length]] if values.length else 0
    codes = np.broadcast_to(np.asarray(codes, np.int64), (array.length,))
    return coded(codes, distinct.values, valid=mask)


def _convert_lists(array: Listed, dtype: DType, field: str) -> Array | None:
    mask = array.validity()
    if array.length and mask is not None and not mask.any():
        # No value can have the wrong size; whether the types have to do with each other remains.
        convert(array.take(0, np.zeros(0, np.int64)), dtype, field=field)
        return all_null(dtype, array.length)
    if isinstance(dtype, Tensor):
        items = convert(elements(array, dtype, field), dtype.item, field=f"{field}[]")
        return tensors(dtype, items, array, field)
    if not isinstance(dtype, List | LargeList | FixedList):
        return None
    if isinstance(array, Tensors) and len(array.dtype.shape) > 1:
        array = peeled(array)
    if isinstance(dtype, FixedList):
        array = evened(array, dtype.size, field)
    child = convert(array.child, dtype.item, field=f"{field}[]")
    if isinstance(dtype, FixedList):
        return FixedLists(dtype, child, length=array.length, valid=array.valid)
    if isinstance(array, FixedLists):
        edges = np.arange(array.length + 1, dtype=np.int64) * array.dtype.size
    else:
        edges = array.edges[: array.length + 1]
    return Lists(dtype, edges, child, valid=array.valid)


def _convert_structs(array: Structs, dtype: Struct, field: str) -> Structs:
    names = {f.name for f in dtype.fields}
    extra = [name for name in array.children if name not in names]
    if extra:
        path = f"{field}.{extra[0]}" if field else extra[0]
        raise SchemaError(path, f"is not among the asked fields {sorted(names)}; add or drop it")
    children: dict[str, Array] = {}
    for f in dtype.fields:
        found = array.children.get(f.name)
        path = f"{field}.{f.name}" if field else f.name
        children[f.name] = (
            all_null(f.dtype, array.length)
            if found is None
            else convert(found, f.dtype, field=path)
        )
    return Structs(dtype, children, length=array.length, valid=array.valid)
