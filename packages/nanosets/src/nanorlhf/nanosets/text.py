"""JSON lines, JSON arrays and CSV into columns and out, block by block, errors with line and field.

Types are those of all rows; with ``features`` they are asked for, and dates, times and bytes are
read from the strings that they were written as (see ``literals``).
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

from .arrays import Array
from .blocks import blocks
from .build import build, first_bad, struct, table
from .cells import TYPES, Kind, as_cell, cell_parser, join, kind_of
from .convert import convert, merge
from .errors import SchemaError
from .literals import as_json, json_parser
from .nested import Structs
from .replace import Target, replacing_text
from .types import DType, Features, Schema, Struct, unify

if TYPE_CHECKING:
    from .dataset import Dataset

BLOCK_LINES = 8192
"""Rows that are Python objects at one time."""
MAX_CELL = 2**31 - 1
"""Characters of a CSV cell; the ``csv`` module stops at 131,072 unless told."""


class Line(NamedTuple):
    """One row and where it stands."""

    number: int
    row: Any


def read_jsonl(path: str | Path, *, features: Features | None = None) -> Structs:
    """Return the objects of a JSON-lines file as one struct array; blank lines are skipped.

    Raises:
        SchemaError: A line is not a JSON object, or a value does not fit the column; the message
            starts with ``path:line``.
    """
    return _whole(jsonl_blocks(path, features=features), features)


def jsonl_blocks(path: str | Path, *, features: Features | None = None) -> Iterator[Structs]:
    """Yield a JSON-lines file some rows at a time; without ``features`` the types may grow."""
    return _tables(path, _json_lines(path), features)


def read_json(path: str | Path, *, features: Features | None = None) -> Structs:
    """Return a JSON array of objects, or JSON lines under that name, as one struct array.

    Raises:
        SchemaError: As ``read_jsonl``; in an array the number is that of the element.
    """
    with open(path, encoding="utf-8-sig") as handle:
        first = next((c for c in iter(lambda: handle.read(1), "") if not c.isspace()), "")
    if first != "[":
        return read_jsonl(path, features=features)
    with open(path, encoding="utf-8-sig") as handle:
        try:
            rows = json.load(handle)
        except (ValueError, RecursionError) as error:
            raise SchemaError(str(path), f"not JSON: {error}; mend the file") from None
    lines = (_as_line(path, i, row) for i, row in enumerate(rows, 1))
    return _whole(_tables(path, lines, features), features)


def read_csv(
    path: str | Path, *, features: Features | None = None, delimiter: str = ","
) -> Structs:
    """Return a CSV file, names of columns in its first line, as one struct array.

    Args:
        path: The file, UTF-8.
        features: Types of all columns. Without them a column is int64, float64, bool or utf8,
            whatever all of its cells are; an empty cell is a null.
        delimiter: One character.

    Raises:
        SchemaError: A line has too many or too few cells, or a cell does not fit the asked type;
            the message starts with ``path:line``.
    """
    return _whole(csv_blocks(path, features=features, delimiter=delimiter), features)


def csv_blocks(
    path: str | Path, *, features: Features | None = None, delimiter: str = ","
) -> Iterator[Structs]:
    """Yield a CSV file some rows at a time; reads it twice without ``features``."""
    names = _names(path, delimiter)
    types = Schema.of(features) if features is not None else _inferred(path, names, delimiter)
    if list(types) != names:
        rule = f"the file has the columns {names}, asked are {list(types)}; name these, in order"
        raise SchemaError(str(path), rule)
    for block in _csv_lines(path, names, delimiter):
        yield _cells_table(path, block, types)


def write_jsonl(ds: "Dataset", target: Target) -> None:
    """Write the rows as JSON lines, a file replaced as a whole."""
    with replacing_text(target) as handle:
        handle.writelines(f"{as_json(row)}\n" for row in _rows(ds))


def write_json(ds: "Dataset", target: Target) -> None:
    """Write the rows as one JSON array, a file replaced as a whole."""
    with replacing_text(target) as handle:
        handle.write("[")
        for number, row in enumerate(_rows(ds)):
            handle.write(f"{',' if number else ''}\n{as_json(row)}")
        handle.write("\n]\n")


def write_csv(ds: "Dataset", target: Target) -> None:
    """Write the rows as CSV under a line of names, a file replaced as a whole."""
    with replacing_text(target) as handle:
        writer = csv.writer(handle)
        writer.writerow(ds.column_names)
        writer.writerows([as_cell(value) for value in row.values()] for row in _rows(ds))


def _rows(ds: "Dataset") -> Iterator[dict[str, Any]]:
    for block in blocks(ds.columns):
        for start in range(0, block.length, BLOCK_LINES):
            yield from block.window(0, start, min(start + BLOCK_LINES, block.length)).pylist()


def _whole(found: Iterable[Structs], features: Features | None) -> Structs:
    tables = list(found)
    asked = Struct(()) if features is None else Schema.of(features).struct
    return merge(tables) if tables else cast(Structs, convert(table([]), asked))


def _json_lines(path: str | Path) -> Iterator[Line]:
    with open(path, "rb") as handle:
        for number, raw in enumerate(handle, 1):
            text = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise SchemaError(f"{path}:{number}", f"not JSON: {error}; mend the line") from None
            yield _as_line(path, number, row)


def _as_line(path: str | Path, number: int, row: object) -> Line:
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise SchemaError(
            f"{path}:{number}", f"a row is a JSON object, not a {kind}; wrap it in one"
        )
    return Line(number, row)


def _tables(
    path: str | Path, lines: Iterator[Line], features: Features | None
) -> Iterator[Structs]:
    asked = None if features is None else Schema.of(features).struct
    wide = asked or Struct(())
    for block in _batched(_parsed(path, lines, asked)):
        try:
            some = table([line.row for line in block])
            some = cast(Structs, convert(some, asked)) if asked else some
            wide = cast(Struct, unify(wide, some.dtype))
        except SchemaError as error:
            _refuse(path, block, wide, error, asked)
        yield some


def _parsed(path: str | Path, lines: Iterator[Line], asked: Struct | None) -> Iterator[Line]:
    """Yield lines with the strings that stand for values of the asked types as those."""
    parse = None if asked is None else json_parser(asked)
    for line in lines:
        try:
            yield line if parse is None else Line(line.number, parse(line.row))
        except SchemaError as error:
            raise _at(path, line.number, error) from None


def _refuse(
    path: str | Path, block: list[Line], wide: Struct, error: SchemaError, asked: Struct | None
) -> NoReturn:
    """Raise the error with the line of the row that it comes from."""

    def attempt(rows: Sequence[Any]) -> object:
        some = table(rows)
        return convert(some, asked) if asked else unify(wide, some.dtype)

    row = error.row
    if row is None:
        row = first_bad([line.row for line in block], attempt)
    raise _at(path, block[row].number, error) from None


def _at(path: str | Path, number: int, error: SchemaError) -> SchemaError:
    return SchemaError(f"{path}:{number}: field {error.field}", error.problem)


def _batched(lines: Iterator[Line]) -> Iterator[list[Line]]:
    while block := list(islice(lines, BLOCK_LINES)):
        yield block


@contextmanager
def _reader(path: str | Path, delimiter: str) -> Iterator[Iterator[Line]]:
    """Give the lines of a CSV file that are not blank."""
    limit = csv.field_size_limit(MAX_CELL)
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            yield _numbered(path, csv.reader(handle, delimiter=delimiter, strict=True))
    finally:
        csv.field_size_limit(limit)


def _numbered(path: str | Path, reader: Any) -> Iterator[Line]:  # noqa: ANN401 - csv's own type
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except (csv.Error, UnicodeDecodeError) as error:
            raise SchemaError(f"{path}:{number}", f"not CSV: {error}; mend the line") from None
        if cells:
            yield Line(number, cells)


def _names(path: str | Path, delimiter: str) -> list[str]:
    with _reader(path, delimiter) as lines:
        names: list[str] = next(lines, Line(1, [])).row
    if len(set(names)) < len(names):
        raise SchemaError(f"{path}:1", f"a name stands twice in {names}; rename one column")
    return names


def _csv_lines(path: str | Path, names: Sequence[str], delimiter: str) -> Iterator[list[Line]]:
    with _reader(path, delimiter) as lines:
        next(lines, None)
        for block in _batched(lines):
            for number, cells in block:
                if len(cells) != len(names):
                    rule = f"{len(cells)} cells in a file of {len(names)} columns; mend the line"
                    raise SchemaError(f"{path}:{number}", rule)
            yield block


def _inferred(path: str | Path, names: Sequence[str], delimiter: str) -> Schema:
    kinds: list[Kind] = ["null"] * len(names)
    for block in _csv_lines(path, names, delimiter):
        columns = zip(*(line.row for line in block), strict=True)
        kinds = [join(a, kind_of(cells)) for a, cells in zip(kinds, columns, strict=True)]
    return Schema.of({name: TYPES[kind] for name, kind in zip(names, kinds, strict=True)})


def _cells_table(path: str | Path, block: list[Line], types: Mapping[str, DType]) -> Structs:
    columns = zip(*(line.row for line in block), strict=True)
    pairs = zip(types.items(), columns, strict=True)
    children = {n: _cells_column(path, block, n, dtype, cells) for (n, dtype), cells in pairs}
    return struct(children, length=len(block))


def _cells_column(
    path: str | Path, block: list[Line], name: str, dtype: DType, cells: Sequence[str]
) -> Array:
    """Return one column of a block; an error names the first line that does not fit."""
    parse = cell_parser(dtype)

    def column(some: Sequence[str]) -> Array:
        try:
            values = [parse(cell) if cell else None for cell in some]
        except (ValueError, TypeError) as error:
            raise SchemaError(name, f"no {dtype}: {error}; mend the cell") from None
        return convert(build(values, field=name), dtype, field=name)

    try:
        return column(cells)
    except SchemaError as error:
        raise _at(path, block[first_bad(cells, column)].number, error) from None
