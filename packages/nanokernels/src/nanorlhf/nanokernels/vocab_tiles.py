"""The product of hidden states with a vocabulary, used up tile by tile in the kernel that makes it.

Logits ``y = h W^T * scale`` are in units of log 2, which leaves ``exp2`` as the only function of
the kernels, and they are never stored. A program takes one tile after another::

                  vocabulary ->            statistics:    of each row of a tile the peak, the sum
             +------+------+------+                       of 2^(y - peak), and that sum weighted by
    tokens   |  0   |  3   |  6   |                       y - peak; joined over tiles afterwards
      |      |  1   |  4   |  7   |        exponentials:  2^d (a + b d) with d = y - shift, where
      v      |  2   |  5   |  8   |                       each row knows its shift, a and b: what
             +------+------+------+                       gradients of logits are made of

The order of the tiles reads the weight once, while the hidden states stay in the L2 cache. The
statistics kernel can store exponentials in place of the weighted sums, for a shift that is a guess:
a gradient without a second product where the guess was good.

FLOPs: 2 T C V a kernel. Sums are float32 and joined in a fixed order. Shape legend: T = tokens,
C = hidden size, V = rows of the weight, B = tiles along the vocabulary.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .configs import Config, table
from .dispatch import allow_scratch, cdiv, jit_varying, launch, tl

if TYPE_CHECKING:
    from .tune import Tunable

LN_2 = math.log(2.0)
LOG2_E = 1.0 / LN_2
ROW_BYTES = 16
"""What the addresses of a tensor descriptor's rows must be multiples of."""
TOKENS_A_LAUNCH = 8192
"""Keeps hidden states in the L2 cache, and the statistics of tiles (12 B a token and tile) few."""
MERGED_ROWS, MERGED_BLOCKS = 32, 32
INTERPRETED_PROGRAMS = 3


class Guess(NamedTuple):
    """Where the statistics kernel stores ``2^(y - shift)`` of each logit."""

    shift_T: Tensor
    """float32 [T]."""
    out_TV: Tensor
    """[T, V] in the inputs' dtype, of :func:`.picked_logits.logits_buffer`."""


class Line(NamedTuple):
    """The function of each row's exponent ``d = y - shift``: ``2^d (a + b d)``; float32 [T]."""

    shift_T: Tensor
    a_T: Tensor
    b_T: Tensor


class Statistics(NamedTuple):
    """What the logits of each token add up to, in nats."""

    lse_T: Tensor
    """float32 [T], the log of the sum of exponentials."""
    entropy_T: Tensor
    """float32 [T]; empty where exponentials were stored."""


