"""What rows come out as: values as they lie, plain Python, numpy, torch, or what a function makes.

The default gives lists of numbers as numpy views and everything else as Python values. With
``numpy`` a batch holds one array for a column of numbers and one ``Ragged`` for a column of lists,
both views of the file when the rows follow one another.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Bools, Numbers
from .blocks import Range
from .column import Column
from .fixed import FixedLists
from .gather import Ints, Ragged
from .nested import Bytes, Lists
from .types import Binary, Dictionary, FixedList, LargeList, List, Struct, Tensor, Utf8

if TYPE_CHECKING:
    from .dataset import Dataset

Kind = Literal["python", "numpy", "torch"]
Rows = Range | Ints
Batch = Mapping[str, Sequence[Any]]
Transform = Callable[[dict[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Format:
    """How the rows of a dataset come out."""

    kind: Kind | None = None
    """None for values as they lie."""
    transform: Transform | None = None
    """Makes another batch of every batch that comes out."""
    hidden: frozenset[str] = frozenset()
    """Columns left out, or not formatted."""
    output_all_columns: bool = False
    """Put the hidden columns out too, as they lie."""

    def shown(self, columns: Mapping[str, Column]) -> list[str]:
        """Return the names that come out, the formatted columns first."""
        if not self.hidden:
            return list(columns)
        found = [name for name in columns if name not in self.hidden]
        return found + [n for n in columns if n in self.hidden and self.output_all_columns]

    def column(self, name: str, column: Column, rows: Rows) -> Any:  # noqa: ANN401
        """Return some rows of one column."""
        return (_stored if name in self.hidden else _READERS[self.kind])(column, rows)

    def batch(self, columns: Mapping[str, Column], rows: Rows) -> dict[str, Any]:
        """Return some rows as a dict of columns."""
        found = {name: self.column(name, columns[name], rows) for name in self.shown(columns)}
        if self.transform is None:
            return found
        others = {name: found.pop(name) for name in self.hidden if name in found}
        return {**self.transform(found), **others}

    def rows(self, columns: Mapping[str, Column], rows: Rows) -> list[dict[str, Any]]:
        """Return some rows as dicts."""
        return transposed(self.batch(columns, rows))

    def row(self, columns: Mapping[str, Column], index: int) -> dict[str, Any]:
        """Return one row, whose number may be negative, as a dict."""
        if self == STORED:
            return {name: column.item(index) for name, column in columns.items()}
        for column in columns.values():
            column.item(index)  # names a row that is not there
            index %= len(column)
            break
        return self.rows(columns, np.array([index]))[0]

    def renamed(self, names: Mapping[str, str]) -> "Format":
        """Return the format for columns under other names."""
        return replace(self, hidden=frozenset(names.get(name, name) for name in self.hidden))


STORED = Format()


def with_format(
    ds: "Dataset",
    type: Kind | None = None,
    columns: Sequence[str] | None = None,
    *,
    output_all_columns: bool = False,
) -> "Dataset":
    """Return the dataset with its rows and batches in another form; no data is copied.

    The form holds for ``ds[...]``, iteration and the batches that ``map`` and ``filter`` pass on.
    A column with a null among the rows asked for, or of values without an array form, comes out
    as it does without a format.

    Args:
        ds: The dataset.
        type: None for values as they lie: lists of numbers as numpy views, else Python values.
            ``"python"`` for lists throughout, ``"numpy"`` for one array or ``Ragged`` a column,
            ``"torch"`` for one tensor, or a list of tensors, a column.
        columns: Columns to format; the others are left out. Default all.
        output_all_columns: Put the others out too, as they lie.

    Raises:
        KeyError: There is no such column.
        ValueError: There is no such type.

    >>> from nanorlhf.nanosets import Dataset
    >>> Dataset.from_dict({"t": [[1, 2], [3]]}).with_format("numpy")[:]
    {'t': Ragged(values=array([1, 2, 3]), offsets=array([0, 2, 3]))}
    """
    if type not in _READERS:
        raise ValueError(f"type={type!r} is no format; use None or one of {get_args(Kind)}")
    form = Format(type, None, _hidden(ds, columns), output_all_columns)
    return ds.of_columns(ds.columns, form)


def with_transform(
    ds: "Dataset",
    transform: Transform,
    columns: Sequence[str] | None = None,
    *,
    output_all_columns: bool = False,
) -> "Dataset":
    """Return the dataset with ``transform`` called on every batch that comes out.

    Args:
        ds: The dataset.
        transform: Gets a dict of columns, of one row for ``ds[i]``, and returns one of as many
            rows.
        columns: Columns to pass to it; the others are left out. Default all.
        output_all_columns: Put the others out too, as they lie.

    Raises:
        KeyError: There is no such column.
    """
    form = Format(None, transform, _hidden(ds, columns), output_all_columns)
    return ds.of_columns(ds.columns, form)


def transposed(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a dict of columns as a list of rows.

    >>> transposed({"a": [1, 2], "b": ["x", "y"]})
    [{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'y'}]
    """
    columns = [v.rows() if isinstance(v, Ragged) else v for v in batch.values()]
    return [dict(zip(batch, row, strict=True)) for row in zip(*columns, strict=True)]


