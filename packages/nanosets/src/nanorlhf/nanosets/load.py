"""Datasets from files of any kind, and from tables of other libraries."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from glob import escape, glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple, overload

from .arrow import Table
from .column import Column
from .concat import concatenate_datasets
from .convert import all_null, concat
from .dataset import Dataset
from .dataset_dict import SPLITS_FILE, DatasetDict
from .nested import Structs
from .source import IO
from .tables import read_ipc, read_parquet
from .text import read_csv, read_json, read_jsonl
from .types import Features, Schema

TEXT: dict[str, Callable[..., Structs]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
}
TABLES: dict[str, Callable[..., Table]] = {".parquet": read_parquet, ".arrow": read_ipc}
SUFFIXES = (".nano", *TEXT, *TABLES)
KINDS = {"json": ".json", **{suffix[1:]: suffix for suffix in (".nano", ".csv", *TABLES)}}
"""What ``load_dataset(kind, data_files=...)`` calls the kinds of files."""
SPLIT = re.compile(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")
"""A split, or some of its rows: ``train``, ``train[:100]``, ``train[10%:20%]``."""


class Split(NamedTuple):
    """A split's name, and which of its rows: counts from either end, or per cent; None for all."""

    name: str
    start: str | None
    stop: str | None


Paths = str | Path | Sequence[str | Path]


@overload
def load_dataset(
    path: Mapping[str, Paths],
    *,
    features: Features | None = None,
    verify: bool = False,
    io: IO = "mmap",
    split: None = None,
) -> DatasetDict: ...


@overload
def load_dataset(
    path: str,
    *,
    data_files: Paths | Mapping[str, Paths],
    features: Features | None = None,
    verify: bool = False,
    io: IO = "mmap",
    split: None = None,
) -> DatasetDict: ...


@overload
def load_dataset(
    path: Any,  # noqa: ANN401 - any library's table
    *,
    data_files: Paths | Mapping[str, Paths] | None = None,
    features: Features | None = None,
    verify: bool = False,
    io: IO = "mmap",
    split: str,
) -> Dataset: ...


@overload
def load_dataset(
    path: Any,  # noqa: ANN401 - any library's table
    *,
    features: Features | None = None,
    verify: bool = False,
    io: IO = "mmap",
    split: None = None,
) -> Dataset: ...


def load_dataset(
    path: Any,
    *,
    data_files: Paths | Mapping[str, Paths] | None = None,
    features: Features | None = None,
    verify: bool = False,
    io: IO = "mmap",
    split: str | None = None,
) -> Dataset | DatasetDict:
    """Return the rows of files, one file after another, or of another library's table.

    ``.nano`` files are mapped, not read; ``.jsonl``, ``.json``, ``.csv``, ``.parquet`` and
    ``.arrow`` are read into memory.

    Args:
        path: A file, a glob pattern, a directory (its files of one kind, ``.nano`` before others),
            or a list of these, matches taken in the order of their names. Or a mapping from split
            to these. Or any object with ``__arrow_c_stream__``, which is not copied.
        data_files: Files of the kind that ``path`` then is, one of json (JSON lines too), csv,
            parquet, arrow and nano, whatever their names end in; a mapping from split to files, or
            files that are ``train``.
        features: Types to convert to.
        verify: Compare the checksums of ``.nano`` data first.
        io: How to read ``.nano`` files: "mmap", "pread" as needed, or all of it into "ram".
        split: One split of several; or rows of it, such as ``train[:100]`` or ``train[10%:20%]``.
            A dataset without splits is all ``train``.

    Raises:
        CorruptFileError: A ``.nano`` file is damaged.
        FileNotFoundError: Nothing is there.
        SchemaError: A value of a text file has no type, or the files have no common columns.
        ValueError: A file has none of the suffixes, or there is no such kind or split.
    """
    suffix = None
    if data_files is not None:
        if path not in KINDS:
            raise ValueError(f"path={path!r} is no kind of data_files; use one of {list(KINDS)}")
        suffix = KINDS[path]
        path = data_files if isinstance(data_files, Mapping) else {"train": data_files}

    def load(given: Any) -> Dataset:  # noqa: ANN401
        return _load(given, features, verify=verify, io=io, suffix=suffix)

    if split is None:
        is_split = isinstance(path, Mapping)
        return DatasetDict({n: load(p) for n, p in path.items()}) if is_split else load(path)
    wanted = parse_split(split, _names(path))
    return rows_of(load(path[wanted.name] if isinstance(path, Mapping) else path), wanted)


