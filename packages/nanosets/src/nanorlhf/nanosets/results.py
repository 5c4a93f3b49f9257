"""What becomes of the columns that a function makes: they lie in memory, in parts, or in a file."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from .blocks import Range, block
from .build import struct, table
from .calls import Block, Call, ColumnsOf
from .column import Column
from .convert import convert, merge
from .errors import SchemaError
from .nested import Structs
from .parts import check_all_or_none, discard, folder_for, opened, write_blocks, write_part
from .progress import progress
from .spread import in_processes
from .types import Schema
from .workers import Job, shares
from .writer import Writer

if TYPE_CHECKING:
    from .dataset import Dataset

Columns = Mapping[str, Column]
MEMORY_BYTES = 64 << 20
"""Bytes that new columns are to take above which they lie in a temporary file, not in memory."""


@dataclass(frozen=True)
class Result:
    """Columns that a function makes of ranges of rows, and the old ones that stay beside them."""

    make: ColumnsOf
    ranges: list[Range]
    old: "Dataset"
    kept: "Dataset"
    """Old columns that stay where nothing new takes their place."""
    desc: str
    """Label of the progress bar."""

    def dataset(self, num_proc: int, output: str | Path | None) -> "Dataset":
        """Make the columns, in so many processes; in a file if ``output`` names one."""
        if output is not None and num_proc == 1 and self.ranges:
            self._stream(output)
            return self.old.of_columns(type(self.old).from_file(output).columns)
        in_parts = num_proc > 1 and self.ranges
        new = self._in_parts(num_proc, output) if in_parts else self._by_one()
        found = self.old.of_columns(self._typed(self._arranged(new)))
        if output is None:
            return found
        found.save_to_disk(output)
        return self.old.of_columns(type(self.old).from_file(output).columns)

    def _blocks(self) -> Iterator[Block]:
        with progress(self.ranges, self.desc) as done:
            for rows in self.ranges:
                yield self.make(rows)
                done(rows)

    def _by_one(self) -> Columns:
        """Return new columns in memory; in a temporary file if they are large."""
        blocks = self._blocks()
        some: list[Block] = []
        size = 0
        for made in blocks:
            some.append(made)
            size += 0 if made.rows is None else made.rows.nbytes
            # What the rest will take by the looks of it: what is held here is slow to get rid of.
            if size * len(self.ranges) > MEMORY_BYTES * len(some):
                return _spilled(chain(some, blocks), self.ranges)
        check_all_or_none([made.rows is not None for made in some])
        tables = [made.rows for made in some if made.rows is not None]
        if not tables:
            return {}
        return {name: Column.of(child) for name, child in merge(tables).children.items()}

    def _in_parts(self, num_proc: int, output: str | Path | None) -> Columns:
        folder = folder_for(output)
        dealt = shares(self.ranges, num_proc, folder)
        try:
            wrote = in_processes(self._job, self.make.call, dealt, self.desc)
            check_all_or_none(wrote)
            return opened([share.part for share in dealt], empty=not any(wrote))
        except BaseException:
            discard(folder)
            raise

    def _job(self, call: Call) -> Job:
        return partial(write_part, replace(self.make, call=call))

    def _arranged(self, new: Columns) -> dict[str, Column]:
        """Return kept and new columns, those with an old name in their old place."""
        kept = self.kept.columns
        found = {**kept, **new}
        return {name: found[name] for name in self._order(new)}

    def _order(self, new: Mapping[str, object]) -> list[str]:
        stay = [n for n in self.old.column_names if n in self.make.kept or n in new]
        return list(dict.fromkeys([*stay, *new]))

    def _typed(self, found: dict[str, Column]) -> Columns:
        features = self.make.features
        if features is None:
            return found
        if not self.ranges:  # the function was never called, so it has not named its columns
            rows = convert(table([]), features.struct)
            assert isinstance(rows, Structs)
            found = {**{n: Column.of(child) for n, child in rows.children.items()}, **found}
        _check_names(features, list(found))
        return {n: found[n].converted(dtype, field=n) for n, dtype in features.items()}

    def _stream(self, output: str | Path) -> None:
        """Write kept and new columns to a file, block by block."""
        with Writer(output, features=self.make.features) as writer:
            for made in self._blocks():
                writer.write_table(self._whole(made))

    def _whole(self, made: Block) -> Structs:
        new = {} if made.rows is None else made.rows.children
        names = self._order(new)
        if self.make.features is not None:
            _check_names(self.make.features, names)
        stay = {n: c for n, c in self.kept.columns.items() if n not in new}
        old = block(stay, made.range).children if stay else {}
        children = {name: new[name] if name in new else old[name] for name in names}
        length = next((child.length for child in children.values()), 0)
        return struct(children, length=length)


def _spilled(blocks: Iterable[Block], ranges: list[Range]) -> Columns:
    folder = folder_for(None)
    path = os.path.join(folder, "part.nano")
    try:
        write_blocks(path, blocks, ranges)
        return opened([path], empty=False)
    except BaseException:
        discard(folder)
        raise


def _check_names(features: Schema, found: list[str]) -> None:
    if set(features) != set(found):
        rule = f"asked are {list(features)}, the result has {found}; name all of them"
        raise SchemaError("", rule)
