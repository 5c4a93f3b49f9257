"""Dataset: named columns of equal length, and the verbs on them.

The names and keywords are those of Hugging Face datasets. No verb but ``map``, ``add_column`` of
new values and ``cast`` copies data: columns are shared, and ``select``, ``shuffle``, ``filter``
and ``train_test_split`` only number rows.

One class is the public face of the package, so it is one file; half of its lines are docstrings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from .build import build, columns, table
from .column import Column, FilePart
from .convert import convert
from .errors import SchemaError
from .gather import Ints, Ragged, resolve
from .map import Job, Range, into_file, into_memory, kept_rows, mapped, transposed
from .nested import Structs
from .reader import File
from .split import split_sizes
from .text import read_json, read_jsonl
from .types import DType, Features, Field, Schema, Struct, parse
from .writer import Writer

SAVE_BYTES = 16 << 20
"""Bytes that saving an indexed dataset gathers at a time."""
FIRST_SAVE_ROWS = 256


class Dataset:
    """Rows of named, typed columns, in memory or in ``.nano`` files.

    ``ds[i]`` is a dict, ``ds[a:b]`` and ``ds[[i, j]]`` are dicts of lists, ``ds["name"]`` is a
    ``Column``. A dataset never changes: every verb returns another one.

    Args:
        named: The columns, all of one length.

    >>> ds = Dataset.from_list([{"id": 1, "tokens": [5, 6]}, {"id": 2, "tokens": None}])
    >>> ds
    Dataset({
        features: {'id': 'int64', 'tokens': 'list<int64>'},
        num_rows: 2
    })
    >>> ds[-1]
    {'id': 2, 'tokens': None}
    """

    def __init__(self, named: Mapping[str, Column]) -> None:
        lengths = {name: len(column) for name, column in named.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns differ in length: {lengths}; give each as many rows")
        self._columns = dict(named)

    @classmethod
    def from_list(
        cls, rows: Sequence[Mapping[str, Any]], *, features: Features | None = None
    ) -> "Dataset":
        """Return rows as a dataset; types and keys are read off all rows.

        Args:
            rows: Mappings; a missing key is a null.
            features: Types to convert to, e.g. ``{"tokens": "list<int32>"}``; then other keys
                are an error.

        Raises:
            SchemaError: A value has no type, or does not fit; names row and field.
        """
        return cls._of(table(rows), features)

    @classmethod
    def from_dict(
        cls, mapping: Mapping[str, Any], *, features: Features | None = None
    ) -> "Dataset":
        """Return named columns (lists, arrays, ``Ragged``) as a dataset; arrays are not copied.

        Raises:
            SchemaError: As ``from_list``, or the lengths differ.
        """
        plain = {name: _values(column) for name, column in mapping.items()}
        return cls._of(columns(plain), features)

    @classmethod
    def from_jsonl(cls, path: str | Path, *, features: Features | None = None) -> "Dataset":
        """Return a JSON-lines file as a dataset in memory.

        Raises:
            SchemaError: Names the line and the field.
        """
        return cls._of(read_jsonl(path, features=features), None)

    @classmethod
    def from_json(cls, path: str | Path, *, features: Features | None = None) -> "Dataset":
        """Return a JSON array of objects, or JSON lines, as a dataset in memory."""
        return cls._of(read_json(path, features=features), None)

    @classmethod
    def from_file(cls, path: str | Path, *, verify: bool = False) -> "Dataset":
        """Return a ``.nano`` file, mapped into memory.

        Args:
            path: The file.
            verify: Compare the checksums of all data first.

        Raises:
            CorruptFileError: The file is damaged.
        """
        file = File(path, verify=verify)
        return cls({name: Column(t, (FilePart(file, name),)) for name, t in file.schema.items()})

    @classmethod
    def _of(cls, rows: Structs, features: Features | None) -> "Dataset":
        if features is not None:
            rows = cast(Structs, convert(rows, Schema.of(features).struct))
        return cls({name: Column.of(child) for name, child in rows.children.items()})

    @property
    def schema(self) -> Schema:
        """The columns' names and types."""
        fields = (Field(name, column.dtype) for name, column in self._columns.items())
        return Schema(Struct(tuple(fields)))

    @property
    def features(self) -> Schema:
        """The schema, by the name that it has in Hugging Face datasets."""
        return self.schema

    @property
    def column_names(self) -> list[str]:
        """The columns' names."""
        return list(self._columns)

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self)

    @property
    def columns(self) -> dict[str, Column]:
        """The columns by name."""
        return dict(self._columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), ()))

    def __repr__(self) -> str:
        types = {name: str(dtype) for name, dtype in self.schema.items()}
        return f"Dataset({{\n    features: {types},\n    num_rows: {len(self)}\n}})"

    @overload
    def __getitem__(self, key: str) -> Column: ...

    @overload
    def __getitem__(self, key: Any) -> dict[str, Any]: ...  # noqa: ANN401

    def __getitem__(self, key: Any) -> Any:
        """Return a row as a dict, rows as a dict of lists, or a column.

        Raises:
            IndexError: There is no such row.
            KeyError: There is no such column.
            TypeError: The key is none of these.
        """
        if isinstance(key, str):
            return self._column(key)
        if isinstance(key, int | np.integer) and not isinstance(key, bool):
            return {name: column.item(int(key)) for name, column in self._columns.items()}
        rows = resolve(key, len(self))
        return {name: column.values(rows) for name, column in self._columns.items()}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return rows as dicts; what a PyTorch DataLoader calls for a batch."""
        return transposed(self[indices])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.iter(1024):
            yield from transposed(batch)

    def iter(self, batch_size: int, *, drop_last_batch: bool = False) -> Iterator[dict[str, Any]]:
        """Yield ``batch_size`` rows at a time as dicts of lists.

        Raises:
            ValueError: ``batch_size`` is not positive.
        """
        for start, stop in self._ranges(batch_size):
            if stop - start == batch_size or not drop_last_batch:
                yield self[start:stop]

    def _ranges(self, size: int) -> list[Range]:
        if size < 1:
            raise ValueError(f"batch_size={size} is not positive; use 1 or more")
        rows = len(self)
        return [Range(start, min(start + size, rows)) for start in range(0, rows, size)]

    def _column(self, name: str) -> Column:
        if name not in self._columns:
            raise KeyError(f"no column {name!r}; there are {self.column_names}")
        return self._columns[name]

    def to_list(self) -> list[dict[str, Any]]:
        """Return all rows."""
        return list(self)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return all columns as lists."""
        return {name: column.to_list() for name, column in self._columns.items()}

    def gather(self, name: str, indices: Any = slice(None)) -> Ragged:  # noqa: ANN401
        """Return rows of a list column packed end to end; see ``Column.gather``.

        >>> ds = Dataset.from_dict({"tokens": [[1, 2], [], [3]]})
        >>> ds.gather("tokens", [2, 0])
        Ragged(values=array([3, 1, 2]), offsets=array([0, 1, 3]))
        """
        return self._column(name).gather(indices)

    def padded(
        self,
        name: str,
        indices: Any = slice(None),  # noqa: ANN401
        *,
        pad_value: float = 0,
        length: int | None = None,
        left: bool = False,
    ) -> NDArray[Any]:
        """Return rows of a list column as a rectangle [B, L]; see ``Ragged.padded``."""
        ragged = self.gather(name, indices)
        return ragged.padded(pad_value=pad_value, length=length, left=left)

    def select(self, indices: Any) -> "Dataset":  # noqa: ANN401 - slice, range, list or array
        """Return the rows of these numbers, in this order; no data is copied.

        Raises:
            IndexError: A number is out of range.
        """
        picked = resolve(indices, len(self))
        # Columns that came together share their row numbers; keep it so.
        done: dict[int, Ints] = {}
        named = {}
        for name, column in self._columns.items():
            rows = done.get(id(column.rows))
            if rows is None:
                rows = picked if column.rows is None else column.rows[picked]
                done[id(column.rows)] = rows
            named[name] = column.select(rows)
        return Dataset(named)

    def shuffle(self, seed: int | None = None) -> "Dataset":
        """Return the rows in random order; the same order for the same seed and length."""
        return self.select(np.random.default_rng(seed).permutation(len(self)))

    def train_test_split(
        self,
        test_size: float | int | None = None,
        *,
        train_size: float | int | None = None,
        shuffle: bool = True,
        seed: int | None = None,
    ) -> dict[str, "Dataset"]:
        """Return disjoint datasets ``{"train": ..., "test": ...}``.

        Args:
            test_size: Rows (int) or part of them (float); default what ``train_size`` leaves,
                a quarter without it.
            train_size: As ``test_size``; default what ``test_size`` leaves.
            shuffle: Draw the rows at random; else the test rows are the last ones.
            seed: Of the draw.

        Raises:
            ValueError: The sizes do not fit the dataset, or leave one side empty.
        """
        sizes = split_sizes(len(self), test_size, train_size)
        order = np.arange(len(self))
        if shuffle:
            # The test rows are drawn first, as Hugging Face datasets draws them.
            order = np.random.default_rng(seed).permutation(len(self))
            order = np.concatenate([order[sizes.test :], order[: sizes.test]])
        test = order[-sizes.test :] if shuffle else order[sizes.train :][: sizes.test]
        return {"train": self.select(order[: sizes.train]), "test": self.select(test)}

    def select_columns(self, column_names: str | Sequence[str]) -> "Dataset":
        """Return these columns, in this order.

        Raises:
            KeyError: There is no such column.
        """
        return Dataset({name: self._column(name) for name in _names(column_names)})

    def remove_columns(self, column_names: str | Sequence[str]) -> "Dataset":
        """Return all columns but these.

        Raises:
            KeyError: There is no such column.
        """
        gone = _names(column_names)
        for name in gone:
            self._column(name)
        return Dataset({n: column for n, column in self._columns.items() if n not in gone})

    def rename_column(self, original_column_name: str, new_column_name: str) -> "Dataset":
        """Return the dataset with one column under another name, in its old place.

        Raises:
            KeyError: There is no such column.
            ValueError: The new name is taken.
        """
        self._column(original_column_name)
        if new_column_name in self._columns and new_column_name != original_column_name:
            raise ValueError(f"column {new_column_name!r} is there already; remove it first")
        new = {original_column_name: new_column_name}
        return Dataset({new.get(name, name): column for name, column in self._columns.items()})

    def add_column(
        self,
        name: str,
        column: Any,  # noqa: ANN401 - whatever a caller has
        *,
        feature: DType | str | None = None,
    ) -> "Dataset":
        """Return the dataset with one more column of as many values.

        Args:
            name: Its name.
            column: A list, array, ``Ragged`` or ``Column``.
            feature: Its type; default what holds the values.

        Raises:
            ValueError: The name is taken, or the length differs.
        """
        if name in self._columns:
            raise ValueError(f"column {name!r} is there already; remove it first")
        found = column if isinstance(column, Column) else Column.of(build(column, field=name))
        if self._columns and len(found) != len(self):
            raise ValueError(f"column {name!r} has {len(found)} values for {len(self)} rows")
        if feature is not None:
            dtype = parse(feature) if isinstance(feature, str) else feature
            found = found.converted(dtype, field=name)
        return Dataset({**self._columns, name: found})

    def cast(self, features: Features) -> "Dataset":
        """Return the columns in other types, in memory where the type changes.

        Raises:
            SchemaError: A value does not fit, or the names are not those of the dataset.
        """
        asked = Schema.of(features)
        if set(asked) != set(self._columns):
            raise SchemaError(
                "", f"asked are {list(asked)}, there are {self.column_names}; name all"
            )
        return Dataset({n: self._columns[n].converted(t, field=n) for n, t in asked.items()})

    def map(
        self,
        function: Callable[..., Mapping[str, Any] | None],
        *,
        with_indices: bool = False,
        batched: bool = False,
        batch_size: int = 1000,
        remove_columns: str | Sequence[str] | None = None,
        features: Features | None = None,
        output: str | Path | None = None,
        desc: str | None = None,
    ) -> "Dataset":
        """Return the dataset with the columns that ``function`` returns added or replaced.

        Columns that it does not return are shared, not copied.

        Args:
            function: Gets a row (batched: a dict of lists) and returns a mapping of new values
                (batched: lists, arrays or ``Ragged``, of any length if no old column stays), or
                None when it is called for its effects only.
            with_indices: Pass the number of the row (batched: a list of them) as well.
            batched: Call it once for ``batch_size`` rows.
            batch_size: Rows of a batch.
            remove_columns: Old columns to leave out of the result.
            features: Types of the result's columns.
            output: Write the result to this ``.nano`` file as it comes and return that; else the
                new columns lie in memory.
            desc: Label of the progress bar, which shows on a terminal only.

        Raises:
            SchemaError: What it returned does not make columns.
        """
        gone = [] if remove_columns is None else _names(remove_columns)
        kept = self.remove_columns(gone)
        job = Job(function, with_indices=with_indices, batched=batched)
        found = mapped(self._columns, job, self._ranges(batch_size), desc=desc)
        asked = None if features is None else Schema.of(features)
        if output is None:
            return Dataset(into_memory(self._columns, kept.columns, found, asked))
        into_file(output, self._columns, kept.columns, found, asked)
        return Dataset.from_file(output)

    def filter(
        self,
        function: Callable[..., Any],
        *,
        with_indices: bool = False,
        input_columns: str | Sequence[str] | None = None,
        batched: bool = False,
        batch_size: int = 1000,
        desc: str | None = None,
    ) -> "Dataset":
        """Return the rows for which ``function`` is true; no data is copied.

        Args:
            function: Gets a row (batched: a dict of lists) and returns a bool (batched: a list or
                array of them).
            with_indices: Pass the number of the row (batched: a list of them) as well.
            input_columns: Read these columns only, and pass their values one by one.
            batched: Call it once for ``batch_size`` rows.
            batch_size: Rows of a batch.
            desc: Label of the progress bar, which shows on a terminal only.

        Raises:
            ValueError: A batch got the wrong number of answers.
        """
        names = None if input_columns is None else _names(input_columns)
        job = Job(function, with_indices=with_indices, batched=batched, input_columns=names)
        columns = self.select_columns(names or self.column_names).columns
        return self.select(kept_rows(columns, job, self._ranges(batch_size), desc=desc))

    def block(self, start: int, stop: int) -> Structs:
        """Return rows ``start .. stop`` as a compact struct array whose fields are the columns."""
        children = {name: c.block(start, stop) for name, c in self._columns.items()}
        return Structs(self.schema.struct, children, length=stop - start)

    def save_to_disk(
        self,
        dataset_path: str | Path,
        *,
        chunk_rows: int = 65_536,
        chunk_bytes: int = 64 << 20,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the rows in use, in their order, to a ``.nano`` file; see ``Writer``.

        Raises:
            OSError: The file cannot be written; then an old one of that name is still there.
        """
        with Writer(
            dataset_path,
            features=self.schema,
            chunk_rows=chunk_rows,
            chunk_bytes=chunk_bytes,
            metadata=metadata,
        ) as writer:
            start, step = 0, FIRST_SAVE_ROWS
            while start < len(self):
                stop = min(start + step, len(self))
                block = self.block(start, stop)
                writer.write_table(block)
                # Rows may be 10 bytes or 10 megabytes: learn from those just seen.
                step = max(1, min(4 * step, SAVE_BYTES * (stop - start) // max(1, block.nbytes)))
                start = stop


def _values(column: Any) -> Any:  # noqa: ANN401 - whatever a caller has
    return column.block(0, len(column)) if isinstance(column, Column) else column


def _names(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