def load_from_disk(
    dataset_path: str | Path, *, verify: bool = False, io: IO = "mmap"
) -> Dataset | DatasetDict:
    """Return what ``save_to_disk`` of a dataset, or of a dictionary of splits, wrote.

    Args:
        dataset_path: The file, or the directory of splits.
        verify: Compare the checksums of all data first.
        io: How to read it: "mmap", "pread" as needed, or all of it into "ram".

    Raises:
        CorruptFileError: The file is damaged.
        OSError: It cannot be opened.
    """
    if os.path.isdir(dataset_path):
        return DatasetDict.load_from_disk(dataset_path, verify=verify, io=io)
    return Dataset.from_file(dataset_path, verify=verify, io=io)


def parse_split(text: str, names: Sequence[str]) -> Split:
    """Return the split, of those there are, that ``split=`` asks for.

    Raises:
        ValueError: It asks for none.

    >>> parse_split("train[10%:]", ["train"])
    Split(name='train', start='10%', stop=None)
    """
    found = SPLIT.fullmatch(text)
    if found is None or found[1] not in names:
        raise ValueError(f"split={text!r} is none of {list(names)}; write e.g. {names[0]}[:100]")
    return Split(*found.groups())


def rows_of(ds: Dataset, split: Split) -> Dataset:
    """Return the rows of a dataset that a split asks for."""
    if split.start is None and split.stop is None:
        return ds
    bounds = (None if b is None else _row(b, len(ds)) for b in (split.start, split.stop))
    return ds.select(range(*slice(*bounds).indices(len(ds))))


def _row(bound: str, rows: int) -> int:
    return round(int(bound[:-1]) * rows / 100) if bound.endswith("%") else int(bound)


def _names(path: object) -> list[str]:
    return list(path) if isinstance(path, Mapping) else ["train"]


def _load(
    given: Any,  # noqa: ANN401
    features: Features | None,
    *,
    verify: bool,
    io: IO,
    suffix: str | None,
) -> Dataset:
    if hasattr(given, "__arrow_c_stream__") or hasattr(given, "__arrow_c_array__"):
        found = Dataset.from_arrow(given)
        return found if features is None else found.cast(features)
    paths = [given] if isinstance(given, str | os.PathLike) else list(given)
    files = [found for one in paths for found in _matches(os.fspath(one))]
    if not files:
        raise FileNotFoundError(f"path={given!r} names no file; give at least one")
    how: dict[str, Any] = {"verify": verify, "io": io}
    return concatenate_datasets(
        [_load_file(f, suffix or os.path.splitext(f)[1], features, **how) for f in files]
    )


def _matches(path: str) -> list[str]:
    if os.path.isfile(path):
        return [path]
    if os.path.isfile(os.path.join(path, SPLITS_FILE)):
        raise IsADirectoryError(f"{path} holds saved splits; use load_from_disk")
    if os.path.isdir(path):
        found = [sorted(glob(os.path.join(escape(path), f"*{suffix}"))) for suffix in SUFFIXES]
        if not any(found):
            kinds = ", ".join(SUFFIXES)
            raise FileNotFoundError(f"the directory {path} holds no file of {kinds}; name a file")
        return next(filter(None, found))
    if os.path.exists(path):
        return [path]
    matches = sorted(glob(path)) if has_magic(path) else []
    if not matches:
        raise FileNotFoundError(f"{path} names no file; check the path or pattern")
    return matches


def _load_file(
    path: str, suffix: str, features: Features | None, *, verify: bool, io: IO
) -> Dataset:
    if suffix in TEXT:
        rows = TEXT[suffix](path, features=features)
        return _in_memory(Table(Schema(rows.dtype), iter([rows])))
    if suffix == ".nano":
        found = Dataset.from_file(path, verify=verify, io=io)
    elif suffix in TABLES:
        found = _in_memory(TABLES[suffix](path))
    else:
        raise ValueError(f"{path} ends in none of {', '.join(SUFFIXES)}; rename or convert it")
    return found if features is None else found.cast(features)


def _in_memory(table: Table) -> Dataset:
    """Return a table with each column in one piece, which random rows come out of faster."""
    blocks = list(table.blocks)
    named = {}
    for name, dtype in table.schema.items():
        pieces = [block.children.pop(name) for block in blocks]
        named[name] = Column.of(concat(pieces) if pieces else all_null(dtype, 0))
    return Dataset(named)
