"""Calling a user's function on rows or batches, and making columns or a mask of what it returns."""

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import is_, itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .arrays import Array
from .bits import Mask
from .blocks import Range
from .build import columns, struct, table
from .convert import convert
from .errors import SchemaError
from .formats import transposed
from .gather import Ragged
from .lazy import LazyBatch, LazyRow
from .nested import Structs
from .owned import owned_column
from .types import Schema

if TYPE_CHECKING:
    from .dataset import Dataset


PAUSED_ROWS = 10_000
"""Rows of a range up to which Python's garbage collector waits for its end."""


class CollectionsLater:
    """Keeps the garbage collector from running while the answers of some rows are made.

    It runs every few hundred rows and finds all of their answers in use. Ranges of many rows get
    it: theirs may make garbage.
    """

    __slots__ = ("_pauses",)

    def __init__(self, rows: Range) -> None:
        self._pauses = gc.isenabled() and rows.stop - rows.start <= PAUSED_ROWS

    def __enter__(self) -> None:
        if self._pauses:
            gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._pauses:
            gc.enable()


class Block(NamedTuple):
    """What the function made of one range."""

    range: Range
    rows: Structs | None
    """New columns; None when the function returned None."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A user's function, the rows it sees and how it takes them; travels to other processes."""

    function: Callable[..., Any]
    inputs: "Dataset"
    """The columns that it sees, in the format that it gets them in."""
    batched: bool = False
    """It takes a dict of columns rather than one row."""
    with_indices: bool = False
    """Pass the numbers of the rows as well."""
    input_columns: Sequence[str] = ()
    """Pass the values of these columns, not a dict; empty for a dict."""
    fn_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def answers(self, rows: Range) -> Any:  # noqa: ANN401 - whatever the function returns
        """Return what the function says of a batch; of its rows, in a list, if not batched.

        Raises:
            RuntimeError: The function raised StopIteration.
            ValueError: A transform made another number of rows.
        """
        function = partial(self.function, **self.fn_kwargs) if self.fn_kwargs else self.function
        if self.batched:
            batch = self._batch(rows)
            whole: list[Any] = [batch[name] for name in self.input_columns] or [batch]
            return function(*whole, *([list(range(*rows))] if self.with_indices else []))
        each = self._each(rows)
        # ``map`` calls it with no frame of ours between two rows; a StopIteration would end that.
        found = list(map(function, *each, *([range(*rows)] if self.with_indices else [])))
        if len(found) != rows.stop - rows.start:
            row = rows.start + len(found)
            raise RuntimeError(f"the function raised StopIteration at row {row}; catch it there")
        return found

    def _batch(self, rows: Range) -> Mapping[str, Any]:
        transforms = self.inputs.format.transform is not None
        return self.inputs.batch_at(rows) if transforms else LazyBatch(self.inputs, rows)

    def _each(self, rows: Range) -> list[Iterable[Any]]:
        """Return what the function gets of each row, an iterable for each argument."""
        batch = self._batch(rows)
        if isinstance(batch, LazyBatch):
            return [batch.each(name) for name in self.input_columns] or [batch.rows_one_by_one()]
        dicts, size = transposed(batch), rows.stop - rows.start
        if len(dicts) != size:
            raise ValueError(f"the transform made {len(dicts)} rows of {size}; make one of each")
        return [map(itemgetter(name), dicts) for name in self.input_columns] or [dicts]


