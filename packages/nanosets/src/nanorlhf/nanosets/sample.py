"""Which rows come when: a seeded order of all rows, dealt to ranks batch by batch.

The order of an epoch depends on the seed, the epoch and the number of rows, nothing else. A batch
is the next ``batch_size`` rows of it, whatever the number of ranks, and each rank takes its share
of the batch. So the state of training is three numbers, and a run that stopped on 8 ranks goes on
with the next row on 6.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from .gather import Ints


class Sampler:
    """Yields this rank's row numbers, batch by batch; each loop over it is the rest of one epoch.

    It is a ``batch_sampler`` of PyTorch's DataLoader: ``DataLoader(ds, batch_sampler=sampler)``.
    A loader that reads ahead in other processes draws batches before they are used; save its own
    state rather than this one then.

    Args:
        num_rows: Rows of the dataset.
        batch_size: Rows of a batch over all ranks.
        seed: Of the order.
        rank: Which share of each batch is this one's.
        world: How many ranks share a batch.
        shuffle: Another random order every epoch; else the order of the rows.
        drop_last: Leave out the last rows of an epoch that fill no batch; else they are a smaller
            batch, of which some ranks may get a row less than others.

    Raises:
        ValueError: An argument is out of range, or ``world`` does not divide ``batch_size``.

    >>> sampler = Sampler(5, batch_size=2, shuffle=False)
    >>> [rows.tolist() for rows in sampler]
    [[0, 1], [2, 3], [4]]
    >>> sampler.state_dict()
    {'num_rows': 5, 'seed': 0, 'shuffle': False, 'epoch': 1, 'consumed': 0}
    """

    def __init__(
        self,
        num_rows: int,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        if num_rows < 1 or batch_size < 1:
            raise ValueError(f"{num_rows=} and {batch_size=} are positive; raise the lower one")
        if not 0 <= rank < world:
            raise ValueError(f"rank={rank} is not one of world={world} ranks; count from 0")
        if batch_size % world:
            below, above = batch_size // world * world, -(-batch_size // world) * world
            raise ValueError(
                f"batch_size={batch_size} leaves {batch_size - below} rows over on world={world} "
                f"ranks; use {above}"
            )
        if drop_last and num_rows < batch_size:
            raise ValueError(f"{num_rows=} fill no batch of {batch_size=}; keep the last one")
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0
        self.consumed = 0
        """Rows of this epoch that all ranks together have been given."""

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._end // self.batch_size + (self._end % self.batch_size > 0)

    def __iter__(self) -> Iterator[Ints]:
        """Yield the rest of the epoch, then turn to the next one."""
        order = self.order(self.epoch)
        while self.consumed < self._end:
            batch = order[self.consumed : min(self.consumed + self.batch_size, self._end)]
            # Counted before it is given out: the state of a loop that stops here includes it.
            self.consumed += len(batch)
            yield self._share(batch)
        self.set_epoch(self.epoch + 1)

    def order(self, epoch: int) -> Ints:
        """Return the rows of an epoch in their order, int64 [num_rows], read-only."""
        return _order(self.num_rows, self.seed if self.shuffle else None, epoch)

    def set_epoch(self, epoch: int) -> None:
        """Turn to the first row of an epoch."""
        self.epoch = epoch
        self.consumed = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what another sampler, of any batch size, rank and world, goes on from."""
        return {
            "num_rows": self.num_rows,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "epoch": self.epoch,
            "consumed": self.consumed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the sampler of ``state`` stood, with its seed.

        Raises:
            ValueError: It sampled another number of rows.
        """
        if state["num_rows"] != self.num_rows:
            raise ValueError(
                f"the state is of num_rows={state['num_rows']}, this dataset has {self.num_rows}; "
                f"go on with the dataset that was sampled"
            )
        self.seed, self.shuffle = state["seed"], state["shuffle"]
        self.epoch, self.consumed = state["epoch"], state["consumed"]

    @property
    def _end(self) -> int:
        """Rows of an epoch that are given out."""
        rest = self.num_rows % self.batch_size if self.drop_last else 0
        return self.num_rows - rest

    def _share(self, batch: Ints) -> Ints:
        edges = [len(batch) * rank // self.world for rank in (self.rank, self.rank + 1)]
        return batch[edges[0] : edges[1]]


@lru_cache(maxsize=2)
def _order(num_rows: int, seed: int | None, epoch: int) -> Ints:
    if seed is None:
        order = np.arange(num_rows)
    else:
        order = np.random.default_rng([seed, epoch]).permutation(num_rows)
    order.flags.writeable = False
    return order
