"""RMSNorm over the last dimension, with the gradient of its weight.

Zhang and Sennrich, arXiv:1910.07467. For a row of N entries::

    r  = 1 / sqrt(mean(x^2) + eps)              y  = x r w
    dx = r (w dy - x r c),  c = mean(x r w dy)  dw = sum over rows of x r dy

::

         N columns, one power of two wide
    +-----------------------------+
    |  BLOCK_ROWS rows            |  program 0     Forward: a program owns one tile.
    +-----------------------------+                Backward: program i takes tiles i, i + P, ...
    |  BLOCK_ROWS rows            |  program 1     and sums its part of dw in registers; then
    +-----------------------------+                P parts are added, in a fixed order.

Only ``r`` (4 bytes a row) is saved besides the inputs. Sums are float32. Tiles hold many short rows
(the per-head norm of queries and keys has N = 128) or one long one, so a row's result does not
depend on how many rows there are. Memory bound: 2 N elements move per row forward, 3 N backward.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import Impl, accumulator, cdiv, jit_varying, launch, next_power_of_2, tl, use_triton

MAX_WIDTH = 8192


class Config(NamedTuple):
    """Launch parameters."""

    tile: int
    """Elements of a tile, unless one row is longer."""
    num_warps: int
    programs: int
    """Programs of the backward: enough to fill the largest GPU several times."""


def config_for(width: int) -> Config:
    """Return the launch parameters for rows of ``width`` elements."""
    if width <= 2048:
        return Config(tile=2048, num_warps=4, programs=528)
    return Config(tile=2048, num_warps=8 if width <= 4096 else 16, programs=264)


def reference(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Return the normalised rows in plain PyTorch, computed in float32 (float64 stays)."""
    high = accumulator(x.dtype)
    wide = x.to(high)
    rstd = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * rstd * weight.to(high)).to(x.dtype)


