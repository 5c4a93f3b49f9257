"""JSON lines and JSON arrays into columns, block by block, errors with line and field."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

from .build import first_bad, table
from .convert import convert, merge
from .errors import SchemaError
from .nested import Structs
from .types import Features, Schema, Struct, unify

BLOCK_LINES = 8192
"""Rows that are Python objects at one time."""


class Line(NamedTuple):
    """One row and where it stands."""

    number: int
    row: Mapping[str, Any]


def read_jsonl(path: str | Path, *, features: Features | None = None) -> Structs:
    """Return the objects of a JSON-lines file as one struct array; blank lines are skipped.

    Raises:
        SchemaError: A line is not a JSON object, or a value does not fit the column; the message
            starts with ``path:line``.
    """
    return _read(path, _json_lines(path), features)


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
        except ValueError as error:
            raise SchemaError(str(path), f"not JSON: {error}; mend the file") from None
    return _read(path, (_as_line(path, i, row) for i, row in enumerate(rows, 1)), features)


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


def _read(path: str | Path, lines: Iterator[Line], features: Features | None) -> Structs:
    asked = None if features is None else Schema.of(features).struct
    wide, found = asked or Struct(()), list[Structs]()
    for block in _blocks(lines):
        rows = [line.row for line in block]
        try:
            some = table(rows)
            some = cast(Structs, convert(some, asked)) if asked else some
            wide = cast(Struct, unify(wide, some.dtype))
        except SchemaError as error:
            _refuse(path, block, wide, error, asked)
        found.append(some)
    if not found:
        return cast(Structs, convert(table([]), wide))
    return merge(found)


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
    where = f"{path}:{block[row].number}: field {error.field}"
    raise SchemaError(where, error.problem) from None


def _blocks(lines: Iterator[Line]) -> Iterator[list[Line]]:
    block: list[Line] = []
    for line in lines:
        block.append(line)
        if len(block) == BLOCK_LINES:
            yield block
            block = []
    if block:
        yield block
