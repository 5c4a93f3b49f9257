"""Each token's logit of one row of the vocabulary: read from hidden states, written into gradients.

The product of a block of tokens with the rows their targets pick is a small square, of which the
diagonal is wanted::

    h[0]   x . . .           x = h[t] . W[rows[t]]
    h[1]   . x . .
    h[2]   . . x .           columns: W[rows[0]], W[rows[1]], ...

It is done on tensor cores, a waste of 63 of 64 FLOPs, for the sake of its rounding: they cut off
where they add, and the logit of a target must be cut as it is in the log-sum-exp of all (see
:mod:`.vocab_tiles`), or a sure token's log-probability is all rounding.

Shape legend: T = tokens, C = hidden size, V = rows of the weight.
"""

import torch
from torch import Tensor

from .dispatch import cdiv, jit_varying, launch, tl

BLOCK, BLOCK_K = 64, 64
NUM_WARPS, NUM_STAGES = 4, 3
BUFFER_COLUMNS = 64


@jit_varying("tokens", "vocab")
def _picked_kernel(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    row_ptr: tl.tensor,
    y_ptr: tl.tensor,
    tokens: tl.tensor,
    vocab: tl.tensor,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < tokens
    row = tl.load(row_ptr + token, mask=inside, other=-1)
    owned = (row >= 0) & (row < vocab)
    column = tl.arange(0, BLOCK_K)
    x_at = x_ptr + token.to(tl.int64)[:, None] * C + column[None, :]
    w_at = w_ptr + tl.where(owned, row, 0)[None, :] * C + column[:, None]
    y = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, C, BLOCK_K):
        real = k + column < C
        x = tl.load(x_at + k, mask=inside[:, None] & real[None, :], other=0.0)
        w = tl.load(w_at + k, mask=owned[None, :] & real[:, None], other=0.0)
        y = tl.dot(x, w, y, input_precision="tf32x3")
    lane = tl.arange(0, BLOCK)
    diagonal = tl.sum(tl.where(lane[:, None] == lane[None, :], y, 0.0), 1)
    tl.store(y_ptr + token, diagonal, mask=inside)


def picked_logits(hidden_TC: Tensor, weight_VC: Tensor, rows_T: Tensor) -> Tensor:
    """Return float32 [T], each token's logit of one row of the weight; 0 outside [0, V).

    Both matrices as :func:`.vocab_tiles.aligned` returns them.
    """
    tokens, width = hidden_TC.shape
    picked = hidden_TC.new_empty(tokens, dtype=torch.float32)
    if tokens:
        launch(
            _picked_kernel,
            (cdiv(tokens, BLOCK),),
            *(hidden_TC, weight_VC, rows_T, picked, tokens, weight_VC.shape[0]),
            C=width,
            BLOCK=BLOCK,
            BLOCK_K=BLOCK_K,
            num_warps=NUM_WARPS,
            num_stages=NUM_STAGES,
        )
    return picked


def logits_buffer(tokens: int, vocab: int, like: Tensor) -> Tensor:
    """Return uninitialised [T, V + 1 or more]; column V is for what no word is meant to get."""
    return like.new_empty(tokens, cdiv(vocab + 1, BUFFER_COLUMNS) * BUFFER_COLUMNS)


def write_picked(out_TV: Tensor, values_T: Tensor, rows_T: Tensor, vocab: int) -> None:
    """Write ``out[t, rows[t]] = values[t]``, into column V for rows outside [0, V)."""
    column = rows_T.where((rows_T >= 0) & (rows_T < vocab), vocab)
    out_TV.scatter_(1, column[:, None], values_T[:, None].to(out_TV.dtype))