def plain(value: Any) -> Any:  # noqa: ANN401 - a value of any column type
    """Return a value with its arrays as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def dense(array: Array) -> NDArray[Any] | Ragged | None:
    """Return a compact array as one numpy array or ``Ragged``, a view where it can be.

    None when a value is null or the type has no such form.
    """
    if array.valid is not None:
        return None
    if isinstance(array, Bools):
        return array.flat()
    if isinstance(array, Numbers):
        return array.as_numpy(array.values[: array.length])
    if isinstance(array, FixedLists):
        return None if dense(array.child) is None else array.dense()
    if isinstance(array, Lists) and not isinstance(array, Bytes):
        values = dense(array.child)
        if isinstance(values, np.ndarray) and values.ndim == 1:
            return Ragged(values, array.edges[: array.length + 1].astype(np.int64, copy=False))
    return None


def _hidden(ds: "Dataset", columns: Sequence[str] | None) -> frozenset[str]:
    if columns is None:
        return frozenset()
    return frozenset(ds.column_names) - set(ds.select_columns(columns).column_names)


def _stored(column: Column, rows: Rows) -> list[Any]:
    return column.stretch(*rows) if isinstance(rows, Range) else column.values(rows)


def _python(column: Column, rows: Rows) -> list[Any]:
    values = _stored(column, rows)
    nested = isinstance(column.dtype, List | LargeList | FixedList | Tensor | Struct)
    return [plain(value) for value in values] if nested else values


def _numpy(column: Column, rows: Rows) -> Any:  # noqa: ANN401 - array, Ragged or list
    if isinstance(column.dtype, Utf8 | Binary | Struct | Dictionary):
        return _stored(column, rows)
    array = column.block(*rows) if isinstance(rows, Range) else column.take(rows)
    found = dense(array)
    return array.pylist() if found is None else found


def _torch(column: Column, rows: Rows) -> Any:  # noqa: ANN401 - tensor or list
    import torch

    found = _numpy(column, rows)
    if isinstance(found, Ragged):
        values = torch.from_numpy(_writable(found.values))
        return list(torch.split(values, found.lengths.tolist()))
    return torch.from_numpy(_writable(found)) if isinstance(found, np.ndarray) else found


def _writable(values: NDArray[Any]) -> NDArray[Any]:
    """A tensor cannot be read-only, and what lies in a file must not change."""
    return values if values.flags.writeable and values.flags.owndata else values.copy()


_READERS = cast(
    dict[str | None, Callable[[Column, Rows], Any]],
    {None: _stored, "python": _python, "numpy": _numpy, "torch": _torch},
)
