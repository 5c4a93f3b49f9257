"""The verbs that call a function: ``map`` makes columns of its answers, ``filter`` picks rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .bits import Mask
from .blocks import Range, ranges
from .cache import cached, content_id, fingerprint
from .calls import Call, ColumnsOf, mask_of
from .fields import names_of
from .gather import Ints
from .parts import discard, folder_for
from .progress import progress
from .results import Result
from .spread import in_processes
from .types import Features, Schema
from .workers import Done, Job, Share, shares

if TYPE_CHECKING:
    from .dataset import Dataset


def map_rows(
    ds: "Dataset",
    function: Callable[..., Mapping[str, Any] | None],
    *,
    with_indices: bool = False,
    input_columns: str | Sequence[str] | None = None,
    batched: bool = False,
    batch_size: int | None = 1000,
    drop_last_batch: bool = False,
    remove_columns: str | Sequence[str] | None = None,
    features: Features | None = None,
    fn_kwargs: Mapping[str, Any] | None = None,
    num_proc: int | None = None,
    output: str | Path | None = None,
    cache: str | Path | None = None,
    desc: str | None = None,
) -> "Dataset":
    """Return the dataset with the columns that ``function`` makes added or put in their place.

    Old columns are shared, not copied. A replaced column keeps its type if the new values fit it.

    Args:
        ds: The dataset.
        function: Gets a row (batched: a dict of columns) of plain Python values, or of what
            ``with_format`` makes of them, and returns a mapping of new values, or None when it is
            called for its effects only. What it returns of a row must not change when it is called
            for the next. Batched, it returns columns, of any length if no old column stays: lists,
            arrays, ``Ragged``, or a pair of arrays ``(values, offsets)``.
        with_indices: Pass the number of the row (batched: a list of them) as well.
        input_columns: Read these columns only, and pass their values one by one.
        batched: Call it once for ``batch_size`` rows.
        batch_size: Rows of a batch; None for all.
        drop_last_batch: Leave out the rows of a last batch that is not full.
        remove_columns: Old columns to leave out of the result.
        features: Types of the result's columns, all of them.
        fn_kwargs: Further keywords for the function.
        num_proc: Call it in so many processes. One that pickle can name in an importable module
            runs in forks of a fresh interpreter, any other in forks of this process. The result is
            that of one process; its new columns lie in temporary files (the system's folder for
            them, or beside ``output``) that go when the last dataset over them does.
        output: Write the result to this ``.nano`` file and return that; else the new columns of
            one process lie in memory, or if they look to take more than 64 MiB in a temporary file
            as those of several.
        cache: A folder of results. One of the same rows, function and arguments is returned
            without calling the function; the key and the path are logged.
        desc: Label of the progress bar, which shows on a terminal only.

    Raises:
        SchemaError: What it returned does not make columns.
        ValueError: It returned the wrong number of rows; or arguments exclude each other.
        WorkerError: It raised in another process, or the process died.
    """
    gone = names_of(remove_columns)
    call = _call(ds, function, batched, with_indices, seen=input_columns, fn_kwargs=fn_kwargs)
    asked = None if features is None else Schema.of(features)
    if cache is not None:
        if output is not None:
            raise ValueError(f"{output=} and {cache=} both name the result; leave one out")
        size = (batch_size, drop_last_batch) if batched else None
        output = _cached(cache, ds, call, (size, gone, asked))
        if output.exists():
            return ds.of_columns(type(ds).from_file(output).columns)
    plan = ranges(len(ds), batch_size, drop_last=drop_last_batch and batched)
    kept = ds.remove_columns(gone)
    make = ColumnsOf(call=call, old=ds.schema, kept=frozenset(kept.columns), features=asked)
    if plan and plan[-1].stop < len(ds):
        kept = kept.take(plan[-1].stop)
    return Result(make, plan, ds, kept, desc or "map").dataset(num_proc or 1, output)


def filter_rows(
    ds: "Dataset",
    function: Callable[..., Any] | Sequence[bool] | NDArray[np.bool_],
    *,
    with_indices: bool = False,
    input_columns: str | Sequence[str] | None = None,
    batched: bool = False,
    batch_size: int | None = 1000,
    fn_kwargs: Mapping[str, Any] | None = None,
    num_proc: int | None = None,
    desc: str | None = None,
) -> "Dataset":
    """Return the rows for which ``function`` is true; no data is copied.

    Args:
        ds: The dataset.
        function: Gets a row (batched: a dict of columns) and returns a bool (batched: a list or
            array of them). Or a mask, one bool a row, such as ``ds["tokens"].lengths() > 8``.
        with_indices: Pass the number of the row (batched: a list of them) as well.
        input_columns: Read these columns only, and pass their values one by one.
        batched: Call it once for ``batch_size`` rows.
        batch_size: Rows of a batch; None for all.
        fn_kwargs: Further keywords for the function.
        num_proc: Call it in so many processes; see ``map``.
        desc: Label of the progress bar, which shows on a terminal only.

    Raises:
        ValueError: There are more or fewer answers than rows.
        WorkerError: It raised in another process, or the process died.
    """
    if not callable(function):
        return ds.select(np.flatnonzero(_mask(function, len(ds))))
    call = _call(ds, function, batched, with_indices, seen=input_columns, fn_kwargs=fn_kwargs)
    return ds.select(_kept(call, ranges(len(ds), batch_size), num_proc or 1, desc or "filter"))


def _call(
    ds: "Dataset",
    function: Callable[..., Any],
    batched: bool,
    with_indices: bool,
    *,
    seen: str | Sequence[str] | None,
    fn_kwargs: Mapping[str, Any] | None,
) -> Call:
    if ds.format.kind is None and ds.format.transform is None:
        # ``row["a"] + row["b"]`` joins lists, and adds arrays: a function must know what it gets.
        ds = ds.of_columns(ds.columns, replace(ds.format, kind="python"))
    return Call(
        function=function,
        inputs=ds if seen is None else ds.select_columns(seen),
        batched=batched,
        with_indices=with_indices,
        input_columns=names_of(seen),
        fn_kwargs=dict(fn_kwargs or {}),
    )


def _cached(folder: str | Path, ds: "Dataset", call: Call, arguments: tuple[Any, ...]) -> Path:
    """Return where the result of these rows, this function and these arguments belongs."""
    said = {
        "rows": content_id(ds),
        "format": ds.format,
        "call": (call.batched, call.with_indices, call.input_columns, call.fn_kwargs),
        "arguments": arguments,
    }
    return cached(folder, fingerprint(call.function, said), verb="map")


def _mask(given: Sequence[bool] | NDArray[np.bool_], rows: int) -> Mask:
    mask = np.asarray(given)
    if mask.shape != (rows,) or (mask.dtype != np.bool_ and rows):
        shape = f"{mask.dtype} {list(mask.shape)}"
        raise ValueError(f"a mask is {rows} bools, one a row, not {shape}; compare to make one")
    return mask.astype(np.bool_)


def _kept(call: Call, plan: list[Range], num_proc: int, desc: str) -> Ints:
    """Return the numbers of the rows for which the function is true, in order."""
    if num_proc == 1 or not plan:
        with progress(plan, desc) as done:
            return _kept_of(call, Share(plan, part=""), done)
    folder = folder_for(None)
    try:
        dealt = shares(plan, num_proc, folder)
        return np.concatenate(in_processes(_filtering, call, dealt, desc))
    finally:
        discard(folder)


def _filtering(call: Call) -> Job:
    return partial(_kept_of, call)


def _kept_of(call: Call, share: Share, done: Done) -> Ints:
    kept = [np.zeros(0, np.int64)]
    for rows in share.ranges:
        kept.append(np.flatnonzero(mask_of(call, rows)) + rows.start)
        done(rows)
    return np.concatenate(kept)
