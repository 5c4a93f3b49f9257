"""Backward of attention, in two passes that never add to the same memory.

With p recomputed from the saved log-sum-exp and ``do`` the gradient of the output::

    p = exp(scale q k^T - lse)         delta = sum(do * o)
    dp = do v^T                        ds = p (dp - delta)
    dq = scale ds k                    dk = scale ds^T q           dv = p^T do

The first pass (:mod:`.backward_dq`) owns a tile of queries, walks over the keys it sees and writes
dq; the second (:mod:`.backward_dkdv`) owns a tile of keys of one KV head, walks over the queries
that see it, of all GROUP query heads in turn, and writes dk and dv::

    first   query tile  x  keys ->         second  key tile  x  queries of head 0, 1, ... ->

Each computes p for itself: 7 matrix products (14 D FLOPs a visible pair) where one pass with atomic
adds takes 5. In exchange nothing is added atomically, so two runs agree to the last bit, and
grouped KV heads need no expanded copy. Tiles that the mask hides are skipped in both passes. On
Hopper 16-bit inputs go to :mod:`.gluon_dq` and :mod:`.gluon_dkdv`, the same two passes.

Shape legend: T = packed query tokens, S = packed key tokens, B = batch, H = query heads, K = KV
heads, D = head dimension.
"""

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from nanorlhf.nanokernels.attention.backward_dkdv import launch_dkdv
from nanorlhf.nanokernels.attention.backward_dq import launch_dq
from nanorlhf.nanokernels.attention.forward import suits_gluon
from nanorlhf.nanokernels.attention.packed import Batch, Mask, Packed, Rows, as_rows
from nanorlhf.nanokernels.configs import Config, table

if TYPE_CHECKING:
    from nanorlhf.nanokernels.tune import Tunable


class Grads(NamedTuple):
    """Gradients of attention's three inputs, in their shapes."""

    q: Tensor
    k: Tensor
    v: Tensor


def launch_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse_HT: Tensor,
    grad_o: Tensor,
    *,
    queries: Packed | None,
    keys: Packed | None,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    dq_config: Config | None = None,
    dkdv_config: Config | None = None,
) -> Grads:
    """Return the gradients of attention from what its forward saved.

    Packed [T, H, D] with ``queries`` and ``keys``, dense [B, S, H, D] with neither.
    """
    if not q.numel() or not k.numel():
        return Grads(*(torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)))
    if queries is None or keys is None:
        batch = Batch(q.shape[0], None, None, q.shape[1], k.shape[1])
    else:
        batch = Batch(queries.num_sequences, queries.cu_seqlens, keys.cu_seqlens, 0, 0)
    rows = Rows(*(as_rows(x.flatten(0, -3)) for x in (q, k, v, grad_o)))
    if dq_config is None and dkdv_config is None and suits_gluon(q):
        from nanorlhf.nanokernels.attention import gluon_dkdv, gluon_dq

        mask = Mask(_as_packed(batch, q.device), scale, causal, window)
        dq, stats = gluon_dq.launch(rows, o, lse_HT, mask)
        dk, dv = gluon_dkdv.launch(rows, stats, mask)
    else:
        key = f"{q.shape[-1]}/{q.element_size()}"
        dq_config = dq_config or table("attention_dq")[key]
        dkdv_config = dkdv_config or table("attention_dkdv")[key]
        mask = Mask(batch, scale, causal, window)
        dq, stats = launch_dq(rows, o, lse_HT, mask, dq_config)
        dk, dv = launch_dkdv(rows, stats, mask, dkdv_config, slots=dq_config["block_m"])
    return Grads(dq.view(q.shape), dk.view(k.shape), dv.view(v.shape))


def _as_packed(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with where its sequences start written out, dense or not."""
    if not batch.dense:
        return batch
    lengths = (batch.q_length, batch.k_length)
    q, k = (
        torch.arange(0, (batch.sequences + 1) * n, n, dtype=torch.int32, device=device)
        for n in lengths
    )
    return batch._replace(cu_q=q, cu_k=k)


def _prepare(dim: int, *, first: bool) -> Callable[[Config], Tensor]:
    """Return a function that runs the backward with a choice for its first or second pass."""
    from nanorlhf.nanokernels.attention.forward import launch_forward

    q, k, v, do = (
        torch.randn(4, 4096, heads, dim, device="cuda", dtype=torch.bfloat16)
        for heads in (16, 8, 8, 16)
    )
    scale = dim**-0.5
    o, lse = launch_forward(q, k, v, queries=None, keys=None, scale=scale)

    def run(config: Config) -> Tensor:
        at = (q, k, v, o, lse, do)
        if first:
            return launch_backward(*at, queries=None, keys=None, scale=scale, dq_config=config).q
        grads = launch_backward(*at, queries=None, keys=None, scale=scale, dkdv_config=config)
        return torch.cat((grads.k, grads.v))

    return run


def tunables() -> "Iterator[Tunable]":
    """Yield the choices of launch parameters of both passes, for 4 sequences of 4,096 tokens.

    Those of :mod:`.gluon_dq` and :mod:`.gluon_dkdv` fill registers and shared memory to the brim.
    """
    from nanorlhf.nanokernels.tune import Tunable

    tiles = {"dq": ((64, 64), (128, 64)), "dkdv": ((64, 64), (32, 64), (64, 128))}
    for side, sizes in tiles.items():
        candidates = [
            {"block_m": m, "block_n": n, "num_warps": warps, "num_stages": stages}
            for m, n in sizes
            for warps, stages in ((4, 2), (4, 3), (8, 3))
        ]
        for dim in (64, 128):
            prepare = functools.partial(_prepare, dim, first=side == "dq")
            yield Tunable(f"attention_{side}", f"{dim}/2", candidates, prepare)
