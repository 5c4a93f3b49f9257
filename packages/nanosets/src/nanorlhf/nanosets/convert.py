"""Compact arrays into one array, or into another type.

A value that the other type cannot hold is an error; a float may be rounded to the other precision.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Bools, Nulls, Numbers
from .bits import Bits, Mask
from .errors import SchemaError
from .gather import offsets_of
from .nested import Lists, Structs, Text
from .types import Bool, DType, List, Number, Struct, Utf8, unify_all


def all_null(dtype: DType, length: int) -> Array:
    """Return a compact array of ``length`` nulls of a type."""
    valid = Bits.unless_all(np.zeros(length, np.bool_))
    if isinstance(dtype, Number):
        return Numbers(dtype, np.zeros(length, dtype.numpy), valid=valid)
    if isinstance(dtype, Bool):
        return Bools(Bits.pack(np.zeros(length, np.bool_)), length=length, valid=valid)
    edges = np.zeros(length + 1, np.int64)
    if isinstance(dtype, Utf8):
        return Text(dtype, edges, Numbers(Number("uint8"), np.zeros(0, np.uint8)), valid=valid)
    if isinstance(dtype, List):
        return Lists(dtype, edges, all_null(dtype.item, 0), valid=valid)
    if isinstance(dtype, Struct):
        children = {f.name: all_null(f.dtype, length) for f in dtype.fields}
        return Structs(dtype, children, length=length, valid=valid)
    return Nulls(length)


def concat(arrays: Sequence[Array]) -> Array:
    """Return compact arrays of one type end to end; the array itself when there is one."""
    first = arrays[0]
    if len(arrays) == 1:
        return first
    length = sum(a.length for a in arrays)
    if isinstance(first, Nulls):
        return Nulls(length)
    valid = _concat_validity(arrays)
    if isinstance(first, Numbers):
        values = np.concatenate([a.values[: a.length] for a in cast(list[Numbers], arrays)])
        return Numbers(first.dtype, values, valid=valid)
    if isinstance(first, Bools):
        mask = np.concatenate([a.flat() for a in cast(list[Bools], arrays)])
        return Bools(Bits.pack(mask), length=length, valid=valid)
    if isinstance(first, Structs):
        parts = cast(list[Structs], arrays)
        children = {name: concat([a.children[name] for a in parts]) for name in first.children}
        return Structs(first.dtype, children, length=length, valid=valid)
    assert isinstance(first, Lists)
    lists = cast(list[Lists], arrays)
    lengths = np.concatenate([np.diff(a.edges[: a.length + 1]) for a in lists])
    child = concat([a.child for a in lists])
    return type(first)(first.dtype, offsets_of(lengths), child, valid=valid)


def merge(parts: Sequence[Structs]) -> Structs:
    """Return struct arrays end to end, in the smallest type that holds all of them.

    Raises:
        SchemaError: There is none.
    """
    wide = unify_all(part.dtype for part in parts)
    return cast(Structs, concat([convert(part, wide) for part in parts]))


def _concat_validity(arrays: Sequence[Array]) -> Bits | None:
    if all(a.valid is None for a in arrays):
        return None
    masks = [a.validity() for a in arrays]
    whole = [
        np.ones(a.length, np.bool_) if m is None else m for a, m in zip(arrays, masks, strict=True)
    ]
    return Bits.unless_all(np.concatenate(whole))


def convert(array: Array, dtype: DType, *, field: str = "") -> Array:
    """Return a compact array in another type; the array itself when it has that type.

    Null becomes anything, numbers become wider ones, or narrower ones that hold every value,
    structs get missing fields as nulls. An int becomes a float only if that is exact; a float may
    be rounded to a narrower float, not to infinity.

    Raises:
        SchemaError: A value does not fit, or the types have nothing to do with each other.
    """
    if array.dtype == dtype:
        return array
    if isinstance(array, Nulls):
        return all_null(dtype, array.length)
    if isinstance(array, Numbers) and isinstance(dtype, Number):
        return _convert_numbers(array, dtype, field)
    if isinstance(array, Lists) and isinstance(dtype, List):
        child = convert(array.child, dtype.item, field=f"{field}[]")
        return Lists(dtype, array.edges, child, valid=array.valid)
    if isinstance(array, Structs) and isinstance(dtype, Struct):
        return _convert_structs(array, dtype, field)
    raise SchemaError(field, f"holds {array.dtype}, asked is {dtype}; map the values to that first")


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


def _convert_numbers(array: Numbers, dtype: Number, field: str) -> Numbers:
    old = array.values[: array.length]
    # What lies under a null is arbitrary, and must not stop the conversion.
    mask = array.validity()
    source, target = array.dtype.numpy.kind, dtype.numpy.kind
    with np.errstate(all="ignore"):
        new = old.astype(dtype.numpy)
        if source == "f" and target != "f":
            raise SchemaError(
                field, f"holds {array.dtype}, asked is {dtype}; round the values first"
            )
        if source == "f":
            bad = np.isinf(new) & np.isfinite(old)
        else:
            # Out of range wraps and an inexact float rounds: neither comes back as it was. The
            # float 2**63 does come back from an int64 by wrapping, hence the second condition.
            bad = (new.astype(old.dtype) != old) | _changed_sign(new, old)
    _refuse_first(bad, mask, old, field, dtype)
    return Numbers(dtype, new, valid=array.valid)


def _changed_sign(new: NDArray[Any], old: NDArray[Any]) -> Mask:
    sign: Mask = (new < 0) != (old < 0)
    if new.dtype.kind == "f":
        sign |= np.abs(new) >= float(np.iinfo(old.dtype).max) + 1
    return sign


def _refuse_first(
    bad: Mask, mask: Mask | None, old: NDArray[Any], field: str, dtype: Number
) -> None:
    found = np.flatnonzero(bad if mask is None else bad & mask)
    if len(found):
        value = old[found[0]].item()
        raise SchemaError(field, f"{value} does not fit {dtype}; ask for a wider type")
