"""Dataset: named columns of equal length. The verbs on them are functions in files of their own.

The class below says what a dataset is and how rows come out; the rest of its body is the list of
its verbs, each a function ``verb(ds, ...)`` of the module that it is named from.
The names and keywords are those of Hugging Face datasets. No verb but ``map``, ``batch``,
``add_column`` of new values and ``cast`` copies data: columns are shared, and verbs on rows only
number them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from . import create, export, fields, formats, order, rows, train_test
from .arrow import export_schema, export_stream
from .blocks import Range, block, blocks, ranges
from .cache import content_id
from .column import Column
from .formats import STORED, Format
from .gather import Ragged, resolve
from .map import filter_rows, map_rows
from .nested import Structs
from .preview import preview
from .types import Field, Schema, Struct

INTEGER = (int, np.integer)
ITER_ROWS = 1024
"""Rows that iteration turns into Python values together."""


class Dataset:
    """Rows of named, typed columns, in memory or in ``.nano`` files.

    ``ds[i]`` is a dict, ``ds[a:b]`` and ``ds[[i, j]]`` are dicts of lists, ``ds["name"]`` is a
    ``Column``. A dataset never changes: every verb returns another one.

    Args:
        named: The columns, all of one length.
        form: What rows come out as; see ``with_format``.

    >>> ds = Dataset.from_list([{"id": 1, "tokens": [5, 6]}, {"id": 2, "tokens": None}])
    >>> ds
    Dataset({
        features: {'id': 'int64', 'tokens': 'list<int64>'},
        num_rows: 2
    })
    id  tokens
    1   [5, 6]
    2   None
    >>> ds[-1]
    {'id': 2, 'tokens': None}
    """

    def __init__(self, named: Mapping[str, Column], form: Format = STORED) -> None:
        lengths = {name: len(column) for name, column in named.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns differ in length: {lengths}; give each as many rows")
        self._columns = dict(named)
        self._format = form

    def of_columns(self, named: Mapping[str, Column], form: Format | None = None) -> "Dataset":
        """Return a dataset of other columns, in this one's format or another."""
        return Dataset(named, self._format if form is None else form)

    @property
    def schema(self) -> Schema:
        """The columns' names and types."""
        found = (Field(name, column.dtype) for name, column in self._columns.items())
        return Schema(Struct(tuple(found)))

    @property
    def features(self) -> Schema:
        """The schema, by the name that it has in Hugging Face datasets."""
        return self.schema

    @property
    def format(self) -> Format:
        """What rows come out as."""
        return self._format

    @property
    def columns(self) -> dict[str, Column]:
        """The columns by name."""
        return dict(self._columns)

    @property
    def column_names(self) -> list[str]:
        """The columns' names."""
        return list(self._columns)

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self)

    @property
    def num_columns(self) -> int:
        """How many columns there are."""
        return len(self._columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self), len(self._columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), ()))

    def __repr__(self) -> str:
        types = {name: str(dtype) for name, dtype in self.schema.items()}
        head = f"Dataset({{\n    features: {types},\n    num_rows: {len(self)}\n}})"
        return "\n".join([head, *preview(self)])

    @overload
    def __getitem__(self, key: str) -> Column: ...

    @overload
    def __getitem__(self, key: Any) -> dict[str, Any]: ...  # noqa: ANN401

    def __getitem__(self, key: Any) -> Any:
        """Return a row as a dict, rows as a dict of columns, or a column.

        Raises:
            IndexError: There is no such row.
            KeyError: There is no such column.
            TypeError: The key is none of these.
        """
        if isinstance(key, str):
            if key not in self._columns:
                raise KeyError(f"no column {key!r}; there are {self.column_names}")
            return self._columns[key]
        if isinstance(key, INTEGER) and not isinstance(key, bool):
            return self._format.row(self._columns, int(key))
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self.batch_at(Range(start, max(start, stop)))
        return self._format.batch(self._columns, resolve(key, len(self)))

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return rows as dicts; what a PyTorch DataLoader calls for a batch."""
        return self._format.rows(self._columns, resolve(indices, len(self)))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for some in ranges(len(self), ITER_ROWS):
            yield from self._format.rows(self._columns, some)

    def iter(self, batch_size: int, *, drop_last_batch: bool = False) -> Iterator[dict[str, Any]]:
        """Yield ``batch_size`` rows at a time as dicts of columns.

        Raises:
            ValueError: ``batch_size`` is not positive.
        """
        for some in ranges(len(self), batch_size, drop_last=drop_last_batch):
            yield self.batch_at(some)

    def batch_at(self, some: Range) -> dict[str, Any]:
        """Return rows that follow one another as a dict of columns."""
        return self._format.batch(self._columns, some)

    def block(self, start: int, stop: int) -> Structs:
        """Return rows ``start .. stop`` as a compact struct array whose fields are the columns."""
        return block(self._columns, Range(start, stop))

    def blocks(self) -> Iterator[Structs]:
        """Yield all rows in order as struct arrays; views of the chunks where no row was picked."""
        return blocks(self._columns)

    def gather(self, name: str, indices: Any = slice(None)) -> Ragged:  # noqa: ANN401
        """Return rows of a list column packed end to end; see ``Column.gather``.

        >>> ds = Dataset.from_dict({"tokens": [[1, 2], [], [3]]})
        >>> ds.gather("tokens", [2, 0])
        Ragged(values=array([3, 1, 2]), offsets=array([0, 1, 3]))
        """
        return self[name].gather(indices)

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

    def __arrow_c_schema__(self) -> Any:  # noqa: ANN401 - a PyCapsule
        """Return the columns' types for another Arrow library."""
        return export_schema(self.schema)

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:  # noqa: ANN401
        """Return the rows for another Arrow library, as for ``pyarrow.table(ds)``.

        Chunks of a file whose rows are all in use are passed on as they lie, without a copy.
        """
        del requested_schema  # a wish, which the consumer fulfils itself
        return export_stream(self.schema, self.blocks())

    from_list = classmethod(create.from_list)
    from_dict = classmethod(create.from_dict)
    from_generator = classmethod(create.from_generator)
    from_file = classmethod(create.from_file)
    from_jsonl = classmethod(create.from_jsonl)
    from_json = classmethod(create.from_json)
    from_csv = classmethod(create.from_csv)
    from_parquet = classmethod(create.from_parquet)
    from_arrow = classmethod(create.from_arrow)

    content_id = content_id

    select = rows.select
    skip = rows.skip
    take = rows.take
    repeat = rows.repeat
    shuffle = rows.shuffle
    shard = rows.shard
    batch = rows.batch
    sort = order.sort
    unique = order.unique
    filter = filter_rows
    train_test_split = train_test.train_test_split

    map = map_rows
    select_columns = fields.select_columns
    remove_columns = fields.remove_columns
    rename_column = fields.rename_column
    rename_columns = fields.rename_columns
    add_column = fields.add_column
    cast = fields.cast
    cast_column = fields.cast_column
    flatten = fields.flatten

    with_format = formats.with_format
    with_transform = formats.with_transform

    save_to_disk = export.save_to_disk
    to_list = export.to_list
    to_dict = export.to_dict
    to_json = export.to_json
    to_csv = export.to_csv
    to_parquet = export.to_parquet
    to_ipc = export.to_ipc
    to_arrow = export.to_arrow
    to_pandas = export.to_pandas
    to_polars = export.to_polars
