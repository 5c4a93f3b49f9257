"""The batches and rows that mapped functions get: columns are read when they are first asked for.

So a function that looks at one column of ten costs one column. A function may change what it got
and return that: new names are added to it, and what was never asked for is kept as it lies.
"""

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, NoReturn

from .blocks import Range
from .gather import Ragged

if TYPE_CHECKING:
    from .dataset import Dataset


class LazyBatch(MutableMapping[str, Any]):
    """A dict of columns of some rows.

    Args:
        ds: Where they are read from, in its format.
        rows: Which rows.
    """

    __slots__ = ("_by_row", "ds", "read", "rows")

    def __init__(self, ds: "Dataset", rows: Range) -> None:
        self.ds = ds
        self.rows = rows
        self.read: dict[str, Any] = {}
        """Columns that were asked for, or set."""
        self._by_row: dict[str, Any] = {}

    def each(self, name: str) -> Any:  # noqa: ANN401 - a sequence of whatever the format makes
        """Return a column as a sequence of one value a row."""
        found = self._by_row.get(name)
        if found is None:
            found = self[name]
            self._by_row[name] = found = found.rows() if isinstance(found, Ragged) else found
        return found

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - whatever the format makes
        if name not in self.read:
            self.read[name] = self.ds.format.column(name, self.ds[name], self.rows)
        return self.read[name]

    def __setitem__(self, name: str, values: Any) -> None:  # noqa: ANN401
        self.read[name] = values

    def __delitem__(self, name: str) -> None:
        if name in self.ds.columns:
            _refuse(name)
        del self.read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.ds.format.shown(self.ds.columns), *self.read]))

    def __contains__(self, name: object) -> bool:
        return name in self.read or name in self.ds.format.shown(self.ds.columns)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(dict(self))

    def rows_one_by_one(self) -> "list[LazyRow]":
        """Return every row as a dict of its own."""
        return [LazyRow(self, place) for place in range(self.rows.stop - self.rows.start)]


class LazyRow(MutableMapping[str, Any]):
    """One row of a batch as a dict."""

    __slots__ = ("batch", "changed", "place")

    def __init__(self, batch: LazyBatch, place: int) -> None:
        self.batch = batch
        self.place = place
        self.changed: dict[str, Any] = {}
        """Values that were set."""

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - whatever the format makes
        if name in self.changed:
            return self.changed[name]
        return self.batch.each(name)[self.place]

    def __setitem__(self, name: str, value: Any) -> None:  # noqa: ANN401
        self.changed[name] = value

    def __delitem__(self, name: str) -> None:
        if name in self.batch:
            _refuse(name)
        del self.changed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.batch, *self.changed]))

    def __contains__(self, name: object) -> bool:
        return name in self.changed or name in self.batch

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(dict(self))


def _refuse(name: str) -> NoReturn:
    raise TypeError(f"column {name!r} cannot be deleted from within; name it in remove_columns")
