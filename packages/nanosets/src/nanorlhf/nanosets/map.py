"""Calling a function on rows or batches, and making columns or row numbers of what it returns."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .arrays import Array
from .build import columns, struct, table
from .column import Column
from .convert import convert, merge
from .errors import SchemaError
from .gather import Ints
from .nested import Structs
from .types import Schema
from .writer import Writer

Columns = Mapping[str, Column]


class Range(NamedTuple):
    """Rows ``start .. stop``."""

    start: int
    stop: int


class Block(NamedTuple):
    """What the function made of one range."""

    range: Range
    rows: Structs | None
    """New columns; None when the function returned None."""


class Job:
    """A user's function and how to call it.

    Args:
        function: The function.
        with_indices: Pass row numbers as well.
        batched: It takes a dict of lists rather than one row.
        input_columns: Pass the values of these columns, not a dict.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        with_indices: bool,
        batched: bool,
        input_columns: Sequence[str] | None = None,
    ) -> None:
        self.function = function
        self.with_indices = with_indices
        self.batched = batched
        self.input_columns = input_columns

    def answers(self, batch: Mapping[str, list[Any]], rows: Range) -> Any:  # noqa: ANN401
        """Return what the function says of a batch; of its rows, in a list, if not batched."""
        if self.batched:
            return self._call(batch, list(range(*rows)))
        inputs = zip(transposed(batch), range(*rows), strict=True)
        return [self._call(row, index) for row, index in inputs]

    def _call(self, inputs: Mapping[str, Any], index: Any) -> Any:  # noqa: ANN401
        names = self.input_columns
        args = [inputs] if names is None else [inputs[name] for name in names]
        return self.function(*args, *([index] if self.with_indices else []))


def transposed(batch: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return a dict of columns as a list of rows.

    >>> transposed({"a": [1, 2], "b": ["x", "y"]})
    [{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'y'}]
    """
    return [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]


def mapped(old: Columns, job: Job, ranges: Iterable[Range], *, desc: str | None) -> Iterator[Block]:
    """Yield what the function returns for each range, as columns.

    Raises:
        SchemaError: It is neither None nor columns; the row is counted through the dataset.
    """
    for rows in _progress(ranges, desc or "map"):
        batch = {name: column.values(np.arange(*rows)) for name, column in old.items()}
        answers = job.answers(batch, rows)
        try:
            yield Block(rows, _as_table(answers, old, batched=job.batched))
        except SchemaError as error:
            row = None if error.row is None else rows.start + error.row
            raise SchemaError(error.field, error.problem, row=row) from None


def _as_table(answers: Any, old: Columns, *, batched: bool) -> Structs | None:  # noqa: ANN401
    if answers is None or (not batched and all(answer is None for answer in answers)):
        return None
    if batched and not isinstance(answers, Mapping):
        kind = type(answers).__name__
        raise SchemaError("", f"a mapped function returns a dict or None, not a {kind}")
    found = columns(answers) if batched else table(answers)
    children = {name: _in_old_type(child, old.get(name)) for name, child in found.children.items()}
    return struct(children, length=found.length)


def _in_old_type(found: Array, old: Column | None) -> Array:
    """Return a replaced column in the type it had, if its new values fit that."""
    if old is None:
        return found
    try:
        return convert(found, old.dtype)
    except SchemaError:
        return found


def into_memory(
    old: Columns, kept: Columns, blocks: Iterable[Block], features: Schema | None
) -> dict[str, Column]:
    """Return the kept columns, shared, with those of the blocks added or put in their place."""
    found: list[Structs] = []
    for block in blocks:
        if block.rows is not None:
            _check_rows(block, kept)
            found.append(block.rows)
    new = dict(kept)
    if found:
        whole = merge(found)
        new.update({name: Column.of(child) for name, child in whole.children.items()})
        new = {name: new[name] for name in dict.fromkeys([*(n for n in old if n in new), *new])}
    if features is None:
        return new
    return _converted(new, features)


def _converted(found: Columns, features: Schema) -> dict[str, Column]:
    if set(features) != set(found):
        rule = f"asked are {list(features)}, the result has {list(found)}; name all of them"
        raise SchemaError("", rule)
    return {name: found[name].converted(dtype, field=name) for name, dtype in features.items()}


def into_file(
    path: str | Path,
    old: Columns,
    kept: Columns,
    blocks: Iterable[Block],
    features: Schema | None,
) -> None:
    """Write the kept columns with those of the blocks to a ``.nano`` file, block by block."""
    with Writer(path, features=features) as writer:
        for block in blocks:
            new = {} if block.rows is None else block.rows.children
            if block.rows is not None:
                _check_rows(block, kept)
            stay = {n: c.block(*block.range) for n, c in kept.items() if n not in new}
            order = dict.fromkeys([*(n for n in old if n in stay or n in new), *new])
            children = {name: new[name] if name in new else stay[name] for name in order}
            length = next((child.length for child in children.values()), 0)
            writer.write_table(struct(children, length=length))


def _check_rows(block: Block, kept: Columns) -> None:
    assert block.rows is not None
    stay = [name for name in kept if name not in block.rows.children]
    rows = block.range.stop - block.range.start
    if stay and block.rows.length != rows:
        raise ValueError(
            f"the function returned {block.rows.length} rows for a batch of {rows}, and the "
            f"columns {stay} stay; name them in remove_columns or return as many rows"
        )


def kept_rows(found: Columns, job: Job, ranges: Iterable[Range], *, desc: str | None) -> Ints:
    """Return the numbers of the rows for which the function is true, in order.

    Raises:
        ValueError: A batch got the wrong number of answers.
    """
    kept = [np.zeros(0, np.int64)]
    for rows in _progress(ranges, desc or "filter"):
        batch = {name: column.values(np.arange(*rows)) for name, column in found.items()}
        answers = job.answers(batch, rows)
        mask = np.fromiter((bool(answer) for answer in answers), np.bool_)
        if len(mask) != rows.stop - rows.start:
            size = rows.stop - rows.start
            raise ValueError(
                f"the function gave {len(mask)} answers for {size} rows; give one each"
            )
        kept.append(np.flatnonzero(mask) + rows.start)
    return np.concatenate(kept)


def _progress(ranges: Iterable[Range], desc: str) -> Iterable[Range]:
    from tqdm import tqdm  # type: ignore[import-untyped]  # 30 ms that only long verbs need

    bar: Iterable[Range] = tqdm(ranges, desc=desc, unit="batch", disable=None, leave=False)
    return bar
