"""Streaming writer of ``.nano`` files: rows in, chunks out, atomically.

Rows gather in memory until they fill a chunk. See ``place`` for what a crash leaves: always the
file as it was before, or after.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

from .arrays import Array
from .build import columns, first_bad, table
from .checksum import Checksum, chosen
from .convert import all_null, convert
from .errors import SchemaError
from .heap import keep_blocks
from .layout import MAX_WEIGHTLESS, lists_weightless, weightless
from .nested import Structs
from .owned import owned_columns, owned_row
from .pieces import cut
from .place import Appended, NewFile, remove_leftovers
from .reader import File
from .sink import Encoding
from .types import MAX_DEPTH, Features, Schema, Struct, depth_of, unify
from .zstd import Compression

BLOCK_ROWS = 1024
"""Rows given one at a time that are turned into columns together."""


class Writer:
    """Writes rows or columns to a ``.nano`` file as they come; a context manager.

    What is written is what they hold when they are passed; a caller may reuse its arrays and dicts.

    Without ``features`` the types grow with the values: a column that was null, or int, and turns
    out to be something wider is widened in the chunks already written, which costs a copy of them.

    Args:
        path: The file; replaced in one step on success, left alone on failure.
        features: Types of the columns; a value that does not fit is an error.
        chunk_rows: Rows of a chunk at most.
        chunk_bytes: Bytes of a chunk, about; a longer row gets a chunk of its own.
        metadata: JSON content to keep in the footer; in an append added to what is there.
        checksum: Of every buffer: crc32, xxh3_64 (about ten times as fast, needs xxhash), or
            auto, xxh3_64 where that is installed.
        compression: None, or zstd (needs zstandard). Compressed columns are read chunk by chunk
            into memory rather than mapped.
        append: Add to ``path`` if it is there. Its types, checksum and compression stay, and
            ``features``, if given, must be those types.
        sync: Wait for the disk before the file takes its place, so that a machine that stops has
            the old file or the new one. Without it only a process may stop at any time; what is
            quicker then is the write, as with other libraries, not the disk.

    Raises:
        CorruptFileError: The file to append to is damaged.
        ImportError: The checksum or compression needs a package that is missing.
        ValueError: A limit is not positive, or what is asked is not how the file was written.

    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "a.nano")
    >>> with Writer(path) as writer:
    ...     writer.write({"tokens": [1, 2, 3]})
    ...     writer.write_batch({"tokens": [[4], None]})
    >>> with Writer(path, append=True) as writer:
    ...     writer.write({"tokens": [5]})
    >>> File(path).footer.rows
    4
    """

    def __init__(
        self,
        path: str | Path,
        *,
        features: Features | None = None,
        chunk_rows: int = 65_536,
        chunk_bytes: int = 64 << 20,
        metadata: Mapping[str, Any] | None = None,
        checksum: Checksum | Literal["auto"] = "auto",
        compression: Compression | None = None,
        append: bool = False,
        sync: bool = True,
    ) -> None:
        if chunk_rows < 1 or chunk_bytes < 1:
            raise ValueError(f"{chunk_rows=} and {chunk_bytes=} are positive; raise the lower one")
        if compression not in (None, "zstd"):
            raise ValueError(f"{compression=} is neither None nor 'zstd'; use one of them")
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
        self._pending_rows = 0
        self._pending_bytes = 0
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        remove_leftovers(self.path)
        keep_blocks()  # of the buffers that are built of rows, written and let go
        self._sync = sync
        self._sink: NewFile | Appended | None
        if append and os.path.exists(self.path):
            self._sink = self._append_to(None if checksum == "auto" else checksum, compression)
        else:
            self._encoding = Encoding(chosen(checksum), compression)
            self._sink = NewFile(self.path, self._encoding, sync=self._sync)

    def _append_to(self, checksum: Checksum | None, compression: Compression | None) -> Appended:
        sink = Appended(self.path, sync=self._sync)
        footer = sink.before.footer
        for name, value, found in (
            ("features", self._schema if self._fixed else None, footer.schema),
            ("checksum", checksum, footer.checksum),
            ("compression", compression, footer.compression),
        ):
            if value is not None and value != found:
                sink.discard()
                rule = f"{name}={value!r} is asked and {self.path} has {found!r}"
                raise ValueError(f"{rule}; leave it out, or write another file")
        self._fixed, self._schema = True, footer.schema
        self._encoding = Encoding(footer.checksum, footer.compression)
        self._metadata = {**footer.metadata, **self._metadata}
        return sink

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
        self._buffered.append(owned_row(row))
        if len(self._buffered) >= BLOCK_ROWS:
            self._flush_rows()

    def write_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows."""
        for row in rows:
            self.write(row)

    def write_batch(self, batch: Mapping[str, Any]) -> None:
        """Add columns of equal length: lists, arrays, or ``Ragged``."""
        self.write_table(columns(owned_columns(batch)))

    def write_table(self, rows: Structs) -> None:
        """Add a compact struct array whose fields are columns; its memory must not change."""
        self._flush_rows()
        self._append(rows)

    def write_arrow(self, data: Any) -> None:  # noqa: ANN401 - any object with the protocol
        """Add what an object with ``__arrow_c_stream__`` or ``__arrow_c_array__`` holds."""
        from .arrow import import_stream  # whose ctypes most writers never need

        schema, blocks = import_stream(data)
        self._flush_rows()
        self._append(cast(Structs, all_null(schema.struct, 0)))
        for block in blocks:
            self._append(block)

    def close(self) -> None:
        """Write what is left, finish the file and put it in place."""
        if self._sink is None:
            return
        try:
            self._flush_rows()
            self._flush_chunks(everything=True)
            self._sink.finish(self._schema, self._metadata)
        except BaseException:
            self.abort()
            raise
        self._sink = None

    def abort(self) -> None:
        """Drop everything that was written; ``path`` stays as it was."""
        if self._sink is not None:
            sink, self._sink = self._sink, None
            sink.discard()

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
        found = cast(Struct, unify(self._schema.struct, rows.dtype))
        return self._schema if found is self._schema.struct else Schema(found)

    def _append(self, rows: Structs) -> None:
        self._check_open()
        if self._fixed:
            rows = _as_table(rows, self._schema)
        else:
            self._widen(self._fit(rows))
        self.rows += rows.length
        self._pending.append(rows)
        self._pending_rows += rows.length
        self._pending_bytes += rows.nbytes
        self._flush_chunks(everything=False)

    def _widen(self, schema: Schema) -> None:
        old, self._schema = self._schema, schema
        if schema is old:
            return
        _check_depth(schema)
        assert self._sink is not None
        if schema == old or not self._sink.rows:
            return
        # The types of a file hold for all of its chunks: copy those that are written.
        narrow, self._sink = self._sink, NewFile(self.path, self._encoding, sync=self._sync)
        narrow.seal(old, {})
        try:
            for chunk in tables(File(narrow.path)):
                self._add_chunk([_as_table(chunk, schema)])
        finally:
            narrow.discard()

    def _flush_chunks(self, *, everything: bool) -> None:
        chunk_rows, chunk_bytes = self._limits
        rows, size = self._pending_rows, self._pending_bytes
        if rows == 0 or not (everything or rows >= chunk_rows or size >= chunk_bytes):
            return
        step = min(chunk_rows, max(1, rows * chunk_bytes // max(size, 1)))
        chunks = list(cut([_as_table(table, self._schema) for table in self._pending], step))
        rest = [] if everything or rows % step == 0 else chunks.pop()
        self._pending = []
        for chunk in chunks:
            self._add_chunk(chunk)
        self._pending = rest
        self._pending_rows = sum(table.length for table in rest)
        self._pending_bytes = sum(table.nbytes for table in rest)

    def _add_chunk(self, pieces: Sequence[Structs]) -> None:
        """Write one chunk, or two when the rows are uneven and these are the long ones."""
        rows = sum(table.length for table in pieces)
        size = sum(table.nbytes for table in pieces)
        holds = lists_weightless(self._schema.struct)  # which takes less than to look at pieces
        count = sum(map(weightless, pieces)) if holds else 0
        if rows > 1 and (size > 2 * self._limits[1] or count > MAX_WEIGHTLESS):
            for half in cut(pieces, (rows + 1) // 2):
                self._add_chunk(half)
            return
        if size >= 2**31:
            raise SchemaError("", f"a row takes {size} bytes, a chunk holds 2 GiB; split it")
        if count > MAX_WEIGHTLESS:
            rule = f"holds {count} values that take no bytes, a file {MAX_WEIGHTLESS}; shorten it"
            raise SchemaError("", f"a list of nulls {rule}")
        assert self._sink is not None
        self._sink.add(pieces)


def tables(file: File) -> Iterator[Structs]:
    """Yield each chunk of a file as a struct array whose fields are its columns' arrays."""
    for chunk, rows in enumerate(file.chunk_rows.tolist()):
        children: dict[str, Array] = {name: file.chunk(name, chunk) for name in file.schema}
        yield Structs(file.schema.struct, children, length=rows)


def _check_depth(schema: Schema) -> None:
    for name, dtype in schema.items():
        if depth_of(dtype) > MAX_DEPTH:
            raise SchemaError(name, f"nests deeper than {MAX_DEPTH} levels; flatten the values")


def _as_table(rows: Structs, schema: Schema) -> Structs:
    return cast(Structs, convert(rows, schema.struct))
