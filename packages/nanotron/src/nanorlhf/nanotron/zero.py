"""Data parallelism: reduce gradients, update the owned shard, gather weights.

ZeRO stage 1 (Rajbhandari et al., arXiv:1910.02054): each data parallel rank owns an equal piece of
every bucket, so gradients are reduce-scattered, AdamW runs on the owned pieces with float32 master
weights, and the new weights are gathered. Stage 0 owns everything everywhere and all-reduces: the
same code with one shard.

All reductions are sums. In order: partial gradients over tp, everything over dp, tied embeddings
between the two stages that hold them.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import all_reduce_
from .flat import Bucket, FlatParameters, Slot, master_dtype
from .optimizer import AdamW, AdamWConfig, Run


class Segment(NamedTuple):
    """A piece of one tensor inside this rank's shard."""

    slot: Slot
    start: int
    """First element, counted in the flattened local slice of the tensor."""
    stop: int
    offset: int
    """Where it begins in the shard."""


class ShardedOptimizer:
    """AdamW whose state is cut over the data parallel ranks.

    Args:
        flat: Parameters; their gradient buffer is allocated here.
        config: AdamW settings.
        zero: 1 cuts the state over dp, 0 repeats it on every dp rank.
    """

    def __init__(self, flat: FlatParameters, config: AdamWConfig, *, zero: int) -> None:
        self.flat, self.mesh = flat, flat.mesh
        self.shards = self.mesh.dp if zero else 1
        self.index = self.mesh.dp_rank if zero else 0
        full = flat.allocate_grad()
        size = flat.layout.size // self.shards
        wide = master_dtype(flat.data.dtype)
        self.grad = full if self.shards == 1 else torch.zeros(size, dtype=wide, device=full.device)
        # With nothing to cut or widen, the parameters are their own master weights.
        self.has_master = self.shards > 1 or flat.data.dtype != wide
        master = torch.zeros_like(self.grad) if self.has_master else flat.data
        runs = _merge([self._run(segment) for segment in self.segments()])
        self.adam = AdamW(master, runs, config)
        self.counted = _merge([run._replace(decay=False) for run in runs if run.counted])
        self.refresh_master()

    def segments(self) -> list[Segment]:
        """Return the pieces of tensors in this rank's shard, in shard order."""
        found = []
        for bucket in self.flat.layout.buckets:
            begin, end = self._owned(bucket)
            shift = bucket.start // self.shards - begin
            for slot in self.flat.layout.slots:
                start, stop = max(begin, slot.start), min(end, slot.stop)
                if start < stop:
                    at = start - slot.start
                    found.append(Segment(slot, at, at + stop - start, start + shift))
        return found

    def _run(self, segment: Segment) -> Run:
        """Return the segment as a range of the shard."""
        stop = segment.offset + segment.stop - segment.start
        return self.flat.runs(segment.slot)._replace(start=segment.offset, stop=stop)

    def _owned(self, bucket: Bucket) -> tuple[int, int]:
        """Return the range of the flat buffer that this rank owns in a bucket."""
        width = (bucket.stop - bucket.start) // self.shards
        start = bucket.start + self.index * width
        return start, start + width

    def _piece(self, buffer: Tensor, bucket: Bucket) -> Tensor:
        """Return the bucket's part of a shard buffer."""
        return buffer[bucket.start // self.shards : bucket.stop // self.shards]

    def zero_grad(self) -> None:
        """Clear the gradients."""
        self.flat.allocate_grad().zero_()

    def reduce(self) -> None:
        """Sum the gradients over every group that holds a part of them; collective."""
        full = self.flat.allocate_grad()
        self.reduce_partial(full[: self.flat.layout.partial])
        if self.mesh.dp_group is not None:
            pending = [self._reduce_bucket(full, b) for b in self.flat.layout.buckets]
            for work in pending:
                work.wait()
        for bucket in self.flat.layout.buckets:
            if bucket.tied:
                self.reduce_tied(self._piece(self.grad, bucket))

    def reduce_partial(self, grad: Tensor) -> None:
        """Sum gradients of whole weights that act on one tp rank's heads (q_norm, k_norm)."""
        if grad.numel():
            all_reduce_(grad, self.mesh.tp_group)

    def reduce_tied(self, grad: Tensor) -> None:
        """Sum the gradients that both copies of a tied embedding got, once."""
        all_reduce_(grad, self.mesh.tied_group)

    def _reduce_bucket(self, full: Tensor, bucket: Bucket) -> dist.Work:
        """Start the sum of one bucket over the data parallel ranks."""
        whole = full[bucket.start : bucket.stop]
        group = self.mesh.dp_group
        if self.shards == 1:
            work: dist.Work | None = dist.all_reduce(whole, group=group, async_op=True)
        else:
            piece = self._piece(self.grad, bucket)
            work = dist.reduce_scatter_tensor(piece, whole, group=group, async_op=True)
        assert work is not None, "async collectives return a handle to members of the group"
        return work

    def norm(self) -> Tensor:
        """Return the norm of the global gradient: every element counted once, equal everywhere."""
        squares = self.grad.new_zeros(())
        for run in self.counted:
            squares += torch.linalg.vector_norm(self.grad[run.start : run.stop]).square()
        if self.shards > 1:
            dist.all_reduce(squares)
        else:
            all_reduce_(squares, self.mesh.model_group)
        return squares.sqrt()

    @torch.no_grad()
    def step(self, *, scale: float = 1.0, lr: float | None = None) -> None:
        """Scale the gradients, update the owned weights and publish them; collective."""
        if scale != 1.0:
            self.grad.mul_(scale)
        self.adam.step(self.grad, lr=lr)
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Write the master weights into the parameters of every data parallel rank."""
        if not self.has_master:
            return
        data = self.flat.data
        for bucket in self.flat.layout.buckets:
            piece = self._piece(self.adam.master, bucket).to(data.dtype)
            whole = data[bucket.start : bucket.stop]
            if self.shards == 1:
                whole.copy_(piece)
            else:
                dist.all_gather_into_tensor(whole, piece, group=self.mesh.dp_group)

    @torch.no_grad()
    def refresh_master(self) -> None:
        """Copy the parameters into the master weights, after the parameters were set."""
        if self.has_master:
            for bucket in self.flat.layout.buckets:
                start, stop = self._owned(bucket)
                self._piece(self.adam.master, bucket).copy_(self.flat.data[start:stop])

    @torch.no_grad()
    def full_grad(self) -> Tensor:
        """Return the reduced gradient of the whole flat buffer; collective over dp."""
        if self.shards == 1:
            return self.grad
        full = torch.empty_like(self.flat.allocate_grad())
        for bucket in self.flat.layout.buckets:
            piece = self._piece(self.grad, bucket)
            whole = full[bucket.start : bucket.stop]
            dist.all_gather_into_tensor(whole, piece, group=self.mesh.dp_group)
        return full


def _merge(runs: list[Run]) -> list[Run]:
    """Join neighbouring runs that are treated alike; gaps between slots are padding, all zero."""
    merged: list[Run] = []
    for run in runs:
        if merged and merged[-1][2:] == run[2:]:
            merged[-1] = merged[-1]._replace(stop=run.stop)
        else:
            merged.append(run)
    return merged
