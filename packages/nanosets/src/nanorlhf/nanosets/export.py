"""A dataset as a file, as Python values, and as the table of another library."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .blocks import GATHER_BYTES, MAX_ROWS, blocks_ahead, cuts, is_numbered
from .formats import plain, transposed
from .progress import progress
from .replace import Target
from .writer import Writer

if TYPE_CHECKING:
    from .dataset import Dataset


def save_to_disk(
    ds: "Dataset",
    dataset_path: str | Path,
    **options: Any,
) -> None:
    """Write the rows in use, in their order, to a ``.nano`` file.

    Args:
        ds: The dataset.
        dataset_path: The file; replaced in one step on success, left alone on failure.
        **options: As ``Writer`` takes them: ``chunk_rows``, ``chunk_bytes``, ``metadata``,
            ``checksum``, ``compression``, ``sync``.

    Raises:
        OSError: The file cannot be written; then an old one of that name is still there.
    """
    max_rows = options.get("chunk_rows", MAX_ROWS)
    max_bytes = min(GATHER_BYTES, options.get("chunk_bytes", GATHER_BYTES))
    found = cuts(ds.columns, max_rows=max_rows, max_bytes=max_bytes)
    if found and is_numbered(ds.columns):
        # A block that is a chunk goes to the file as it is; another would be copied into one.
        options["chunk_rows"] = min(max_rows, found[0].stop)
    with (
        Writer(dataset_path, features=ds.schema, **options) as writer,
        progress(found, "save") as done,
    ):
        for rows, made in zip(found, blocks_ahead(ds.columns, found), strict=True):
            writer.write_table(made)
            done(rows)


def to_dict(ds: "Dataset") -> dict[str, list[Any]]:
    """Return all columns as lists of plain Python values."""
    return {name: [plain(value) for value in column] for name, column in ds.columns.items()}


def to_list(ds: "Dataset") -> list[dict[str, Any]]:
    """Return all rows as dicts of plain Python values."""
    return transposed(to_dict(ds))


def to_json(ds: "Dataset", path_or_buf: Target) -> None:
    """Write the rows as JSON lines to a file or an open binary one."""
    from .text import write_jsonl

    write_jsonl(ds, path_or_buf)


def to_csv(ds: "Dataset", path_or_buf: Target) -> None:
    """Write the rows as comma-separated values under a line of names, as ``to_json``."""
    from .text import write_csv

    write_csv(ds, path_or_buf)


def to_parquet(ds: "Dataset", path_or_buf: Target, **options: Any) -> None:
    """Write the rows as a Parquet file; see ``tables.write_parquet``."""
    from .tables import write_parquet

    write_parquet(ds, path_or_buf, **options)


def to_ipc(ds: "Dataset", path_or_buf: Target) -> None:
    """Write the rows as an Arrow IPC file; see ``tables.write_ipc``."""
    from .tables import write_ipc

    write_ipc(ds, path_or_buf)


def to_arrow(ds: "Dataset") -> Any:  # noqa: ANN401 - pyarrow.Table
    """Return the rows as a ``pyarrow.Table``, without a copy where no row was picked."""
    import pyarrow  # type: ignore[import-untyped]

    return pyarrow.table(ds)


def to_pandas(ds: "Dataset") -> Any:  # noqa: ANN401 - pandas.DataFrame
    """Return the rows as a ``pandas.DataFrame``; needs pyarrow and pandas."""
    return to_arrow(ds).to_pandas()


def to_polars(ds: "Dataset") -> Any:  # noqa: ANN401 - polars.DataFrame
    """Return the rows as a ``polars.DataFrame``; needs polars."""
    import polars

    return polars.DataFrame(ds)
