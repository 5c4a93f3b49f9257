"""Streaming writer of ``.nano`` files: rows in, chunks out, atomically.

Everything goes to ``<path>.tmp.<pid>.<random>``; only a finished, synced file is renamed to
``path``. So whatever happens to the process, ``path`` is the old file or the new one.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from .arrays import Array
from .build import columns, first_bad, table
from .convert import concat, convert
from .errors import SchemaError
from .nested import Structs
from .reader import File
from .sink import Sink
from .types import MAX_DEPTH, Features, Schema, Struct, depth_of, unify

BLOCK_ROWS = 1024
"""Rows given one at a time that are turned into columns together."""


class Writer:
    """Writes rows or columns to a ``.nano`` file as they come; a context manager.

    Without ``features`` the types grow with the values: a column that was null, or int, and turns
    out to be something wider is widened in the chunks already written, which costs a copy of them.

    Args:
        path: The file; replaced in one step on success, left alone on failure.
        features: Types of the columns; a value that does not fit is an error.
        chunk_rows: Rows of a chunk at most.
        chunk_bytes: Bytes of a chunk, about; a longer row gets a chunk of its own.
        metadata: JSON content to keep in the footer.

    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "a.nano")
    >>> with Writer(path) as writer:
    ...     writer.write({"tokens": [1, 2, 3]})
    ...     writer.write_batch({"tokens": [[4], None]})
    >>> File(path).footer.rows
    3
    """

    def __init__(
        self,
        path: str | Path,
        *,
        features: Features | None = None,
        chunk_rows: int = 65_536,
        chunk_bytes: int = 64 << 20,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if chunk_rows < 1 or chunk_bytes < 1:
            raise ValueError(f"{chunk_rows=} and {chunk_bytes=} are positive; raise the lower one")
        self.path = os.path.abspath(path)
        if os.path.isdir(self.path):
            raise IsADirectoryError(f"{path} is a directory; name a file in it, such as data.nano")
        self.rows = 0
        self._fixed = features is not None
        self._schema = Schema.of(features or {})
        _check_depth(self._schema)
        self._limits = (chunk_rows, chunk_bytes)
        self._metadata = dict(metadata or {})
        self._buffered: list[Mapping[str, Any]] = []
        self._pending: list[Structs] = []
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        self._sink: Sink | None = self._new_sink()

    def _new_sink(self) -> Sink:
        return Sink(f"{self.path}.tmp.{os.getpid()}.{os.urandom(4).hex()}")

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one row.

        Raises:
            SchemaError: It does not fit the columns; raised at the latest by ``close``.
        """
        self._check_open()
        self._buffered.append(row)
        if len(self._buffered) >= BLOCK_ROWS:
            self._flush_rows()

    def write_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows."""
        for row in rows:
            self.write(row)

    def write_batch(self, batch: Mapping[str, Any]) -> None:
        """Add columns of equal length: lists, arrays, or ``Ragged``."""
        self.write_table(columns(batch))

    def write_table(self, rows: Structs) -> None:
        """Add a compact struct array whose fields are columns."""
        self._flush_rows()
        self._append(rows)

    def close(self) -> None:
        """Write what is left, finish the file and put it in place."""
        if self._sink is None:
            return
        try:
            self._flush_rows()
            self._flush_chunks(everything=True)
            self._sink.seal(self._schema, self._metadata)
            os.replace(self._sink.path, self.path)
        except BaseException:
            self.abort()
            raise
        self._sink = None
        _sync_directory(os.path.dirname(self.path))

    def abort(self) -> None:
        """Drop everything that was written; ``path`` stays as it was."""
        if self._sink is not None:
            self._sink.discard()
            self._sink = None

    def _flush_rows(self) -> None:
        rows, self._buffered = self._buffered, []
        if not rows:
            return
        try:
            self._append(table(rows))
        except SchemaError as error:
            row = error.row
            if row is None:
                row = first_bad(rows, lambda some: self._fit(table(some)))
            raise SchemaError(error.field, error.problem, row=self.rows + row) from None

    def _check_open(self) -> None:
        if self._sink is None:
            raise ValueError(f"the writer of {self.path} is closed; open another one")

    def _fit(self, rows: Structs) -> Schema:
        """Return the schema that holds these rows too."""
        if self._fixed:
            return Schema(_as_table(rows, self._schema).dtype)
        return Schema(cast(Struct, unify(self._schema.struct, rows.dtype)))

    def _append(self, rows: Structs) -> None:
        self._check_open()
        if self._fixed:
            rows = _as_table(rows, self._schema)
        else:
            self._widen(self._fit(rows))
        self.rows += rows.length
        self._pending.append(rows)
        self._flush_chunks(everything=False)

    def _widen(self, schema: Schema) -> None:
        old, self._schema = self._schema, schema
        _check_depth(schema)
        assert self._sink is not None
        if schema == old or not self._sink.rows:
            return
        # The types of a file hold for all of its chunks: copy those that are written.
        narrow, self._sink = self._sink, self._new_sink()
        narrow.seal(old, {})
        try:
            for chunk in tables(File(narrow.path)):
                self._add_chunk(_as_table(chunk, schema))
        finally:
            os.unlink(narrow.path)

    def _flush_chunks(self, *, everything: bool) -> None:
        chunk_rows, chunk_bytes = self._limits
        rows = sum(t.length for t in self._pending)
        size = sum(t.nbytes for t in self._pending)
        if rows == 0 or not (everything or rows >= chunk_rows or size >= chunk_bytes):
            return
        whole = concat([_as_table(t, self._schema) for t in self._pending])
        step = min(chunk_rows, max(1, rows * chunk_bytes // max(size, 1)))
        start = 0
        while rows - start >= step or (everything and start < rows):
            stop = min(start + step, rows)
            self._add_chunk(cast(Structs, whole.window(0, start, stop)))
            start = stop
        self._pending = [cast(Structs, whole.window(0, start, rows))]

    def _add_chunk(self, rows: Structs) -> None:
        """Write one chunk, or two when the rows are uneven and these are the long ones."""
        if rows.length > 1 and rows.nbytes > 2 * self._limits[1]:
            middle = rows.length // 2
            self._add_chunk(rows.window(0, 0, middle))
            self._add_chunk(rows.window(0, middle, rows.length))
            return
        if rows.nbytes >= 2**31:
            raise SchemaError("", f"a row takes {rows.nbytes} bytes, a chunk holds 2 GiB; split it")
        assert self._sink is not None
        fields = rows.children.values()
        self._sink.add(rows.length, (b for child in fields for b in child.buffers()))


def tables(file: File) -> Iterator[Structs]:
    """Yield each chunk of a file as a struct array whose fields are views of its columns."""
    for chunk, rows in enumerate(file.chunk_rows.tolist()):
        children: dict[str, Array] = {n: file.array(n).window(chunk, 0, rows) for n in file.schema}
        yield Structs(file.schema.struct, children, length=rows)


def _check_depth(schema: Schema) -> None:
    for name, dtype in schema.items():
        if depth_of(dtype) > MAX_DEPTH:
            raise SchemaError(name, f"nests deeper than {MAX_DEPTH} levels; flatten the values")


def _as_table(rows: Structs, schema: Schema) -> Structs:
    return cast(Structs, convert(rows, schema.struct))


def _sync_directory(path: str) -> None:
    """Bring a rename to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
