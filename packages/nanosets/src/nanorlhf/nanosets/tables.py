"""Parquet and Arrow IPC files in and out, by pyarrow or polars.

Either is imported when a file is read or written, and not before. Data passes by the Arrow C data
interface, so it is decoded once and copied no more. With pyarrow a file larger than memory passes
through in record batches; polars, which is taken where there is no pyarrow, reads a file at once.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arrow import Table, import_stream
from .replace import Target, replacing_bytes

if TYPE_CHECKING:
    from .dataset import Dataset

BATCH_ROWS = 16_384
"""Rows of a Parquet file that are decoded at a time, at most."""
BATCH_BYTES = 16 << 20
"""Bytes of them, as the file counts: before decompression, after encoding."""
IPC_MAGIC = b"ARROW1"
"""Starts an IPC file; an IPC stream, which Hugging Face datasets saves, has no magic."""


def read_parquet(path: str | Path, *, columns: Sequence[str] | None = None) -> Table:
    """Return the columns of a Parquet file and its rows, some at a time.

    Args:
        path: The file.
        columns: Read these only; default all.

    Raises:
        ImportError: Neither pyarrow nor polars is installed.
        SchemaError: A column has a type that is none of ours.
        ValueError: It is no Parquet file, or is damaged.
    """
    names = None if columns is None else list(columns)
    pa = _library()
    if pa.__name__ == "polars":
        return _by_polars(pa, lambda: pa.read_parquet(path, columns=names), path)
    parquet = import_module("pyarrow.parquet")
    file = parquet.ParquetFile(path)
    batches = file.iter_batches(batch_size=_batch_rows(file.metadata), columns=names)
    schema = file.schema_arrow
    if names is not None:
        schema = pa.schema([schema.field(name) for name in names])
        batches = (batch.select(names) for batch in batches)
    return import_stream(pa.RecordBatchReader.from_batches(schema, batches))


def read_ipc(path: str | Path) -> Table:
    """Return the columns of an Arrow IPC file or stream and its rows, batch by batch.

    The file is mapped, and not copied unless it is compressed. Every batch is validated before
    use, since offsets in a damaged one point anywhere.

    Raises:
        ImportError: Neither pyarrow nor polars is installed.
        SchemaError: A column has a type that is none of ours.
        ValueError: It is neither, or is damaged.
    """
    with open(path, "rb") as handle:
        is_file = handle.read(len(IPC_MAGIC)) == IPC_MAGIC
    pa = _library()
    if pa.__name__ == "polars":
        return _by_polars(pa, lambda: (pa.read_ipc if is_file else pa.read_ipc_stream)(path), path)
    ipc = import_module("pyarrow.ipc")
    source = pa.memory_map(str(path))
    reader = ipc.open_file(source) if is_file else ipc.open_stream(source)
    batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
    return import_stream(pa.RecordBatchReader.from_batches(reader.schema, _validated(batches)))


def write_parquet(ds: "Dataset", target: Target, **options: Any) -> None:
    """Write the rows as a Parquet file, which is replaced as a whole.

    Args:
        ds: The dataset.
        target: The file, or one that is open for writing bytes.
        options: For ``pyarrow.parquet.ParquetWriter``, or ``polars.DataFrame.write_parquet`` where
            there is no pyarrow, such as ``compression="zstd"``.

    Raises:
        ImportError: Neither pyarrow nor polars is installed.
        ValueError: Parquet has no such type, such as a struct without fields.
    """
    pa = _library()
    if pa.__name__ == "polars":
        with replacing_bytes(target) as part:
            pa.DataFrame(ds).write_parquet(part, **options)
        return
    parquet = import_module("pyarrow.parquet")
    reader = pa.RecordBatchReader.from_stream(ds)
    with (
        replacing_bytes(target) as part,
        parquet.ParquetWriter(part, reader.schema, **options) as writer,
    ):
        for batch in reader:
            writer.write_batch(batch)


def write_ipc(ds: "Dataset", target: Target) -> None:
    """Write the rows as an Arrow IPC file, which is replaced as a whole.

    Raises:
        ImportError: Neither pyarrow nor polars is installed.
    """
    pa = _library()
    if pa.__name__ == "polars":
        with replacing_bytes(target) as part:
            pa.DataFrame(ds).write_ipc(part)
        return
    ipc = import_module("pyarrow.ipc")
    reader = pa.RecordBatchReader.from_stream(ds)
    # An IPC file has one dictionary for a column, and ours may differ from chunk to chunk.
    options = ipc.IpcWriteOptions(unify_dictionaries=True)
    with (
        replacing_bytes(target) as part,
        ipc.new_file(part, reader.schema, options=options) as writer,
    ):
        writer.write_table(reader.read_all())


def _batch_rows(metadata: Any) -> int:  # noqa: ANN401 - pyarrow.parquet.FileMetaData
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    size = sum(group.total_byte_size for group in groups)
    fitting: int = BATCH_BYTES * metadata.num_rows // max(1, size)
    return max(1, min(BATCH_ROWS, fitting))


def _validated(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        batch.validate(full=True)
        yield batch


def _library() -> Any:  # noqa: ANN401 - a module without types
    """Return pyarrow, or polars where there is none."""
    for name in ("pyarrow", "polars"):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise ImportError(
        "Parquet and Arrow IPC need pyarrow or polars; pip install 'nanosets[tables]'"
    )


def _by_polars(polars: Any, read: Callable[[], Any], path: str | Path) -> Table:  # noqa: ANN401
    try:
        return import_stream(read())
    except polars.exceptions.PolarsError as error:
        raise ValueError(f"{path}: {error}") from None
