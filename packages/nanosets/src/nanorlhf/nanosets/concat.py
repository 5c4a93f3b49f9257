"""Several datasets as one: rows under each other, or columns side by side; no data is copied."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from .chunks import MemoryPart, Part
from .column import Column
from .convert import all_null
from .dataset import Dataset
from .errors import SchemaError
from .gather import Ints
from .types import DType, Null, unify_all


def concatenate_datasets(dsets: Sequence[Dataset], *, axis: Literal[0, 1] = 0) -> Dataset:
    """Return all datasets as one; no data is copied.

    Args:
        dsets: The datasets. Below each other, a column that one of them lacks is null there, and
            numbers of different width are widened, which copies the narrow ones into memory.
        axis: 0 for one dataset's rows after another's, 1 for their columns side by side.

    Raises:
        SchemaError: A column has types that no one type holds.
        ValueError: There is no dataset or no such axis; or, side by side, two have a column of
            one name or different numbers of rows.
    """
    if not dsets:
        raise ValueError("dsets=[] holds no dataset; give at least one")
    if axis not in (0, 1):
        raise ValueError(f"axis={axis} is neither 0 for rows nor 1 for columns; use one of them")
    if len(dsets) == 1:
        return dsets[0]
    if axis == 1:
        return _side_by_side(dsets)
    wide = unify_all(ds.schema.struct for ds in dsets)
    shared: dict[tuple[Any, ...], Ints] = {}
    return Dataset({f.name: _concatenated(f.name, f.dtype, dsets, shared) for f in wide.fields})


def _side_by_side(dsets: Sequence[Dataset]) -> Dataset:
    named: dict[str, Column] = {}
    for ds in dsets:
        for name, column in ds.columns.items():
            if name in named:
                raise ValueError(f"column {name!r} is in two of the datasets; rename one of them")
            named[name] = column
    return Dataset(named)


def _concatenated(
    name: str, dtype: DType, dsets: Sequence[Dataset], shared: dict[tuple[Any, ...], Ints]
) -> Column:
    columns = [_as(ds.columns.get(name), dtype, name, len(ds)) for ds in dsets]
    parts: list[Part] = [part for column in columns for part in column.parts]
    if all(column.rows is None for column in columns):
        return Column(dtype, parts)
    sizes = [sum(part.length for part in column.parts) for column in columns]
    # Columns with the same rows in all datasets keep sharing them: one select then serves all.
    key = (*(id(column.rows) for column in columns), *sizes)
    if key not in shared:
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        rows = [
            start + (np.arange(len(column)) if column.rows is None else column.rows)
            for start, column in zip(starts, columns, strict=True)
        ]
        shared[key] = np.concatenate(rows)
    return Column(dtype, parts, shared[key])


def _as(column: Column | None, dtype: DType, name: str, rows: int) -> Column:
    if column is None or (isinstance(column.dtype, Null) and not isinstance(dtype, Null)):
        return Column(dtype, (MemoryPart(all_null(dtype, rows)),))
    try:
        return column.converted(dtype, field=name)
    except SchemaError as error:
        raise SchemaError(error.field, f"concatenated datasets differ: {error.problem}") from None
