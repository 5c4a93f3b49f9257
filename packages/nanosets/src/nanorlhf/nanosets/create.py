"""Datasets of values, of files, and of the tables of other libraries."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .build import columns, table
from .chunks import MemoryPart
from .column import Column
from .convert import all_null, concat, convert, merge
from .nested import Structs
from .owned import owned_row
from .reader import File
from .source import IO
from .text import read_csv, read_json, read_jsonl
from .types import Features, Schema
from .writer import Writer

if TYPE_CHECKING:
    from .dataset import Dataset

Paths = str | Path | Sequence[str | Path]
TABLE_ROWS = 1024
"""Rows of a generator that are turned into columns together."""


def from_list(
    cls: "type[Dataset]", mapping: Sequence[Mapping[str, Any]], *, features: Features | None = None
) -> "Dataset":
    """Return rows as a dataset; types and keys are read off all rows.

    Args:
        cls: The class.
        mapping: The rows, one mapping each; a missing key is a null.
        features: Types to convert to, e.g. ``{"tokens": "list<int32>"}``; then other keys are an
            error.

    Raises:
        SchemaError: A value has no type, or does not fit; names row and field.
    """
    return _of(cls, table(mapping), features)


def from_dict(
    cls: "type[Dataset]", mapping: Mapping[str, Any], *, features: Features | None = None
) -> "Dataset":
    """Return named columns (lists, arrays, ``Ragged``) as a dataset; arrays are not copied.

    Raises:
        SchemaError: As ``from_list``, or the lengths differ.
    """
    return _of(cls, columns({name: _values(column) for name, column in mapping.items()}), features)


def from_generator(
    cls: "type[Dataset]",
    generator: Callable[..., Iterable[Mapping[str, Any]]],
    *,
    features: Features | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
) -> "Dataset":
    """Return the rows that ``generator(**gen_kwargs)`` yields.

    Args:
        cls: The class.
        generator: Called once.
        features: Types to convert to; default what holds all values.
        gen_kwargs: Its keywords.
        output: Write the rows to this ``.nano`` file as they come, and return that; else they lie
            in memory.

    Raises:
        SchemaError: As ``from_list``.
    """
    made = iter(generator(**(gen_kwargs or {})))
    if output is not None:
        with Writer(output, features=features) as writer:
            writer.write_rows(made)
        return from_file(cls, output)
    found = [table(rows) for rows in _some_at_a_time(map(owned_row, made))]
    return _of(cls, merge(found) if found else table([]), features)


def from_jsonl(
    cls: "type[Dataset]", path_or_paths: Paths, *, features: Features | None = None
) -> "Dataset":
    """Return JSON-lines files, one or several, as a dataset in memory.

    Raises:
        SchemaError: Names the line and the field.
    """
    return _of_files(cls, path_or_paths, lambda path: read_jsonl(path, features=features))


def from_json(
    cls: "type[Dataset]", path_or_paths: Paths, *, features: Features | None = None
) -> "Dataset":
    """Return files of JSON lines, or of an array of objects each, as a dataset in memory."""
    return _of_files(cls, path_or_paths, lambda path: read_json(path, features=features))


def from_csv(
    cls: "type[Dataset]", path_or_paths: Paths, *, features: Features | None = None
) -> "Dataset":
    """Return CSV files, names of columns in their first lines, as a dataset in memory.

    Raises:
        SchemaError: Names the line and the field.
    """
    return _of_files(cls, path_or_paths, lambda path: read_csv(path, features=features))


def from_parquet(
    cls: "type[Dataset]",
    path_or_paths: Paths,
    *,
    columns: Sequence[str] | None = None,
    features: Features | None = None,
) -> "Dataset":
    """Return Parquet files, or some of their columns, as a dataset in memory.

    Raises:
        ImportError: Neither pyarrow nor polars is installed.
        SchemaError: A column has a type that is none of ours, or not the asked one.
    """
    from .tables import read_parquet

    def read(path: str | Path) -> Structs:
        schema, found = read_parquet(path, columns=columns)
        return cast(Structs, concat(list(found) or [all_null(schema.struct, 0)]))

    return _of_files(cls, path_or_paths, read, features)


def from_arrow(cls: "type[Dataset]", table: Any) -> "Dataset":  # noqa: ANN401 - any library's table
    """Return a table of pyarrow, polars or any library with ``__arrow_c_stream__``.

    It is not copied: its memory stays in use while the dataset does.

    Raises:
        SchemaError: It is no table, or a column has a type that is none of ours.
        TypeError: It has no Arrow methods.
    """
    from .arrow import import_stream

    schema, found = import_stream(table)
    pieces = [piece.children for piece in found]
    pieces = pieces or [{name: all_null(dtype, 0) for name, dtype in schema.items()}]
    parts = {name: [MemoryPart(piece[name]) for piece in pieces] for name in schema}
    return cls({name: Column(dtype, parts[name]) for name, dtype in schema.items()})


def from_file(
    cls: "type[Dataset]", filename: str | Path, *, verify: bool = False, io: IO = "mmap"
) -> "Dataset":
    """Return a ``.nano`` file, mapped into memory.

    Args:
        cls: The class.
        filename: The file.
        verify: Compare the checksums of all data first.
        io: How to read it: "mmap", "pread" as needed, or all of it into "ram".

    Raises:
        CorruptFileError: The file is damaged.
    """
    file = File(filename, verify=verify, io=io)
    return cls({name: Column.of_file(file, name) for name in file.schema})


def _of_files(
    cls: "type[Dataset]",
    given: Paths,
    read: Callable[[str | Path], Structs],
    features: Features | None = None,
) -> "Dataset":
    """Return files in one piece, which random rows come out of faster than out of many."""
    paths = [given] if isinstance(given, str | os.PathLike) else list(given)
    if not paths:
        raise ValueError("path_or_paths=[] names no file; give at least one")
    return _of(cls, merge([read(path) for path in paths]), features)


def _of(cls: "type[Dataset]", found: Structs, features: Features | None) -> "Dataset":
    if features is not None:
        found = cast(Structs, convert(found, Schema.of(features).struct))
    return cls({name: Column.of(child) for name, child in found.children.items()})


def _values(column: Any) -> Any:  # noqa: ANN401 - whatever a caller has
    return column.block(0, len(column)) if isinstance(column, Column) else column


def _some_at_a_time(made: Iterator[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    while rows := list(islice(made, TABLE_ROWS)):
        yield rows
