"""Tensor parallel layers; with ``group=None`` each is the plain layer.

A column layer holds some output rows of its matrix and a row layer the matching input columns, so
a pair of them needs one sum forward and one backward. q, k and v (and gate and up) are one column
layer: one matrix product, and one sum of the input's gradient instead of three.

Shape legend: T = packed tokens, C = hidden size.
"""

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from nanorlhf.nanokernels import rms_norm

from .collectives import copy_to_group, reduce_from_group

Group = dist.ProcessGroup | None


class ColumnLinear(nn.Module):
    """``x @ weight.T + bias`` for this rank's output rows."""

    def __init__(self, weight: nn.Parameter, *, bias: nn.Parameter | None, group: Group) -> None:
        super().__init__()
        self.weight, self.bias, self.group = weight, bias, group

    def forward(self, x: Tensor) -> Tensor:
        """Return this rank's columns [T, rows / tp]; ``x`` [T, C] is whole on every rank."""
        return F.linear(copy_to_group(x, self.group), self.weight, self.bias)


class RowLinear(nn.Module):
    """``x @ weight.T + bias`` for this rank's input columns, summed over the group."""

    def __init__(self, weight: nn.Parameter, *, bias: nn.Parameter | None, group: Group) -> None:
        super().__init__()
        self.weight, self.bias, self.group = weight, bias, group

    def forward(self, x: Tensor) -> Tensor:
        """Return the whole result on every rank; the bias is added once, after the sum."""
        out = reduce_from_group(F.linear(x, self.weight), self.group)
        return out if self.bias is None else out + self.bias


class VocabEmbedding(nn.Module):
    """Token embedding with the vocabulary cut over the group."""

    def __init__(self, weight: nn.Parameter, *, vocab_start: int, group: Group) -> None:
        super().__init__()
        self.weight, self.vocab_start, self.group = weight, vocab_start, group

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [T, C] of ``tokens`` [T], whole on every rank."""
        if self.group is None:
            return F.embedding(tokens, self.weight)
        local = tokens - self.vocab_start
        inside = (local >= 0) & (local < len(self.weight))
        rows = F.embedding(local.where(inside, local.new_zeros(())), self.weight)
        return reduce_from_group(rows * inside[:, None], self.group)


class RMSNorm(nn.Module):
    """Root mean square normalisation of the last dimension."""

    def __init__(self, weight: nn.Parameter, *, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised rows in the dtype of ``x``."""
        return rms_norm(x, self.weight, eps=self.eps)