@jit_varying("tokens")
def _statistics_kernel(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    shift_ptr: tl.tensor,
    out_ptr: tl.tensor,
    peak_ptr: tl.tensor,
    total_ptr: tl.tensor,
    weighted_ptr: tl.tensor,
    tokens: tl.tensor,
    vocab: tl.tensor,
    stride_out: tl.tensor,
    scale: tl.tensor,
    C: tl.constexpr,
    STORE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    x = tl.make_tensor_descriptor(x_ptr, [tokens, C], [C, 1], [BLOCK_M, BLOCK_K])
    w = tl.make_tensor_descriptor(w_ptr, [vocab, C], [C, 1], [BLOCK_N, BLOCK_K])
    if STORE:
        out = tl.make_tensor_descriptor(
            out_ptr, [tokens, vocab], [stride_out, 1], [BLOCK_M, BLOCK_N]
        )
    down = tl.cdiv(tokens, BLOCK_M)
    tiles = down * tl.cdiv(vocab, BLOCK_N)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        m = (tile % down) * BLOCK_M
        n = (tile // down) * BLOCK_N
        y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, C, BLOCK_K):
            y = tl.dot(x.load([m, k]), w.load([n, k]).T, y, input_precision="tf32x3")
        if n + BLOCK_N > vocab:
            # Finite, so that 0 times the distance to the peak is 0.
            y = tl.where((n + tl.arange(0, BLOCK_N) < vocab)[None, :], y, -1e30)
        peak = tl.max(y, 1) * scale
        y = y * scale - peak[:, None]
        e = tl.math.exp2(y)
        row = m + tl.arange(0, BLOCK_M)
        inside = row < tokens
        at = (tile // down).to(tl.int64) * tokens + row
        tl.store(peak_ptr + at, peak, mask=inside)
        tl.store(total_ptr + at, tl.sum(e, 1), mask=inside)
        if not STORE:
            tl.store(weighted_ptr + at, tl.sum(e * y, 1), mask=inside)
        else:
            rise = peak - tl.load(shift_ptr + row, mask=inside, other=0.0)
            e *= tl.math.exp2(tl.minimum(rise, 126.0))[:, None]  # more was no useful guess
            out.store([m, n], e.to(out_ptr.dtype.element_ty))


@jit_varying("tokens")
def _exponentials_kernel(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    shift_ptr: tl.tensor,
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    wanted_ptr: tl.tensor,
    out_ptr: tl.tensor,
    tokens: tl.tensor,
    vocab: tl.tensor,
    stride_out: tl.tensor,
    scale: tl.tensor,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    if tl.load(wanted_ptr) == 0:
        return
    x = tl.make_tensor_descriptor(x_ptr, [tokens, C], [C, 1], [BLOCK_M, BLOCK_K])
    w = tl.make_tensor_descriptor(w_ptr, [vocab, C], [C, 1], [BLOCK_N, BLOCK_K])
    out = tl.make_tensor_descriptor(out_ptr, [tokens, vocab], [stride_out, 1], [BLOCK_M, BLOCK_N])
    down = tl.cdiv(tokens, BLOCK_M)
    tiles = down * tl.cdiv(vocab, BLOCK_N)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        m = (tile % down) * BLOCK_M
        n = (tile // down) * BLOCK_N
        y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, C, BLOCK_K):
            y = tl.dot(x.load([m, k]), w.load([n, k]).T, y, input_precision="tf32x3")
        row = m + tl.arange(0, BLOCK_M)
        inside = row < tokens
        shift = tl.load(shift_ptr + row, mask=inside, other=0.0)
        a = tl.load(a_ptr + row, mask=inside, other=0.0)
        b = tl.load(b_ptr + row, mask=inside, other=0.0)
        d = y * scale - shift[:, None]
        e = tl.math.exp2(d) * (a[:, None] + b[:, None] * d)
        out.store([m, n], e.to(out_ptr.dtype.element_ty))


@jit_varying("tokens", "blocks")
def _merge_kernel(
    peak_ptr: tl.tensor,
    total_ptr: tl.tensor,
    weighted_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    entropy_ptr: tl.tensor,
    tokens: tl.tensor,
    blocks: tl.tensor,
    ENTROPY: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    peak = tl.full((BLOCKS, ROWS), -1e30, tl.float32)
    total = tl.zeros((BLOCKS, ROWS), tl.float32)
    weighted = tl.zeros((BLOCKS, ROWS), tl.float32)
    for first in range(0, blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        at = block[:, None].to(tl.int64) * tokens + row[None, :]
        inside = (block < blocks)[:, None] & (row < tokens)[None, :]
        next_peak = tl.load(peak_ptr + at, mask=inside, other=-1e30)
        next_total = tl.load(total_ptr + at, mask=inside, other=0.0)
        top = tl.maximum(peak, next_peak)
        drop = peak - top
        next_drop = next_peak - top
        old = tl.math.exp2(drop)
        new = tl.math.exp2(next_drop)
        if ENTROPY:
            w = tl.load(weighted_ptr + at, mask=inside, other=0.0)
            weighted = old * (weighted + drop * total) + new * (w + next_drop * next_total)
        total = old * total + new * next_total
        peak = top
    top = tl.max(peak, 0)
    drop = peak - top[None, :]
    shrink = tl.math.exp2(drop)
    sums = tl.where(row < tokens, tl.sum(shrink * total, 0), 1.0)
    log_sums = tl.math.log2(sums)
    ln_2 = 0.6931471805599453
    tl.store(lse_ptr + row, (top + log_sums) * ln_2, mask=row < tokens)
    if ENTROPY:
        weighted_sums = tl.sum(shrink * (weighted + drop * total), 0)
        entropy = tl.maximum(log_sums - weighted_sums / sums, 0.0)
        tl.store(entropy_ptr + row, entropy * ln_2, mask=row < tokens)


def aligned(x: Tensor) -> Tensor:
    """Return [R, C] as tensor descriptors want it: contiguous, with zeros to the right if need be.

    Zeros at the end of both factors leave their product as it is.
    """
    x = x.contiguous()
    short = -x.shape[1] % (ROW_BYTES // x.element_size())
    if short:
        return F.pad(x, (0, short))
    return x if x.data_ptr() % ROW_BYTES == 0 else x.clone()


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _grid(config: Config, tokens: int, vocab: int, device: torch.device) -> tuple[int]:
    tiles = cdiv(tokens, config["block_m"]) * cdiv(vocab, config["block_n"])
    return (min(tiles, config["programs"] * _processors(device)),)


def _constants(config: Config, width: int) -> dict[str, int]:
    names = {"BLOCK_M": "block_m", "BLOCK_N": "block_n", "BLOCK_K": "block_k"}
    constants = {constant: config[name] for constant, name in names.items()}
    return constants | {"C": width} | {n: config[n] for n in ("num_warps", "num_stages")}


def config_for(kernel: str, dtype: torch.dtype) -> Config:
    """Return the launch parameters of "statistics", "guess" or "exponentials"."""
    return table("vocab_tiles")[f"{kernel}/{dtype.itemsize}"]


def chunks(tokens: int, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` tokens."""
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))


def statistics(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    *,
    scale: float,
    guess: Guess | None = None,
    config: Config | None = None,
) -> Statistics:
    """Return log-sum-exp and entropy of ``hidden_TC @ weight_VC.T * scale``, ``scale`` in log 2.

    Both matrices as :func:`aligned` returns them.
    """
    tokens = hidden_TC.shape[0]
    config = config or config_for("guess" if guess else "statistics", hidden_TC.dtype)
    lse = hidden_TC.new_empty(tokens, dtype=torch.float32)
    entropy = torch.empty_like(lse) if guess is None else lse[:0]
    for c in chunks(tokens, TOKENS_A_LAUNCH):
        part = None if guess is None else Guess(guess.shift_T[c], guess.out_TV[c])
        partials = _launch_statistics(hidden_TC[c], weight_VC, scale, part, config)
        rows = c.stop - c.start
        launch(
            _merge_kernel,
            (cdiv(rows, MERGED_ROWS),),
            *(*partials.unbind(0), lse[c], entropy[c], rows, partials.shape[1]),
            ENTROPY=guess is None,
            ROWS=MERGED_ROWS,
            BLOCKS=MERGED_BLOCKS,
        )
    return Statistics(lse, entropy)


def _launch_statistics(
    x: Tensor, w: Tensor, scale: float, guess: Guess | None, config: Config
) -> Tensor:
    """Return [3, B, T]: peak, total and weighted sum of each row of each tile."""
    tokens, vocab = x.shape[0], w.shape[0]
    partials = x.new_empty(3, cdiv(vocab, config["block_n"]), tokens, dtype=torch.float32)
    shift, out = guess or (partials, x)
    allow_scratch(x)
    launch(
        _statistics_kernel,
        _grid(config, tokens, vocab, x.device),
        x,
        w,
        shift,
        out,
        *partials.unbind(0),
        tokens,
        vocab,
        out.stride(0),
        scale,
        STORE=guess is not None,
        **_constants(config, x.shape[1]),
    )
    return partials


def exponentials(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    line: Line,
    out_TV: Tensor,
    *,
    scale: float,
    wanted: Tensor,
    config: Config | None = None,
) -> None:
    """Write ``2^d (a + b d)`` of each logit into a :func:`.picked_logits.logits_buffer`.

    Args:
        hidden_TC: [T, C], of :func:`aligned`.
        weight_VC: [V, C], of :func:`aligned`.
        line: What is computed of each row.
        out_TV: Columns from V on keep what they hold.
        scale: Of the logits, in log 2.
        wanted: One int32; 0 leaves ``out_TV`` as it is, without asking the device.
        config: Launch parameters in place of the table's.
    """
    tokens, vocab = hidden_TC.shape[0], weight_VC.shape[0]
    config = config or config_for("exponentials", hidden_TC.dtype)
    allow_scratch(hidden_TC)
    launch(
        _exponentials_kernel,
        _grid(config, tokens, vocab, hidden_TC.device),
        hidden_TC,
        weight_VC,
        *line,
        wanted,
        out_TV,
        tokens,
        vocab,
        out_TV.stride(0),
        scale,
        **_constants(config, hidden_TC.shape[1]),
    )


def tunables() -> "Iterator[Tunable]":
    """Yield the choices of launch parameters, for 4,096 tokens of a Qwen3-0.6B."""
    from .tune import Tunable

    names = ("block_m", "block_n", "block_k", "num_warps", "num_stages", "programs")
    shapes = [(128, 256, 64, 8, 4, 1), (128, 256, 64, 8, 3, 1), (128, 256, 32, 8, 6, 1)]
    shapes += [(256, 128, 64, 8, 3, 1), (128, 128, 64, 8, 3, 2), (128, 128, 64, 4, 3, 2)]
    candidates = [dict(zip(names, shape, strict=True)) for shape in shapes]
    for kernel in ("statistics", "guess", "exponentials"):
        yield Tunable("vocab_tiles", f"{kernel}/2", candidates, functools.partial(_prepare, kernel))


def _prepare(kernel: str) -> Callable[[Config], Tensor]:
    """Return a call of one of the three on random inputs."""
    x = torch.randn(4096, 1024, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(151_936, 1024, device="cuda", dtype=torch.bfloat16) * 0.1
    shift, out = x.new_zeros(4096, dtype=torch.float32), x.new_empty(4096, 152_000)
    line = Line(shift, shift + 1.0, shift)
    wanted = torch.ones(1, device="cuda", dtype=torch.int32)

    def run(config: Config) -> Tensor:
        if kernel == "exponentials":
            exponentials(x, w, line, out, scale=1.0, wanted=wanted, config=config)
            return out[:256, :151_936]
        guess = Guess(shift, out) if kernel == "guess" else None
        return statistics(x, w, scale=1.0, guess=guess, config=config).lse_T

    return run
