"""Which rows a step trains on: a pure function of the step, so that resuming needs no state."""

import functools

import numpy as np


class Order:
    """An endless shuffled walk over ``rows`` rows, every epoch a new permutation.

    Args:
        rows: Size of the dataset.
        seed: Of the permutations.

    >>> order = Order(4, seed=0)
    >>> sorted(order.take(0, 4)), sorted(order.take(4, 4))
    ([0, 1, 2, 3], [0, 1, 2, 3])
    >>> order.take(0, 8)[3:5] == order.take(3, 2)
    True
    """

    def __init__(self, rows: int, *, seed: int) -> None:
        if rows < 1:
            raise ValueError(f"rows={rows}: a dataset to train on needs at least one row")
        self.rows = rows
        self.seed = seed
        self._epoch = functools.lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> list[int]:
        generator = np.random.default_rng([self.seed, epoch])
        return [int(row) for row in generator.permutation(self.rows)]

    def take(self, start: int, count: int) -> list[int]:
        """Return the rows at positions ``start`` to ``start + count`` of the walk."""
        positions = (divmod(position, self.rows) for position in range(start, start + count))
        return [self._epoch(epoch)[index] for epoch, index in positions]
