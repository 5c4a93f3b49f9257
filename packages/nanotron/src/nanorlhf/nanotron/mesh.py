"""Which rank does what: the grid of data, pipeline and tensor parallel ranks.

Ranks run through the grid with tp fastest, then pp, then dp, so that a tensor parallel group,
which talks most, sits on neighbouring devices of one host::

    rank = (dp_rank * pp + pp_rank) * tp + tp_rank

`Grid` is that arithmetic alone; `Mesh` adds the process groups of the calling rank.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch.distributed as dist

Axis = Literal["dp", "pp", "tp"]


class Coordinates(NamedTuple):
    """The place of one rank in the grid."""

    dp: int
    pp: int
    tp: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Sizes of the three axes.

    >>> Grid(dp=2, pp=2, tp=2).coordinates(5)
    Coordinates(dp=1, pp=0, tp=1)
    >>> Grid(dp=2, pp=1, tp=2).lines("dp")
    [(0, 2), (1, 3)]
    """

    dp: int = 1
    pp: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        for axis in ("dp", "pp", "tp"):
            if getattr(self, axis) < 1:
                raise ValueError(f"{axis}={getattr(self, axis)}: every axis has at least 1 rank")

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.dp * self.pp * self.tp

    def coordinates(self, rank: int) -> Coordinates:
        """Return where ``rank`` stands."""
        rest, tp = divmod(rank, self.tp)
        dp, pp = divmod(rest, self.pp)
        return Coordinates(dp, pp, tp)

    def rank(self, at: Coordinates) -> int:
        """Return the rank that stands at ``at``; inverse of `coordinates`."""
        return (at.dp * self.pp + at.pp) * self.tp + at.tp

    def lines(self, *axes: Axis) -> list[tuple[int, ...]]:
        """Return the groups of ranks that differ along ``axes`` only, in rank order."""
        fixed: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.size):
            at = self.coordinates(rank)._asdict()
            key = tuple(value for axis, value in at.items() if axis not in axes)
            fixed.setdefault(key, []).append(rank)
        return [tuple(line) for line in fixed.values()]


class Mesh:
    """The grid as seen by this process, with its process groups.

    A group is None where it would hold one rank, and every collective of this package is a no-op
    then; so ``Mesh()`` in one process needs no ``torch.distributed`` at all. With more than one
    rank the constructor is collective: every rank of the world must call it.

    Attributes:
        dp_group, pp_group, tp_group: Ranks that differ along that axis only.
        model_group: The pp x tp ranks of one replica.
        tied_group: First and last pipeline stage, which share tied embeddings; None in between.
        forward_wire, backward_wire: The pipeline's point-to-point groups. One direction each, so
            that every edge is a FIFO: NCCL ignores tags and runs a pair's messages in order.

    Raises:
        ValueError: dp * pp * tp is not the world size.

    >>> mesh = Mesh()
    >>> mesh.world_size, mesh.is_first_stage, mesh.is_last_stage, mesh.tp_group
    (1, True, True, None)
    """

    def __init__(self, *, dp: int = 1, pp: int = 1, tp: int = 1) -> None:
        self.grid = Grid(dp=dp, pp=pp, tp=tp)
        started = dist.is_available() and dist.is_initialized()
        self.world_size = dist.get_world_size() if started else 1
        self.rank = dist.get_rank() if started else 0
        if self.grid.size != self.world_size:
            raise ValueError(
                f"dp={dp} * pp={pp} * tp={tp} = {self.grid.size} ranks, but the world has "
                f"{self.world_size}; launch {self.grid.size} processes and call "
                f"torch.distributed.init_process_group, or change the layout"
            )
        self.dp, self.pp, self.tp = dp, pp, tp
        self.dp_rank, self.pp_rank, self.tp_rank = self.grid.coordinates(self.rank)
        made: dict[tuple[int, ...], dist.ProcessGroup] = {}
        self.dp_group = self._join(self.grid.lines("dp"), made)
        self.pp_group = self._join(self.grid.lines("pp"), made)
        self.tp_group = self._join(self.grid.lines("tp"), made)
        self.model_group = self._join(self.grid.lines("pp", "tp"), made)
        ends: list[tuple[int, ...]] = [(line[0], line[-1]) for line in self.grid.lines("pp")]
        self.tied_group = self._join(ends if pp > 1 else [], made)
        self.forward_wire = self._join(self.grid.lines("pp"), {})
        self.backward_wire = self._join(self.grid.lines("pp"), {})

    def _join(
        self, lines: list[tuple[int, ...]], made: dict[tuple[int, ...], dist.ProcessGroup]
    ) -> dist.ProcessGroup | None:
        """Create every group of ``lines`` (all ranks must) and return the one this rank is in."""
        mine = None
        for line in lines:
            if len(line) > 1 and line not in made:
                group = dist.new_group(list(line))
                # Ranks outside the group get a placeholder, which they never look up.
                if isinstance(group, dist.ProcessGroup):
                    made[line] = group
            if self.rank in line:
                mine = made.get(line)
        return mine

    @property
    def is_first_stage(self) -> bool:
        """This rank embeds tokens."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """This rank computes outputs and losses."""
        return self.pp_rank == self.pp - 1

    def stage_rank(self, stage: int) -> int:
        """Return the global rank of pipeline stage ``stage`` in this rank's column."""
        return self.grid.rank(Coordinates(self.dp_rank, stage, self.tp_rank))

    def barrier(self) -> None:
        """Wait for every rank of the world."""
        if self.world_size > 1:
            dist.barrier()

    def __repr__(self) -> str:
        return f"Mesh(dp={self.dp}, pp={self.pp}, tp={self.tp}, rank={self.rank})"
