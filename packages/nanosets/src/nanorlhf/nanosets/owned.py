"""Values that nobody can change later, for those who hold them a while before they use them.

A loop that fills one array, or one dict, again and again and passes it on each time means what it
holds at that time.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .gather import Ragged
from .vectors import as_array

FIXED = frozenset({str, int, float, bool})
"""Types of values that cannot change, nor can what a column holds beside them."""


def owned_columns(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return named columns as ``owned_column`` does each."""
    return {name: owned_column(values) for name, values in named.items()}


def owned_column(values: Any) -> Any:  # noqa: ANN401 - a column, or a value
    """Return a column, or a copy if it is an array whose memory can be written to.

    A list is left as it is: to make a column of it copies it.
    """
    if type(values) is list:
        return values
    if isinstance(values, Ragged):
        return Ragged(owned_column(values.values), owned_column(values.offsets))
    if isinstance(values, np.generic) or not hasattr(values, "__array__"):
        return values
    if hasattr(values, "__arrow_c_stream__") or hasattr(values, "__arrow_c_array__"):
        # Arrays of Arrow libraries do not change; a column of pandas, which is one too, may.
        pandas = type(values).__module__.partition(".")[0] == "pandas"
        return values.copy() if pandas else values
    array = as_array(values)
    return array.copy() if _may_change(array) else array


def owned_row(row: Any) -> Any:  # noqa: ANN401 - a row, or what will be refused as one
    """Return a row whose dicts, lists and arrays are its own.

    >>> row = {"x": [[1], 2]}
    >>> kept = owned_row(row)
    >>> row["x"][0].clear()
    >>> kept
    {'x': [[1], 2]}
    """
    return _owned_dict(row) if isinstance(row, Mapping) else row


def _owned_dict(values: Mapping[Any, Any]) -> dict[Any, Any]:
    return {name: _owned(value) for name, value in values.items()}


def _owned(value: Any) -> Any:  # noqa: ANN401 - a value of any column type
    kind = type(value)
    if kind in FIXED or value is None:
        return value
    if kind is np.ndarray:
        return value.copy() if _may_change(value) else value
    if isinstance(value, list | tuple):
        flat = not value or type(value[0]) in FIXED
        return list(value) if flat else list(map(_owned, value))
    if isinstance(value, Mapping):
        return _owned_dict(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)  # itself, if it is bytes
    return owned_column(value)


def _may_change(array: Any) -> bool:  # noqa: ANN401 - an array, or what its memory belongs to
    """Return whether an array, or one that it is a view of, can be written to."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return True
        array = array.base
    return False