@jit_varying("rows")
def _forward_kernel(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    y_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    rows: tl.tensor,
    inner: tl.tensor,
    stride_outer: tl.tensor,
    stride_inner: tl.tensor,
    eps: tl.tensor,
    N: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    column = tl.arange(0, BLOCK_N)
    inside = (row < rows)[:, None] & (column < N)[None, :]
    start = (row // inner) * stride_outer + (row % inner) * stride_inner
    x = tl.load(x_ptr + start[:, None] + column[None, :], mask=inside, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + column, mask=column < N, other=0.0).to(tl.float32)
    rstd = tl.math.rsqrt(tl.sum(x * x, axis=1) / N + eps)
    tl.store(rstd_ptr + row, rstd, mask=row < rows)
    y = x * rstd[:, None] * w[None, :]
    out = y_ptr + (row * N)[:, None] + column[None, :]
    tl.store(out, y.to(y_ptr.dtype.element_ty), mask=inside)


@jit_varying("rows")
def _backward_kernel(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    dy_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    dx_ptr: tl.tensor,
    dw_ptr: tl.tensor,
    rows: tl.tensor,
    inner: tl.tensor,
    stride_outer: tl.tensor,
    stride_inner: tl.tensor,
    N: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    column = tl.arange(0, BLOCK_N)
    w = tl.load(w_ptr + column, mask=column < N, other=0.0).to(tl.float32)
    dw = tl.zeros((BLOCK_N,), tl.float32)
    tiles = tl.cdiv(rows, BLOCK_ROWS)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        row = (tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        inside = (row < rows)[:, None] & (column < N)[None, :]
        start = (row // inner) * stride_outer + (row % inner) * stride_inner
        flat = (row * N)[:, None] + column[None, :]
        x = tl.load(x_ptr + start[:, None] + column[None, :], mask=inside, other=0.0)
        dy = tl.load(dy_ptr + flat, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
        normed = x.to(tl.float32) * rstd[:, None]
        wdy = dy * w[None, :]
        mean = tl.sum(normed * wdy, axis=1) / N
        dx = (wdy - normed * mean[:, None]) * rstd[:, None]
        tl.store(dx_ptr + flat, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        dw += tl.sum(normed * dy, axis=0)
    tl.store(dw_ptr + tl.program_id(0) * N + column, dw, mask=column < N)


class _Rows(NamedTuple):
    """A tensor seen as rows of N, with at most two strides between rows and so seldom a copy."""

    x: Tensor
    rows: int
    inner: int
    stride_outer: int
    stride_inner: int


def _as_rows(x: Tensor) -> _Rows:
    if x.ndim > 3 or x.stride(-1) != 1:
        x = x.contiguous().view(-1, x.shape[-1])
    rows = x.numel() // x.shape[-1]
    if x.ndim == 3:
        return _Rows(x, rows, x.shape[1], x.stride(0), x.stride(1))
    return _Rows(x, rows, 1, x.stride(0) if x.ndim == 2 else 0, 0)


class _Normed(NamedTuple):
    """The output and what the backward needs of the forward."""

    y: Tensor
    rstd: Tensor


def _launch_forward(
    x: Tensor, weight: Tensor, *, eps: float, config: Config | None = None
) -> _Normed:
    width = x.shape[-1]
    config = config or config_for(width)
    block_n = next_power_of_2(width)
    block_rows = max(1, config.tile // block_n)
    source = _as_rows(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rstd = torch.empty(source.rows, dtype=torch.float32, device=x.device)
    if y.numel():
        launch(
            _forward_kernel,
            (cdiv(source.rows, block_rows),),
            source.x,
            weight,
            y,
            rstd,
            *source[1:],
            eps,
            N=width,
            BLOCK_ROWS=block_rows,
            BLOCK_N=block_n,
            num_warps=config.num_warps,
        )
    return _Normed(y, rstd)


def _launch_backward(
    x: Tensor, weight: Tensor, rstd: Tensor, dy: Tensor, *, config: Config | None = None
) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    config = config or config_for(width)
    block_n = next_power_of_2(width)
    block_rows = max(1, config.tile // block_n)
    source = _as_rows(x)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not dx.numel():
        return dx, torch.zeros_like(weight)
    programs = min(config.programs, cdiv(source.rows, block_rows))
    parts = torch.empty(programs, width, dtype=torch.float32, device=x.device)
    launch(
        _backward_kernel,
        (programs,),
        source.x,
        weight,
        dy.contiguous(),
        rstd,
        dx,
        parts,
        *source[1:],
        N=width,
        BLOCK_ROWS=block_rows,
        BLOCK_N=block_n,
        num_warps=config.num_warps,
    )
    return dx, parts.sum(dim=0).to(weight.dtype)


class _RMSNorm(torch.autograd.Function):
    """The two launches, joined."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # noqa: ANN401 - no type
        normed = _launch_forward(x, weight, eps=eps)
        ctx.save_for_backward(x, weight, normed.rstd)
        return normed.y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        x, weight, rstd = ctx.saved_tensors
        return *_launch_backward(x, weight, rstd, dy), None


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6, impl: Impl = "auto") -> Tensor:
    """Return ``x`` scaled to root mean square 1 over its last dimension, times ``weight``.

    Differentiable in ``x`` and ``weight``.

    Args:
        x: [..., N]. A slice of a wider tensor is read in place if it has at most 3 dimensions.
        weight: [N].
        eps: Added to the mean square.
        impl: Which implementation runs; see :mod:`.dispatch`.

    Returns:
        ``x``'s shape and dtype; computed in float32 and rounded once (float64 for float64 input).

    Raises:
        ValueError: ``weight`` does not match, or a row is too long for the kernel.

    >>> rms_norm(torch.tensor([3.0, 3.0]), torch.ones(2), eps=0.0)
    tensor([1., 1.])
    """
    if x.ndim == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(
            f"weight={tuple(weight.shape)} does not match x={tuple(x.shape)}; "
            "pass one weight for each entry of the last dimension"
        )
    if not use_triton(impl, x):
        return reference(x, weight, eps=eps)
    if x.shape[-1] > MAX_WIDTH:
        raise ValueError(
            f"N={x.shape[-1]} does not fit one tile of at most {MAX_WIDTH}; use impl='reference'"
        )
    y: Tensor = _RMSNorm.apply(x, weight.contiguous(), eps)
    return y
