"""Python and numpy values into compact arrays, the type read off *all* of the values.

A whole column is looked at before its type is settled, so a null, a float among ints, or a key
that only later rows have, needs no hint. Python ints become int64 (uint64 if one needs it), floats
float64; numpy values keep their own width. ``datetime`` becomes timestamp[us] in its zone.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import date
from itertools import chain
from operator import countOf, itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Nulls
from .bits import Bits, Mask
from .build_arrays import lists_of_alike, lists_of_ragged, lists_of_some
from .build_flat import build_bools, build_bytes, build_numbers, build_text, filled, validity
from .build_times import build_times
from .errors import SchemaError
from .gather import Ragged, offsets_of
from .nested import Structs, lists
from .types import Field, Struct
from .vectors import as_array, flat_array, is_flat


def build(values: Any, *, field: str = "") -> Array:  # noqa: ANN401 - whatever a caller has
    """Return the values as a compact array of the smallest type that holds all of them.

    Args:
        values: A sequence of None, bool, int, float, str, bytes, date, datetime, sequences,
            mappings and numpy values, an array (one row per entry of its first axis), a
            ``Ragged``, or a column of an Arrow library, which is not copied if it is in one piece.
        field: Name of the values, for errors.

    Raises:
        SchemaError: A value has no column type, or two have no common one.

    >>> str(build([[1, None], None, []]).dtype)
    'list<int64>'
    """
    if type(values) is list:
        return _from_list(values, field)
    if isinstance(values, Array):
        return values
    if isinstance(values, Ragged):
        return lists_of_ragged(values, field)
    if isinstance(values, str | bytes | Mapping):
        kind = type(values).__name__
        raise SchemaError(
            field, f"a column is a sequence of values, not a {kind}; wrap it in a list"
        )
    if hasattr(values, "__arrow_c_stream__") or hasattr(values, "__arrow_c_array__"):
        from .arrow import import_array  # which most datasets never need

        return import_array(values)
    if hasattr(values, "__array__"):
        return _from_array(as_array(values), field)
    return _from_list(list(values), field)


def _from_list(rows: list[Any], field: str) -> Array:
    alike = lists_of_alike(rows, field) if rows and type(rows[0]) is np.ndarray else None
    if alike is not None:
        return alike
    every_kind = _kinds(rows)
    kinds = every_kind - {type(None)}
    if not kinds:
        return Nulls(len(rows))
    families = {_family(kind, field) for kind in kinds}
    if families == {"array", "list"}:
        rows, families = [list(r) if hasattr(r, "__array__") else r for r in rows], {"list"}
    if len(families) > 1:
        names = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise SchemaError(field, f"holds both {names}, which no one type holds; convert one")
    return _MAKERS[families.pop()](rows, every_kind, field)


def table(rows: Sequence[Mapping[str, Any]]) -> Structs:
    """Return rows as one struct array whose fields are the columns, a missing key as null.

    Raises:
        SchemaError: As in ``build``, with the number of the row; or a row is not a mapping.
    """
    if not all(issubclass(kind, Mapping) for kind in set(map(type, rows))):
        i, row = next((i, row) for i, row in enumerate(rows) if not isinstance(row, Mapping))
        raise SchemaError("", f"a row is a mapping, not {_short(row)}; give a dict", row=i)
    try:
        return _fields(rows, "")
    except SchemaError as error:
        bad = first_bad(rows, lambda some: _fields(some, ""))
        raise SchemaError(error.field, error.problem, row=bad) from None


def columns(named: Mapping[str, Any]) -> Structs:
    """Return named columns as one struct array.

    Raises:
        SchemaError: As in ``build``; or two columns differ in length.
    """
    children = {name: build(values, field=name) for name, values in named.items()}
    lengths = {name: child.length for name, child in children.items()}
    if len(set(lengths.values())) > 1:
        raise SchemaError("", f"columns differ in length: {lengths}; give each as many values")
    return struct(children, length=next(iter(lengths.values()), 0))


def struct(children: Mapping[str, Array], *, length: int, valid: Mask | None = None) -> Structs:
    """Return arrays as the fields of one struct array."""
    dtype = Struct(tuple(Field(name, child.dtype) for name, child in children.items()))
    return Structs(dtype, dict(children), length=length, valid=Bits.unless_all(valid))


def first_bad(rows: Sequence[Any], attempt: Callable[[Sequence[Any]], object]) -> int:
    """Return the first row with which ``attempt`` on the rows up to it raises a SchemaError.

    A bisection: a prefix that fails still fails when it grows.
    """
    good, bad = 0, len(rows)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            attempt(rows[:middle])
        except SchemaError:
            bad = middle
        else:
            good = middle
    return bad - 1


def _kinds(rows: list[Any]) -> set[type]:
    kind = type(rows[0]) if rows else type(None)
    # Most columns are of one kind, and to count is a quarter faster than to fill a set.
    return {kind} if countOf(map(type, rows), kind) == len(rows) else set(map(type, rows))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _family(kind: type, field: str) -> str:
    for family, kinds in _FAMILIES.items():
        # A numpy timedelta is an integer, to numpy.
        if issubclass(kind, kinds) and not issubclass(kind, np.timedelta64):
            return family
    if hasattr(kind, "__array__") and not issubclass(kind, np.generic):
        return "array"
    raise SchemaError(
        field, f"{kind.__name__} is no column type; convert to bool, int, float, str, list or dict"
    )


def _lists(rows: list[Any], kinds: Collection[type], field: str) -> Array:
    valid = validity(rows, kinds)
    full = rows if valid is None else filled(rows, ())
    lengths = np.fromiter(map(len, full), np.int64, len(full))
    child = build(list(chain.from_iterable(full)), field=f"{field}[]")
    return lists(offsets_of(lengths), child, valid=valid)


def _arrays(rows: list[Any], kinds: Collection[type], field: str) -> Array:
    """Numpy arrays, or what turns into them: one list per row."""
    arrays = [None if row is None else as_array(row) for row in rows]
    ndims = {a.ndim for a in arrays if a is not None}
    if len(ndims) > 1:
        raise SchemaError(field, f"holds arrays of {sorted(ndims)} dimensions; give all one number")
    ndim = ndims.pop()
    if ndim == 0:
        return build([None if a is None else a[()] for a in arrays], field=field)
    if ndim > 1 or any(a is not None and not is_flat(a.dtype) for a in arrays):
        return _lists([None if a is None else list(a) for a in arrays], kinds, field)
    return lists_of_some(arrays, field)


def _structs(rows: list[Any], kinds: Collection[type], field: str) -> Array:
    valid = validity(rows, kinds)
    found = _fields(rows if valid is None else filled(rows, {}), field)
    found.valid = Bits.unless_all(valid)
    return found


def _fields(rows: Sequence[Mapping[str, Any]], field: str) -> Structs:
    children: dict[str, Array] = {}
    dicts = set(map(type, rows)) == {dict}  # what else maps keys may make up what it lacks
    for name in dict.fromkeys(chain.from_iterable(rows)):
        if not isinstance(name, str):
            raise SchemaError(field, f"the key {name!r} is not a str; give str keys")
        path = f"{field}.{name}" if field else name
        children[name] = build(_of_each(rows, name, dicts=dicts), field=path)
    return struct(children, length=len(rows))


def _of_each(rows: Sequence[Mapping[str, Any]], name: str, *, dicts: bool) -> list[Any]:
    """Return a key's value in each row, None where it is missing."""
    if dicts:
        with suppress(KeyError):
            return list(map(itemgetter(name), rows))
    return [row.get(name) for row in rows]


