"""Verbs that pick, repeat and reorder rows: they number them, and copy no data."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .gather import Ints, resolve
from .nested import lists

if TYPE_CHECKING:
    from .column import Column
    from .dataset import Dataset


def select(ds: "Dataset", indices: Any) -> "Dataset":  # noqa: ANN401 - slice, range, list, array
    """Return the rows of these numbers, in this order; no data is copied.

    Raises:
        IndexError: A number is out of range.
    """
    if isinstance(indices, range) and indices == range(len(ds)):
        return ds  # all rows in order need no numbers
    picked = resolve(indices, len(ds))
    # Columns that came together share their row numbers; keep it so.
    done: dict[int, Ints] = {}
    named = {}
    for name, column in ds.columns.items():
        rows = done.get(id(column.rows))
        if rows is None:
            rows = picked if column.rows is None else column.rows[picked]
            done[id(column.rows)] = rows
        named[name] = column.select(rows)
    return ds.of_columns(named)


def skip(ds: "Dataset", n: int) -> "Dataset":
    """Return all rows but the first ``n``.

    Raises:
        ValueError: ``n`` is negative.
    """
    return select(ds, range(min(_count(n=n), len(ds)), len(ds)))


def take(ds: "Dataset", n: int) -> "Dataset":
    """Return the first ``n`` rows, or all when there are fewer.

    Raises:
        ValueError: ``n`` is negative.
    """
    return select(ds, range(min(_count(n=n), len(ds))))


def repeat(ds: "Dataset", num_times: int) -> "Dataset":
    """Return all rows ``num_times`` over, one round after another.

    Raises:
        ValueError: ``num_times`` is negative.
    """
    return select(ds, np.tile(np.arange(len(ds)), _count(num_times=num_times)))


def shuffle(
    ds: "Dataset", seed: int | None = None, generator: "np.random.Generator | None" = None
) -> "Dataset":
    """Return the rows in random order; the same order for the same seed and length.

    Args:
        ds: The dataset.
        seed: Of the order; None for another one every time.
        generator: Draws the order in place of ``seed``.
    """
    return select(ds, random_order(len(ds), seed, generator))


def random_order(rows: int, seed: int | None, generator: "np.random.Generator | None") -> Ints:
    """Return the row numbers in random order.

    Raises:
        ValueError: Both ``seed`` and ``generator`` are given.
    """
    if generator is None:
        generator = np.random.default_rng(seed)
    elif seed is not None:
        raise ValueError(f"seed={seed} and a generator are both given; leave one out")
    return generator.permutation(rows)


def shard(ds: "Dataset", num_shards: int, index: int, *, contiguous: bool = True) -> "Dataset":
    """Return one of ``num_shards`` shards, whose sizes differ by one row at most.

    Args:
        ds: The dataset.
        num_shards: How many shards there are.
        index: Which of them.
        contiguous: Rows that follow one another; else every ``num_shards``-th row.

    Raises:
        ValueError: There is no such shard.
    """
    if not 0 <= index < num_shards:
        raise ValueError(f"index={index} is not one of num_shards={num_shards}; count from 0")
    if not contiguous:
        return select(ds, range(index, len(ds), num_shards))
    size, larger = divmod(len(ds), num_shards)
    start = index * size + min(index, larger)
    return select(ds, range(start, start + size + (index < larger)))


def batch(ds: "Dataset", batch_size: int, *, drop_last_batch: bool = False) -> "Dataset":
    """Return a dataset whose rows are lists of ``batch_size`` rows, in memory.

    Args:
        ds: The dataset.
        batch_size: Rows that become one.
        drop_last_batch: Leave out a last batch that is not full.

    Raises:
        ValueError: ``batch_size`` is not positive.

    >>> from nanorlhf.nanosets import Dataset
    >>> Dataset.from_dict({"c": list("abc")}).batch(2).to_list()
    [{'c': ['a', 'b']}, {'c': ['c']}]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not positive; use 1 or more")
    rows = len(ds) // batch_size * batch_size if drop_last_batch else len(ds)
    edges = np.append(np.arange(0, rows, batch_size), rows)
    return ds.of_columns({name: _listed(c, rows, edges) for name, c in ds.columns.items()})


def _listed(column: "Column", rows: int, edges: Ints) -> "Column":
    return type(column).of(lists(edges, column.block(0, rows)))


def _count(**given: int) -> int:
    ((name, count),) = given.items()
    if count < 0:
        raise ValueError(f"{name}={count} is negative; use 0 or more")
    return count
