"""Sums whose order never changes: of the parts that programs leave, of pairs in a reduction.

The gradient of a weight is a sum over all rows. A kernel's programs each sum the rows they own and
write one part; adding those with atomics would add them in the order the programs finish, so a
second, small kernel does it instead.
"""

from typing import Any

import torch
from torch import Tensor

from .dispatch import cdiv, jit, jit_varying, launch, tl

SUM_BLOCKS = {"BLOCK_PARTS": 128, "BLOCK_N": 8}
SUM_WARPS = 4


@jit
def add_pairs(a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor) -> tuple[Any, Any]:
    """Return the two sums of a reduction over pairs."""
    return a + c, b + d


@jit_varying("split", "parts")
def _sum_parts_kernel(
    parts_ptr: tl.tensor,
    out_ptr: tl.tensor,
    split: tl.tensor,
    parts: tl.tensor,
    N: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Row 0 of the output sums parts [0, split), row 1 the rest."""
    second = tl.program_id(1)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    end = tl.where(second == 0, split, parts)
    total = tl.zeros((BLOCK_PARTS, BLOCK_N), tl.float32)
    for start in tl.range(second * split, end, BLOCK_PARTS):
        part = start + tl.arange(0, BLOCK_PARTS)
        inside = (part < end)[:, None] & (column < N)[None, :]
        total += tl.load(parts_ptr + (part * N)[:, None] + column[None, :], mask=inside, other=0.0)
    out = tl.sum(total, axis=0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + second * N + column, out, mask=column < N)


def sum_parts(parts: Tensor, dtype: torch.dtype, *, split: int | None = None) -> Tensor:
    """Return the sum [N] of float32 parts [P, N], always added up in the same order.

    With ``split`` return two sums, [2, N]: of the parts before it and of the others.
    """
    count, width = parts.shape
    shape = (width,) if split is None else (2, width)
    out = torch.empty(shape, dtype=dtype, device=parts.device)
    launch(
        _sum_parts_kernel,
        (cdiv(width, SUM_BLOCKS["BLOCK_N"]), len(shape)),
        parts,
        out,
        count if split is None else split,
        count,
        N=width,
        **SUM_BLOCKS,
        num_warps=SUM_WARPS,
    )
    return out
