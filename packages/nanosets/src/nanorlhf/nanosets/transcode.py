"""A dataset file of one kind into one of another kind, or into a tidier one of its own."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .arrow import Table
from .checksum import Checksum
from .dataset import Dataset
from .load import SUFFIXES, load_dataset
from .nested import Structs
from .progress import counting
from .reader import File
from .reference import is_reference, read_reference
from .replace import Target
from .tables import read_ipc, read_parquet, write_ipc, write_parquet
from .text import csv_blocks, jsonl_blocks, read_json, write_csv, write_json, write_jsonl
from .types import Features, Schema
from .writer import Writer, tables
from .zstd import Compression

WRITERS: dict[str, Callable[[Dataset, Target], None]] = {
    ".jsonl": write_jsonl,
    ".json": write_json,
    ".csv": write_csv,
    ".parquet": write_parquet,
    ".arrow": write_ipc,
}


class _Rows(NamedTuple):
    """Rows of a file, some at a time; and their types, unless those show by the last row only."""

    features: Features | None
    blocks: Iterable[Structs]


def transcode(
    source: str | Path,
    target: str | Path,
    *,
    features: Features | None = None,
    checksum: Checksum | Literal["auto"] = "auto",
    compression: Compression | None = None,
) -> int:
    """Write the rows of one file into another, whose suffix says its kind; return how many.

    Into ``.nano`` and out of it rows pass some at a time, so that a file may be larger than memory
    (but a JSON array may not); between two other kinds they are held in memory.

    Args:
        source: A file that ``load_dataset`` reads, or one of the reference (see ``reference``).
        target: The file to write; replaced as a whole.
        features: Types to convert to.
        checksum: Of the buffers of a ``.nano`` file; see ``Writer``.
        compression: Of the buffers of a ``.nano`` file; see ``Writer``.

    Raises:
        CorruptFileError: The source is damaged.
        SchemaError: A value fits no type, or not the asked one.
        ValueError: A suffix is unknown.
    """
    source, target = Path(source), Path(target)
    for path in (source, target):
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path} ends in none of {', '.join(SUFFIXES)}; rename it")
    if target.suffix != ".nano":
        ds = load_dataset(source, features=features)
        WRITERS[target.suffix](ds, target)
        return len(ds)
    asked, blocks = _rows(source, features)
    return _write(target, blocks, features=asked, checksum=checksum, compression=compression)


def compact(path: str | Path) -> int:
    """Write a ``.nano`` file anew as it is, without what appends left of its older ends.

    Chunks of a few rows become chunks of many. Whoever has the file open still reads the old one.

    Returns:
        How many bytes the file is shorter.

    Raises:
        CorruptFileError: The file is damaged.
    """
    file, before = File(path, verify=True), os.path.getsize(path)
    footer = file.footer
    _write(
        path,
        tables(file),
        features=footer.schema,
        checksum=footer.checksum,
        compression=footer.compression,
        metadata=footer.metadata,
    )
    return before - os.path.getsize(path)


def _write(target: str | Path, blocks: Iterable[Structs], **options: Any) -> int:
    with Writer(target, **options) as writer, counting(None, "write") as done:
        for block in blocks:
            writer.write_table(block)
            done(block.length)
    return writer.rows


def _rows(source: Path, features: Features | None) -> _Rows:
    if source.suffix == ".jsonl":
        return _Rows(features, jsonl_blocks(source, features=features))
    if source.suffix == ".csv":
        return _Rows(features, csv_blocks(source, features=features))
    if source.suffix == ".json":
        whole = read_json(source, features=features)
        return _Rows(Schema(whole.dtype), [whole])
    if source.suffix == ".nano" and not is_reference(source):
        ds = Dataset.from_file(source)
        return _Rows(features or ds.schema, ds.blocks())
    readers: dict[str, Callable[[Path], Table]] = {".parquet": read_parquet, ".arrow": read_ipc}
    table = readers.get(source.suffix, read_reference)(source)
    return _Rows(features or table.schema, table.blocks)
