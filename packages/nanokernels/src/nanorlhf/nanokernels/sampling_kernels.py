r"""The kernels of sampling: a scan by chunks, then one program a row that draws.

::

    logits [B, V]   | chunk 0 | chunk 1 | chunk 2 | ...     program (chunk, row): maximum, sums,
                         \         |        /               the best token of a row without limits
                          \        |       /
                     program (row): put together; find the cut, draw from what is kept

A chunk leaves six numbers: its maximum; the sums of exponentials at temperature 1 and at the row's,
both over the chunk's own maximum; its smallest finite logit and how many are finite, where the
search for a cut starts; the best score of a draw without limits. And two tokens: the likeliest, and
the one with that score.

Memory bound where no row has limits: V elements are read once. A row with limits is read again two
to ten times, and its program alone reads it.

Shape legend: B = rows, V = vocabulary.
"""

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .configs import Config, table
from .dispatch import cdiv, jit, launch, next_power_of_2, tl
from .gumbel import noise, row_keys
from .truncation import draw_truncated

if TYPE_CHECKING:
    from .tune import Tunable

KEY_SHIFT = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 13}
"""Low bits of a float32 that are 0 in every number of the dtype."""


@jit
def _row(
    temperature_ptr: tl.tensor,
    top_k_ptr: tl.tensor,
    top_p_ptr: tl.tensor,
    min_p_ptr: tl.tensor,
    row: tl.tensor,
    vocab: tl.tensor,
    HAS_K: tl.constexpr,
    HAS_P: tl.constexpr,
    HAS_MIN: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return a row's temperature, top-k (0 for none), top-p and min-p."""
    temperature = tl.load(temperature_ptr + row).to(tl.float32)
    top_k = tl.load(top_k_ptr + row).to(tl.int32) if HAS_K else 0
    top_k = tl.where(top_k < vocab, top_k, 0)
    top_p = tl.load(top_p_ptr + row).to(tl.float32) if HAS_P else 1.0
    min_p = tl.load(min_p_ptr + row).to(tl.float32) if HAS_MIN else 0.0
    return temperature, top_k, top_p, min_p


@jit
def _scan_kernel(
    logits_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    top_k_ptr: tl.tensor,
    top_p_ptr: tl.tensor,
    min_p_ptr: tl.tensor,
    seeds_ptr: tl.tensor,
    steps_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    picks_ptr: tl.tensor,
    vocab: tl.tensor,
    stride_row: tl.tensor,
    HAS_K: tl.constexpr,
    HAS_P: tl.constexpr,
    HAS_MIN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    row = tl.program_id(1).to(tl.int64)
    temperature, top_k, top_p, min_p = _row(
        temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab, HAS_K, HAS_P, HAS_MIN
    )
    column = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = column < vocab
    x = tl.load(logits_ptr + row * stride_row + column, mask=inside, other=-float("inf"))
    x = x.to(tl.float32)
    peak = tl.max(x, axis=0)
    highest = tl.min(tl.where(inside & (x == peak), column, vocab), axis=0)
    below = x - tl.where(peak == -float("inf"), 0.0, peak)
    finite = x > -float("inf")
    sums = sums_ptr + row * 6 * chunks + chunk
    tl.store(sums, peak)
    tl.store(sums + chunks, tl.sum(tl.exp(below), axis=0))
    is_drawn = temperature > 0.0
    best = -float("inf")
    winner = highest
    if is_drawn:
        scaled = below / temperature
        tl.store(sums + 2 * chunks, tl.sum(tl.exp(scaled), axis=0))
        tl.store(sums + 3 * chunks, tl.min(tl.where(finite, x, float("inf")), axis=0))
        tl.store(sums + 4 * chunks, tl.sum(finite.to(tl.float32), axis=0))
        if (top_k == 0) & (top_p >= 1.0) & (min_p <= 0.0):
            first, second = row_keys(tl.load(seeds_ptr + row), tl.load(steps_ptr + row))
            score = scaled + noise(first, second, column)
            best = tl.max(score, axis=0)
            winner = tl.min(tl.where(inside & (score == best), column, vocab), axis=0)
    tl.store(sums + 5 * chunks, best)
    tl.store(picks_ptr + row * 2 * chunks + chunk, highest)
    tl.store(picks_ptr + row * 2 * chunks + chunks + chunk, winner)


@jit
def _draw_kernel(
    logits_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    top_k_ptr: tl.tensor,
    top_p_ptr: tl.tensor,
    min_p_ptr: tl.tensor,
    seeds_ptr: tl.tensor,
    steps_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    picks_ptr: tl.tensor,
    found_ptr: tl.tensor,
    column_ptr: tl.tensor,
    token_ptr: tl.tensor,
    logprob_ptr: tl.tensor,
    raw_ptr: tl.tensor,
    share_ptr: tl.tensor,
    vocab: tl.tensor,
    chunks: tl.tensor,
    stride_row: tl.tensor,
    HAS_K: tl.constexpr,
    HAS_P: tl.constexpr,
    HAS_MIN: tl.constexpr,
    CHUNKS: tl.constexpr,
    FEW: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    temperature, top_k, top_p, min_p = _row(
        temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab, HAS_K, HAS_P, HAS_MIN
    )
    x_ptr = logits_ptr + row * stride_row
    chunk = tl.arange(0, CHUNKS)
    real = chunk < chunks
    sums = sums_ptr + row * 6 * chunks + chunk
    picks = picks_ptr + row * 2 * chunks + chunk
    peaks = tl.load(sums, mask=real, other=-float("inf"))
    peak = tl.max(peaks, axis=0)
    highest = tl.load(picks, mask=real & (peaks == peak), other=2**31 - 1)
    token = tl.min(highest, axis=0)
    behind = peaks - peak
    raw = tl.sum(tl.load(sums + chunks, mask=real, other=0.0) * tl.exp(behind), axis=0)
    logprob = 0.0
    share = 1.0
    if temperature > 0.0:
        inverse = 1.0 / temperature
        scaled = tl.load(sums + 2 * chunks, mask=real, other=0.0)
        total = tl.sum(scaled * tl.exp(behind * inverse), axis=0)
        mass = total
        if (top_k == 0) & (top_p >= 1.0) & (min_p <= 0.0):
            score = tl.load(sums + 5 * chunks, mask=real, other=-float("inf")) + behind * inverse
            winners = tl.load(picks + chunks, mask=real, other=2**31 - 1)
            token = tl.min(tl.where(score == tl.max(score, axis=0), winners, 2**31 - 1), axis=0)
        else:
            if HAS_K or HAS_P or HAS_MIN:
                low = tl.min(tl.load(sums + 3 * chunks, mask=real, other=float("inf")), axis=0)
                finite = tl.sum(tl.load(sums + 4 * chunks, mask=real, other=0.0), axis=0)
                first, second = row_keys(tl.load(seeds_ptr + row), tl.load(steps_ptr + row))
                token, mass, kept = draw_truncated(
                    x_ptr, found_ptr + row * FEW, column_ptr + row * FEW, vocab, low,
                    finite.to(tl.int32), total, top_k, top_p, min_p, peak, temperature,
                    first, second, FEW, SHIFT, BLOCK,
                )  # fmt: skip
                share = tl.where(kept == vocab, 1.0, tl.minimum(mass / total, 1.0))
        x = tl.load(x_ptr + token).to(tl.float32)
        logprob = tl.minimum((x - peak) * inverse - tl.log(mass), 0.0)
    x = tl.load(x_ptr + token).to(tl.float32)
    tl.store(token_ptr + row, token.to(tl.int64))
    tl.store(logprob_ptr + row, logprob)
    tl.store(raw_ptr + row, tl.minimum(x - peak - tl.log(raw), 0.0))
    tl.store(share_ptr + row, share)


def launch_sampling(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seeds: Tensor,
    steps: Tensor,
    config: Config | None = None,
) -> tuple[Tensor, ...]:
    """Return tokens, their two log-probabilities and the mass kept, of each row."""
    config = config or table("sampling")[str(logits.element_size())]
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    rows, vocab = logits.shape
    chunks = cdiv(vocab, config["chunk"])
    device = logits.device
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    numbers = tuple(torch.empty(rows, dtype=torch.float32, device=device) for _ in range(3))
    if not rows:
        return tokens, *numbers
    sums = torch.empty(rows, 6, chunks, dtype=torch.float32, device=device)
    picks = torch.empty(rows, 2, chunks, dtype=torch.int32, device=device)
    found = torch.empty(rows, config["few"], dtype=logits.dtype, device=device)
    columns = torch.empty(rows, config["few"], dtype=torch.int32, device=device)
    seeds, steps = seeds.long().contiguous(), steps.long().contiguous()
    limits = tuple(temperature if x is None else x.contiguous() for x in (top_k, top_p, min_p))
    shared = (temperature.contiguous(), *limits, seeds, steps, sums, picks)
    has = {"HAS_K": top_k is not None, "HAS_P": top_p is not None, "HAS_MIN": min_p is not None}
    launch(
        _scan_kernel,
        (chunks, rows),
        logits,
        *shared,
        vocab,
        logits.stride(0),
        BLOCK=config["chunk"],
        num_warps=config["scan_warps"],
        **has,
    )
    launch(
        _draw_kernel,
        (rows,),
        logits,
        *shared,
        found,
        columns,
        tokens,
        *numbers,
        vocab,
        chunks,
        logits.stride(0),
        CHUNKS=next_power_of_2(chunks),
        FEW=config["few"],
        SHIFT=KEY_SHIFT[logits.dtype],
        BLOCK=config["block"],
        num_warps=config["num_warps"],
        **has,
    )
    return tokens, *numbers


def tunables() -> "Iterator[Tunable]":
    """Yield the choices of launch parameters, for 256 rows of Qwen3's vocabulary with limits."""
    from .tune import Tunable

    candidates = [
        {"chunk": 4096, "scan_warps": 8, "block": 256 * warps, "num_warps": warps, "few": few}
        for warps in (8, 16)
        for few in (1024, 2048, 4096)
    ]

    def prepare(dtype: torch.dtype) -> Callable[[Config], Tensor]:
        logits = 4 * torch.randn(256, 151_936, device="cuda", dtype=dtype)
        one = torch.ones(256, device="cuda")
        top_k, seeds = torch.full_like(one, 50, dtype=torch.int32), torch.arange(256, device="cuda")
        given = logits, one, top_k, 0.9 * one, None, seeds, seeds
        return lambda config: launch_sampling(*given, config)[0]

    for dtype in (torch.bfloat16, torch.float32):
        key = str(dtype.itemsize)
        yield Tunable("sampling", key, candidates, functools.partial(prepare, dtype))