@dataclass(frozen=True, kw_only=True)
class ColumnsOf:
    """Makes columns of the answers of a call."""

    call: Call
    old: Schema
    """Types of the columns that the answers may replace."""
    kept: frozenset[str]
    """Old columns that stay in the result unless an answer replaces them."""
    features: Schema | None
    """Types of the result's columns, if they are asked for."""

    def __call__(self, rows: Range) -> Block:
        """Return the new columns of some rows.

        Raises:
            SchemaError: An answer is neither None nor columns; its row is counted through the
                dataset.
            ValueError: Old columns stay and the answers are of another number of rows.
        """
        with CollectionsLater(rows):
            answers = self.call.answers(rows)
            try:
                found = self._table(answers)
            except SchemaError as error:
                row = None if error.row is None else rows.start + error.row
                raise SchemaError(error.field, error.problem, row=row) from None
            del answers
        if found is not None:
            self._check_length(found, rows)
        return Block(rows, found)

    def _table(self, answers: Any) -> Structs | None:  # noqa: ANN401
        batched = self.call.batched
        if answers is None or (not batched and all(answer is None for answer in answers)):
            return None
        if batched and not isinstance(answers, Mapping):
            kind = type(answers).__name__
            raise SchemaError("", f"a mapped function returns a dict or None, not a {kind}")
        if _is_lazy(answers):
            answers, batched = self._completed(answers), True
        if batched:
            # The function may fill the same arrays again for the next batch.
            found = columns({n: owned_column(_ragged(v)) for n, v in answers.items()})
        else:
            found = table(answers)
        if not found.children:
            return None
        typed = {name: self._typed(name, child) for name, child in found.children.items()}
        if all(map(is_, typed.values(), found.children.values())):
            return found
        return struct(typed, length=found.length)

    def _completed(self, answers: LazyBatch | list[LazyRow]) -> dict[str, Any]:
        """Return the columns of what the function got and gave back, perhaps changed.

        What it never looked at is taken over as it lies.
        """
        batch = answers if isinstance(answers, LazyBatch) else answers[0].batch
        if isinstance(answers, LazyBatch):
            found = dict(answers.read)
        else:
            changed = dict.fromkeys(name for row in answers for name in row.changed)
            names = dict.fromkeys([*batch.read, *changed])
            found = {name: [row.get(name) for row in answers] for name in names}
        for name in batch:
            if name not in found:
                found[name] = batch.ds[name].block(*batch.rows)
        return {n: v for n, v in found.items() if n in self.kept or n not in self.old}

    def _typed(self, name: str, found: Array) -> Array:
        """Return a new column in the type asked for, or in the one it had if it fits that."""
        if self.features is not None and name in self.features:
            return convert(found, self.features[name], field=name)
        if name not in self.old:
            return found
        try:
            return convert(found, self.old[name])
        except SchemaError:
            return found

    def _check_length(self, found: Structs, rows: Range) -> None:
        stay = [name for name in self.old if name in self.kept and name not in found.children]
        size = rows.stop - rows.start
        if stay and found.length != size:
            raise ValueError(
                f"the function returned {found.length} rows for a batch of {size}, and the "
                f"columns {stay} stay; name them in remove_columns or return as many rows"
            )


def _is_lazy(answers: Any) -> bool:  # noqa: ANN401 - whatever the function returns
    """Return whether a function gave back the very batch, or every row, that it got."""
    if isinstance(answers, list) and answers and isinstance(answers[0], LazyRow):
        places = [row.place if isinstance(row, LazyRow) else -1 for row in answers]
        return places == list(range(len(answers)))
    return isinstance(answers, LazyBatch)


def mask_of(call: Call, rows: Range) -> Mask:
    """Return for which of some rows the function is true.

    Raises:
        ValueError: A batch got the wrong number of answers.
    """
    with CollectionsLater(rows):
        answers = call.answers(rows)
        if not isinstance(answers, np.ndarray):
            answers = [bool(answer) for answer in answers]
    mask = np.asarray(answers, np.bool_)
    size = rows.stop - rows.start
    if mask.shape != (size,):
        raise ValueError(f"the function gave {len(mask)} answers for {size} rows; give one each")
    return mask


def _ragged(values: Any) -> Any:  # noqa: ANN401 - whatever the function returns
    """Return a plain pair of arrays, the short way to write it, as ``Ragged``."""
    pair = type(values) is tuple and len(values) == 2
    if not pair or not all(isinstance(part, np.ndarray) for part in values):
        return values
    return Ragged(*values)
