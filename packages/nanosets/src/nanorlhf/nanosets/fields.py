"""Verbs on columns: which there are, what they are called, and what type they have."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import Array
from .bits import Bits
from .build import build
from .chunks import MemoryPart, Part
from .column import Column
from .errors import SchemaError
from .nested import Structs
from .types import DType, Features, Schema, Struct, parse

if TYPE_CHECKING:
    from .dataset import Dataset


def select_columns(ds: "Dataset", column_names: str | Sequence[str]) -> "Dataset":
    """Return these columns, in this order.

    Raises:
        KeyError: There is no such column.
    """
    return ds.of_columns({name: ds[name] for name in names_of(column_names)})


def remove_columns(ds: "Dataset", column_names: str | Sequence[str]) -> "Dataset":
    """Return all columns but these.

    Raises:
        KeyError: There is no such column.
    """
    gone = set(select_columns(ds, column_names).column_names)
    return ds.of_columns({n: column for n, column in ds.columns.items() if n not in gone})


def rename_column(ds: "Dataset", original_column_name: str, new_column_name: str) -> "Dataset":
    """Return the dataset with one column under another name, in its old place.

    Raises:
        KeyError: There is no such column.
        ValueError: The new name is taken.
    """
    return rename_columns(ds, {original_column_name: new_column_name})


def rename_columns(ds: "Dataset", column_mapping: Mapping[str, str]) -> "Dataset":
    """Return the dataset with columns under other names, in their old places.

    Args:
        ds: The dataset.
        column_mapping: New names by old ones; two columns may change names with each other.

    Raises:
        KeyError: There is no such column.
        ValueError: A new name is taken.
    """
    select_columns(ds, list(column_mapping))
    named: dict[str, Column] = {}
    for old, column in ds.columns.items():
        name = column_mapping.get(old, old)
        if name in named or (name != old and name in ds.columns and name not in column_mapping):
            raise ValueError(f"column {name!r} is there already; remove it first")
        named[name] = column
    return ds.of_columns(named, ds.format.renamed(column_mapping))


def add_column(
    ds: "Dataset",
    name: str,
    column: Any,  # noqa: ANN401 - whatever a caller has
    *,
    feature: DType | str | None = None,
) -> "Dataset":
    """Return the dataset with one more column of as many values.

    Args:
        ds: The dataset.
        name: Its name.
        column: A list, array, ``Ragged`` or ``Column``.
        feature: Its type; default what holds the values.

    Raises:
        ValueError: The name is taken, or the length differs.
    """
    if name in ds.columns:
        raise ValueError(f"column {name!r} is there already; remove it first")
    found = column if isinstance(column, Column) else Column.of(build(column, field=name))
    if ds.columns and len(found) != len(ds):
        raise ValueError(f"column {name!r} has {len(found)} values for {len(ds)} rows")
    if feature is not None:
        found = found.converted(_dtype(feature), field=name)
    return ds.of_columns({**ds.columns, name: found})


def cast(ds: "Dataset", features: Features) -> "Dataset":
    """Return the columns in other types, in memory where the type changes.

    Raises:
        SchemaError: A value does not fit, or the names are not those of the dataset.
    """
    asked = Schema.of(features)
    if set(asked) != set(ds.columns):
        raise SchemaError("", f"asked are {list(asked)}, there are {ds.column_names}; name all")
    return ds.of_columns({n: ds[n].converted(dtype, field=n) for n, dtype in asked.items()})


def cast_column(ds: "Dataset", column: str, feature: DType | str) -> "Dataset":
    """Return the dataset with one column in another type, in memory if the type changes.

    Raises:
        KeyError: There is no such column.
        SchemaError: A value does not fit.
    """
    found = ds[column].converted(_dtype(feature), field=column)
    return ds.of_columns({**ds.columns, column: found})


def flatten(ds: "Dataset", max_depth: int = 16) -> "Dataset":
    """Return the dataset with every struct column as one column a field, ``outer.inner``.

    A null struct is a null in each of its columns. Nothing is copied but columns of structs some
    of which are null.

    Args:
        ds: The dataset.
        max_depth: Names in a column's dotted name at most.

    Raises:
        ValueError: A column has the name that a field would get.

    >>> from nanorlhf.nanosets import Dataset
    >>> Dataset.from_list([{"id": 1, "x": {"a": 2, "b": {"c": 3}}}]).flatten().to_list()
    [{'id': 1, 'x.a': 2, 'x.b.c': 3}]
    """
    named: dict[str, Column] = {}
    for name, column in ds.columns.items():
        for path, leaf in _leaves(name, column, max_depth - 1):
            if path in named or (path != name and path in ds.columns):
                raise ValueError(f"column {path!r} is there already; rename it first")
            named[path] = leaf
    return ds.of_columns(named)


def names_of(names: str | Sequence[str] | None) -> list[str]:
    """Return one name, several or none as a list."""
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def _dtype(feature: DType | str) -> DType:
    return parse(feature) if isinstance(feature, str) else feature


def _leaves(name: str, column: Column, depth: int) -> Iterator[tuple[str, Column]]:
    if depth < 1 or not isinstance(column.dtype, Struct):
        yield name, column
        return
    for field in column.dtype.fields:
        parts = [_field_of(part, field.name) for part in column.parts]
        inner = Column(field.dtype, parts, column.rows)
        yield from _leaves(f"{name}.{field.name}", inner, depth - 1)


def _field_of(part: Part, field: str) -> Part:
    if len(part.chunk_rows) == 1:
        return FieldPart(part, field)
    array = part.array
    assert isinstance(array, Structs)
    if array.valid is None:
        return FieldPart(part, field)
    return MemoryPart(_masked(array.take(*part.locate(np.arange(part.length))), field))


def _masked(parent: Structs, field: str) -> Array:
    """Return a field of an array of our own, null where the struct is."""
    child, mask = parent.children[field], parent.validity()
    if mask is not None:
        inner = child.validity()
        child.valid = Bits.unless_all(mask if inner is None else mask & inner)
    return child


class FieldPart(Part):
    """One field of a part of structs, which is one chunk or has no null struct."""

    def __init__(self, part: Part, field: str) -> None:
        self.part = part
        self.field = field
        self.chunk_rows = part.chunk_rows
        self.length = part.length
        self._last: tuple[Structs, Array] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return FieldPart, (self.part, self.field)

    @property
    def array(self) -> Array:
        """The field's array over all chunks."""
        whole = self.part.array
        assert isinstance(whole, Structs)
        if whole.valid is None:
            return whole.children[self.field]
        # A chunk that is read, not mapped, may come out as another array each time.
        if self._last is None or self._last[0] is not whole:
            self._last = whole, _masked(whole.take(0, np.arange(whole.length)), self.field)
        return self._last[1]

    @property
    def source(self) -> str:
        """Where the structs are."""
        return self.part.source
