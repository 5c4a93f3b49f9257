"""Cells of CSV files: what type a column of them has, and values into cells and back.

An empty cell is a null, so an empty string comes back as a null. A list, struct or tensor is a
cell with its JSON.
"""

import json
import re
from collections.abc import Iterable
from datetime import date
from typing import Literal

import numpy as np

from .literals import Parser, as_json, json_parser, plain
from .types import Bool, Dictionary, DType, Null, Number, Utf8

INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
"""An int; digits behind a leading zero are a code, not a number."""
NUMBER = re.compile(
    r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(nan|inf)", re.I
)
BOOLS = {"true": True, "false": False}
INT64 = range(-(2**63), 2**63)
EXACT = range(-(2**53), 2**53 + 1)
"""Ints that float64 holds without gaps."""

Kind = Literal["null", "bool", "exact", "int", "float", "text"]
"""What the cells of a column are seen to be; ``exact`` are ints that may stand among floats."""
TYPES: dict[Kind, DType] = {
    "null": Null(),
    "bool": Bool(),
    "exact": Number("int64"),
    "int": Number("int64"),
    "float": Number("float64"),
    "text": Utf8(),
}


def kind_of(cells: Iterable[str]) -> Kind:
    """Return what the cells are.

    >>> kind_of(["1", "", "2"]), kind_of(["1", "0.5"]), kind_of(["007"]), kind_of(["True", "false"])
    ('exact', 'float', 'text', 'bool')
    """
    full = [cell for cell in cells if cell]
    if not full:
        return "null"
    ints = [int(cell) for cell in full if len(cell) < 21 and INTEGER.fullmatch(cell)]
    is_exact = all(value in EXACT for value in ints)
    if len(ints) == len(full):
        return "exact" if is_exact else "int" if all(v in INT64 for v in ints) else "text"
    if all(cell.lower() in BOOLS for cell in full):
        return "bool"
    if is_exact and all(map(NUMBER.fullmatch, full)):
        return "float"
    return "text"


def join(a: Kind, b: Kind) -> Kind:
    """Return what cells of both kinds are together."""
    if a == b or b == "null":
        return a
    if a == "null":
        return b
    both = {a, b}
    return "int" if both == {"exact", "int"} else "float" if both == {"exact", "float"} else "text"


def as_cell(value: object) -> object:
    """Return a value as the ``csv`` module is to write it."""
    if isinstance(value, dict | list | np.ndarray):
        return as_json(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return plain(value) if isinstance(value, date | bytes | np.generic) else value


def cell_parser(dtype: DType) -> Parser:
    """Return what makes a value of a type from a cell that is not empty; a ValueError if not."""
    if isinstance(dtype, Dictionary):
        return cell_parser(dtype.value)
    if isinstance(dtype, Utf8):
        return str
    if isinstance(dtype, Bool):
        return _bool
    if isinstance(dtype, Number):
        return float if dtype.is_bfloat16 or dtype.numpy.kind == "f" else int
    from_json = json_parser(dtype)
    if not dtype.children:
        return from_json or _nothing
    return lambda cell: from_json(json.loads(cell)) if from_json else json.loads(cell)


def _bool(cell: str) -> bool:
    if cell.lower() not in BOOLS:
        raise ValueError(f"{cell!r} is neither true nor false")
    return BOOLS[cell.lower()]


def _nothing(cell: str) -> None:
    raise ValueError(f"{cell!r} stands in a column of nulls")
