"""Rows of JSONL files and hub sets, each with the place it comes from, and fields checked."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from config import DataConfig, SourceConfig

DATA_VARIABLE = "NANORLHF_DATA"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Row(NamedTuple):
    """One row of a file or a hub set."""

    where: str
    """``train.jsonl:17``, for messages."""
    values: dict[str, Any]


def read_rows(source: SourceConfig, data: DataConfig, *, key: str) -> Iterator[Row]:
    """Yield the rows of ``source``, at most ``source.limit``."""
    paths = local_files(source, data, key=key)
    found = chain.from_iterable(map(jsonl_rows, paths)) if paths else hub_rows(source, key=key)
    return islice(found, source.limit)


def local_files(source: SourceConfig, data: DataConfig, *, key: str) -> list[Path]:
    """Return the JSONL files of ``source``, none for a set on the hub.

    Raises:
        ValueError: There is no such file, and the name is none of a hub set.
    """
    root = data.root or Path(os.environ.get(DATA_VARIABLE, "."))
    path = root / source.path
    if path.is_file():
        return [path]
    if path.is_dir():
        path = path / f"{source.split}*.jsonl"  # one file, or its parts in order
        if parts := sorted(path.parent.glob(path.name)):
            return parts
    elif HUB_NAME.fullmatch(source.path) and not source.path.endswith((".jsonl", ".json")):
        return []
    raise ValueError(
        f"{key}.path={source.path!r}: no file {path}; set data.root (or {DATA_VARIABLE}) to the "
        "folder that holds it, or name a set on the hub"
    )


def jsonl_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSONL file; empty lines are skipped."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON ({error.msg}, column {error.colno})") from None
            if not isinstance(values, dict):
                raise ValueError(f"{where}: wanted an object of fields, got {line.strip()[:40]}")
            yield Row(where, values)


def hub_rows(source: SourceConfig, *, key: str) -> Iterator[Row]:
    """Yield the rows of a hub set, from its cache or the network."""
    import datasets  # type: ignore[import-untyped]  # ships no types

    try:
        table = datasets.load_dataset(source.path, source.subset, split=source.split)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{key}.path={source.path!r}: neither a file here nor a set the hub gave ({reason}); "
            "set data.root to the folder that holds it"
        ) from error
    for number, values in enumerate(table):
        yield Row(f"{source.path}[{source.split}] row {number}", dict(values))


def text(row: Row, column: str, *, key: str) -> str:
    """Return the string, or the number as a string, in ``column`` of ``row``."""
    if column not in row.values:
        raise ValueError(
            f"{row.where}: field {column!r} is missing, the row has "
            f"{', '.join(row.values) or 'none'}; fix the row or set {key} to the right column"
        )
    value = row.values[column]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(
            f"{row.where}: field {column!r} is of type {type(value).__name__}; wanted a string"
        )
    return str(value)
