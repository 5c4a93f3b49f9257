"""Optimizer state on disk: each rank's shard as it lies in memory, and what it is a piece of.

A shard is one flat vector a moment. Beside it stands, for every tensor in it, which rows or columns
of the full tensor this tp rank holds and which range of the flattened slice lies where. A reader of
another layout intersects those ranges with its own; a reader of the same layout finds each of its
ranges in one piece.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError
from .mesh import Mesh
from .spec import ParamSpec
from .weights import TensorFiles
from .zero import Segment, ShardedOptimizer


class Piece(NamedTuple):
    """A range of one tensor's state in one file."""

    name: str
    tp: int
    """The tensor was cut into this many slices (1 when whole)."""
    tp_rank: int
    """Which slice this is of."""
    start: int
    """First element in the flattened slice."""
    stop: int
    offset: int
    """First element in the file's vectors."""
    file: str


def write_optimizer(folder: Path, optimizer: ShardedOptimizer) -> None:
    """Write this rank's shard, unless another rank writes an equal one."""
    mesh = optimizer.mesh
    if optimizer.index != mesh.dp_rank:
        return
    file = f"rank_{mesh.rank:05d}.safetensors"
    segments = [s for s in optimizer.segments() if _writes(s, mesh)]
    pieces = [_piece(segment, mesh, file) for segment in segments]
    save_file({k: v.cpu() for k, v in _vectors(optimizer).items()}, folder / file)
    (folder / f"rank_{mesh.rank:05d}.json").write_text(json.dumps(pieces))


def _vectors(optimizer: ShardedOptimizer) -> dict[str, Tensor]:
    """Return the flat vectors to keep; master weights only where they say more than the weights."""
    adam = optimizer.adam
    vectors = {"exp_avg": adam.exp_avg, "exp_avg_sq": adam.exp_avg_sq}
    if adam.master.dtype != optimizer.flat.data.dtype:
        vectors["master"] = adam.master
    return vectors


def _writes(segment: Segment, mesh: Mesh) -> bool:
    """Return whether this rank is the one that answers for the segment."""
    spec = segment.slot.spec
    return spec.stages[0] == mesh.pp_rank and (spec.shard_dim is not None or mesh.tp_rank == 0)


def _piece(segment: Segment, mesh: Mesh, file: str) -> Piece:
    """Return where a segment of this rank stands in the full tensor."""
    spec = segment.slot.spec
    tp, tp_rank = (1, 0) if spec.shard_dim is None else (mesh.tp, mesh.tp_rank)
    return Piece(spec.name, tp, tp_rank, segment.start, segment.stop, segment.offset, file)


class _Reader(TensorFiles):
    """The optimizer files of a checkpoint and the pieces of each tensor in them."""

    def __init__(self, folder: Path, pieces: dict[str, list[Piece]]) -> None:
        super().__init__()
        self.folder, self.pieces = folder, pieces

    def has(self, vector: str) -> bool:
        """Return whether the checkpoint keeps ``vector``."""
        first = next(iter(self.pieces.values()))[0]
        return vector in list(self.file(self.folder / first.file).keys())

    def fill(self, out: Tensor, vector: str, spec: ParamSpec, wanted: Piece) -> None:
        """Fill ``out`` with the range ``wanted`` of one tensor's state."""
        found = self.pieces.get(spec.name, [])
        same = [p for p in found if (p.tp, p.tp_rank) == (wanted.tp, wanted.tp_rank)]
        if same:
            filled = self._fill_range(out, vector, same, wanted.start)
        else:
            full = torch.empty(spec.shape, dtype=out.dtype)
            filled = self._fill_full(full, vector, spec, found)
            local = full[spec.local_slices(wanted.tp, wanted.tp_rank)]
            out.copy_(local.reshape(-1)[wanted.start : wanted.stop])
        if not filled:
            raise CheckpointError(f"{self.folder}: {vector} of {spec.name} is incomplete")

    def _fill_range(self, out: Tensor, vector: str, pieces: list[Piece], start: int) -> bool:
        """Copy what the pieces have of [start, start + len(out)); False unless all of it."""
        left = len(out)
        for piece in pieces:
            low, high = max(piece.start, start), min(piece.stop, start + len(out))
            if low < high:
                at = piece.offset + low - piece.start
                file = self.file(self.folder / piece.file)
                source = file.get_slice(vector)[at : at + high - low]
                out[low - start : high - start].copy_(source)
                left -= high - low
        return left == 0

    def _fill_full(self, full: Tensor, vector: str, spec: ParamSpec, found: list[Piece]) -> bool:
        """Assemble a full tensor from the slices of another tp size; False unless complete."""
        slices = {(piece.tp, piece.tp_rank) for piece in found}
        complete = bool(slices) and len(slices) == max(tp for tp, _ in slices)
        for tp, tp_rank in slices:
            local = torch.empty(spec.local_shape(tp), dtype=full.dtype)
            mine = [p for p in found if (p.tp, p.tp_rank) == (tp, tp_rank)]
            complete = self._fill_range(local.view(-1), vector, mine, 0) and complete
            full[spec.local_slices(tp, tp_rank)] = local
        return complete


@torch.no_grad()
def read_optimizer(folder: Path, optimizer: ShardedOptimizer) -> None:
    """Fill this rank's shard from a checkpoint of any layout.

    Raises:
        CheckpointError: There is no optimizer state, or a part of it is missing.
    """
    indexes = sorted(folder.glob("rank_*.json"))
    if not indexes:
        raise CheckpointError(
            f"{folder}: no optimizer state (rank_*.json); the checkpoint was saved by an engine "
            f"without an optimizer, load it with Qwen3.from_pretrained"
        )
    pieces: dict[str, list[Piece]] = {}
    for index in indexes:
        for row in json.loads(index.read_text()):
            piece = Piece(*row)
            pieces.setdefault(piece.name, []).append(piece)
    with _Reader(folder, pieces) as reader:
        adam = optimizer.adam
        vectors = {"exp_avg": adam.exp_avg, "exp_avg_sq": adam.exp_avg_sq}
        if optimizer.has_master and reader.has("master"):
            vectors["master"] = adam.master
        for segment in optimizer.segments():
            wanted = _piece(segment, optimizer.mesh, "")
            length = segment.stop - segment.start
            for name, vector in vectors.items():
                out = vector[segment.offset : segment.offset + length]
                reader.fill(out, name, segment.slot.spec, wanted)