_FAMILIES: dict[str, tuple[type, ...]] = {
    "bool": (bool, np.bool_),
    # A datetime is a date and a numpy datetime an integer, to Python: times come first.
    "time": (date, np.datetime64),
    "number": (int, float, np.integer, np.floating),
    "text": (str,),
    "bytes": (bytes, bytearray, memoryview),
    "struct": (Mapping,),
    "list": (list, tuple, range),
}
_MAKERS: dict[str, Callable[[list[Any], Collection[type], str], Array]] = {
    "bool": build_bools,
    "number": build_numbers,
    "time": build_times,
    "text": build_text,
    "bytes": build_bytes,
    "struct": _structs,
    "list": _lists,
    "array": _arrays,
}


def _from_array(array: NDArray[Any], field: str) -> Array:
    """One row per entry of the first axis."""
    if array.ndim == 0:
        raise SchemaError(
            field, f"a column is a sequence of values, not {array!r}; wrap it in a list"
        )
    if not is_flat(array.dtype):
        return build(array.tolist(), field=field)
    if array.ndim == 1:
        return flat_array(array, field)
    child = _from_array(array.reshape(-1, *array.shape[2:]), f"{field}[]")
    return lists(np.arange(len(array) + 1, dtype=np.int64) * array.shape[1], child)
