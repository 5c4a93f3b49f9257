"""Datasets from files, and several datasets as one."""

import os
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np

from .column import Column, MemoryPart, Part
from .convert import all_null
from .dataset import Dataset
from .errors import SchemaError
from .gather import Ints
from .types import DType, Features, Null, unify_all

SUFFIXES = (".nano", ".jsonl", ".json")


def load_dataset(
    path: str | Path | Sequence[str | Path],
    *,
    features: Features | None = None,
    verify: bool = False,
) -> Dataset:
    """Return the rows of ``.nano``, ``.jsonl`` and ``.json`` files, one file after another.

    ``.nano`` files are mapped, not read; the others are read into memory.

    Args:
        path: A file, a glob pattern, a directory (its ``.nano`` files), or a list of these;
            matches are taken in the order of their names.
        features: Types to convert to.
        verify: Compare the checksums of ``.nano`` data first.

    Raises:
        CorruptFileError: A ``.nano`` file is damaged.
        FileNotFoundError: Nothing is there.
        SchemaError: A value of a JSON file has no type, or the files have no common columns.
        ValueError: A file has none of the suffixes.
    """
    given = [path] if isinstance(path, str | os.PathLike) else list(path)
    paths = [found for one in given for found in _matches(Path(one))]
    if not paths:
        raise FileNotFoundError(f"path={path!r} names no file; give at least one")
    return concatenate_datasets([_load(one, features, verify=verify) for one in paths])


def load_from_disk(dataset_path: str | Path, *, verify: bool = False) -> Dataset:
    """Return what ``save_to_disk`` wrote, mapped into memory.

    Raises:
        CorruptFileError: The file is damaged.
        OSError: It cannot be opened.
    """
    return Dataset.from_file(dataset_path, verify=verify)


def concatenate_datasets(dsets: Sequence[Dataset]) -> Dataset:
    """Return the rows of all datasets, one dataset after another; no data is copied.

    A column that one of them lacks is null there. Numbers of different width are widened, which
    copies the narrow ones into memory.

    Raises:
        SchemaError: A column has types that no one type holds.
        ValueError: There is no dataset.
    """
    if not dsets:
        raise ValueError("dsets=[] holds no dataset; give at least one")
    if len(dsets) == 1:
        return dsets[0]
    wide = unify_all(ds.schema.struct for ds in dsets)
    shared: dict[tuple[Any, ...], Ints] = {}
    return Dataset({f.name: _concatenated(f.name, f.dtype, dsets, shared) for f in wide.fields})


def _matches(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(path.glob("*.nano"))
        if not found:
            raise FileNotFoundError(f"the directory {path} holds no .nano file; name a file")
        return found
    if path.exists():
        return [path]
    found = sorted(map(Path, glob(str(path)))) if has_magic(str(path)) else []
    if not found:
        raise FileNotFoundError(f"{path} names no file; check the path or pattern")
    return found


def _load(path: Path, features: Features | None, *, verify: bool) -> Dataset:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} ends in none of {', '.join(SUFFIXES)}; rename or convert it")
    if path.suffix == ".jsonl":
        return Dataset.from_jsonl(path, features=features)
    if path.suffix == ".json":
        return Dataset.from_json(path, features=features)
    found = Dataset.from_file(path, verify=verify)
    return found if features is None else found.cast(features)


def _concatenated(
    name: str, dtype: DType, dsets: Sequence[Dataset], shared: dict[tuple[Any, ...], Ints]
) -> Column:
    columns = [_as(ds.columns.get(name), dtype, name, len(ds)) for ds in dsets]
    parts: list[Part] = [part for column in columns for part in column.parts]
    if all(column.rows is None for column in columns):
        return Column(dtype, parts)
    sizes = [sum(int(part.chunk_rows.sum()) for part in column.parts) for column in columns]
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
