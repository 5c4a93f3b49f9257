"""RMSNorm over the last dimension, alone or of a sum, with the gradient of its weight.

Zhang and Sennrich, arXiv:1910.07467. For a row of N entries::

    r  = 1 / sqrt(mean(x^2) + eps)              y  = x r w
    dx = r (w dy - x r c),  c = mean(x r w dy)  dw = sum over rows of x r dy

Given a residual stream the row is ``s = x + residual``, rounded to its dtype and returned as well:
the next block adds to it. Its own gradient ``ds`` is added to ``dx``, which goes to both terms.

::

         N columns, one power of two wide
    +-----------------------------+
    |  BLOCK_ROWS rows            |  program 0     Forward: a program owns one tile.
    +-----------------------------+                Backward: program i takes tiles i, i + P, ...,
    |  BLOCK_ROWS rows            |  program 1     the next ones in flight, and sums its part of dw
    +-----------------------------+                in registers; a second kernel adds the P parts.

Nothing but the inputs (or ``s``) is saved: ``r`` is summed again from the row that the backward has
to read anyway. Sums are float32, in an order that the number of rows does not change within a row.
Memory bound: 2 N elements move per row forward and 3 N backward, 4 N each with a residual.

The file is long because an operator's reference, kernels, registration and what tunes it stand
together, here of two operators that share their kernels.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import torch
from torch import Tensor

from .configs import Config, table
from .dispatch import (
    Impl,
    accumulator,
    cdiv,
    jit_varying,
    launch,
    next_power_of_2,
    tl,
    use_triton,
)
from .partial_sums import add_pairs, sum_parts
from .registration import register

if TYPE_CHECKING:
    from .tune import Tunable

MAX_WIDTH = 8192


def reference(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Return the normalised rows in plain PyTorch, computed in float32 (float64 stays)."""
    high = accumulator(x.dtype)
    wide = x.to(high)
    rstd = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * rstd * weight.to(high)).to(x.dtype)


@jit_varying("rows")
def _forward_kernel(
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    w_ptr: tl.tensor,
    y_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    rows: tl.tensor,
    inner: tl.tensor,
    stride_outer: tl.tensor,
    stride_inner: tl.tensor,
    eps: tl.tensor,
    N: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ADD: tl.constexpr,
) -> None:
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_N)
    inside = (column < N)[None, :]
    # A program of one row needs no mask of rows, and wide rows are a little faster without.
    if BLOCK_ROWS > 1:
        inside = (row < rows)[:, None] & inside
    start = (row // inner).to(tl.int64) * stride_outer + (row % inner).to(tl.int64) * stride_inner
    flat = (row.to(tl.int64) * N)[:, None] + column[None, :]
    x = tl.load(x_ptr + start[:, None] + column[None, :], mask=inside, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + column, mask=column < N, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(residual_ptr + flat, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + flat, rounded, mask=inside)
        x = rounded.to(tl.float32)
    rstd = tl.math.rsqrt(tl.sum(x * x, axis=1) / N + eps)
    y = x * rstd[:, None] * w[None, :]
    tl.store(y_ptr + flat, y.to(y_ptr.dtype.element_ty), mask=inside)


@jit_varying("rows")
def _backward_kernel(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    dy_ptr: tl.tensor,
    dsum_ptr: tl.tensor,
    dx_ptr: tl.tensor,
    parts_ptr: tl.tensor,
    rows: tl.tensor,
    inner: tl.tensor,
    stride_outer: tl.tensor,
    stride_inner: tl.tensor,
    eps: tl.tensor,
    N: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ADD: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    column = tl.arange(0, BLOCK_N)
    w = tl.load(w_ptr + column, mask=column < N, other=0.0).to(tl.float32)
    # One sum for each entry of a tile: rows are added up once, after the loop.
    dw = tl.zeros((BLOCK_ROWS, BLOCK_N), tl.float32)
    tiles = tl.cdiv(rows, BLOCK_ROWS)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
        row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        inside = (row < rows)[:, None] & (column < N)[None, :]
        outer, within = (row // inner).to(tl.int64), (row % inner).to(tl.int64)
        start = outer * stride_outer + within * stride_inner
        flat = (row.to(tl.int64) * N)[:, None] + column[None, :]
        x = tl.load(x_ptr + start[:, None] + column[None, :], mask=inside, other=0.0)
        dy = tl.load(dy_ptr + flat, mask=inside, other=0.0).to(tl.float32)
        x = x.to(tl.float32)
        wdy = dy * w[None, :]
        # Both sums in one reduction: they share its exchange between warps.
        squares, products = tl.reduce((x * x, x * wdy), 1, add_pairs)
        rstd = tl.math.rsqrt(squares / N + eps)
        pull = products / N * rstd * rstd
        dx = (wdy - x * pull[:, None]) * rstd[:, None]
        if ADD:
            dx += tl.load(dsum_ptr + flat, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + flat, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        dw += x * rstd[:, None] * dy
    part = parts_ptr + tl.program_id(0) * N + column
    tl.store(part, tl.sum(dw, axis=0), mask=column < N)


class _Rows(NamedTuple):
    """A tensor seen as rows of N, with at most two strides between rows and so seldom a copy."""

    x: Tensor
    rows: int
    inner: int
    stride_outer: int
    stride_inner: int


def _as_rows(x: Tensor) -> _Rows:
    rows = x.numel() // x.shape[-1]
    if x.is_contiguous() or x.ndim > 3 or x.stride(-1) != 1:
        return _Rows(x.contiguous(), rows, 1, x.shape[-1], 0)
    if x.ndim == 3:
        return _Rows(x, rows, x.shape[1], x.stride(0), x.stride(1))
    return _Rows(x, rows, 1, x.stride(0), 0)


def _blocks(config: Config, width: int) -> dict[str, int]:
    """Return the constants that rows of ``width`` entries give a kernel."""
    block_n = next_power_of_2(width)
    return {"N": width, "BLOCK_N": block_n, "BLOCK_ROWS": max(1, config["tile"] // block_n)}


def _config(direction: str, width: int) -> Config:
    """Return the entry for the narrowest rows listed that are at least ``width`` wide."""
    wide = max(128, next_power_of_2(width))
    return table("rms_norm")[f"{direction}/{wide}"]


def _launch_forward(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, config: Config | None = None
) -> tuple[Tensor, Tensor]:
    """Return the normalised rows and the sum, which is empty without a residual."""
    config = config or _config("forward", x.shape[-1])
    blocks = _blocks(config, x.shape[-1])
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty(0 if residual is None else x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        source = _as_rows(x)
        launch(
            _forward_kernel,
            (cdiv(source.rows, blocks["BLOCK_ROWS"]),),
            source.x,
            source.x if residual is None else residual.contiguous(),
            weight,
            y,
            total,
            *source[1:],
            eps,
            **blocks,
            ADD=residual is not None,
            num_warps=config["num_warps"],
        )
    return y, total


def _launch_plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _launch_forward(x, weight, None, eps)[0]


def _launch_backward(
    x: Tensor,
    weight: Tensor,
    dy: Tensor,
    dsum: Tensor | None,
    eps: float,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the normalised tensor, ``dsum`` added, and of the weight."""
    config = config or _config("backward", x.shape[-1])
    blocks = _blocks(config, x.shape[-1])
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not dx.numel():
        return dx, torch.zeros_like(weight)
    source, dy = _as_rows(x), dy.contiguous()
    programs = min(config["programs"], cdiv(source.rows, blocks["BLOCK_ROWS"]))
    parts = torch.empty(programs, x.shape[-1], dtype=torch.float32, device=x.device)
    launch(
        _backward_kernel,
        (programs,),
        source.x,
        weight,
        dy,
        dy if dsum is None else dsum.contiguous(),
        dx,
        parts,
        *source[1:],
        eps,
        **blocks,
        ADD=dsum is not None,
        STAGES=config["num_stages"],
        num_warps=config["num_warps"],
    )
    return dx, sum_parts(parts, weight.dtype)


def _fake_plain(x: Tensor, _weight: Tensor, _eps: float) -> Tensor:
    return x.new_empty(x.shape)


def _fake_sum(x: Tensor, _weight: Tensor, _residual: Tensor, _eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _fake_backward(
    x: Tensor, weight: Tensor, _dy: Tensor, _dsum: Tensor | None, _eps: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight)


# Autograd's context has no type.
def _save_plain(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    ctx.save_for_backward(*inputs[:2])
    ctx.eps = inputs[2]


def _backward_plain(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
    dx, dw = _backward_op(*ctx.saved_tensors, dy, None, ctx.eps)
    return dx, dw, None


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
    ctx.save_for_backward(output[1], inputs[1])
    ctx.eps = inputs[3]


def _backward_sum(
    ctx: Any,  # noqa: ANN401
    dy: Tensor,
    dsum: Tensor,
) -> tuple[Tensor, Tensor, Tensor, None]:
    dx, dw = _backward_op(*ctx.saved_tensors, dy, dsum, ctx.eps)
    return dx, dw, dx, None


_backward_op = register(
    "rms_norm_backward(Tensor x, Tensor weight, Tensor dy, Tensor? dsum, float eps)"
    " -> (Tensor, Tensor)",
    _launch_backward,
    fake=_fake_backward,
)
_plain_op = register(
    "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    _launch_plain,
    fake=_fake_plain,
    backward=_backward_plain,
    save=_save_plain,
)
_sum_op = register(
    "add_rms_norm(Tensor x, Tensor weight, Tensor residual, float eps) -> (Tensor, Tensor)",
    _launch_forward,
    fake=_fake_sum,
    backward=_backward_sum,
    save=_save_sum,
)


@overload
def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float = ..., residual: None = ..., impl: Impl = ...
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor, weight: Tensor, *, eps: float = ..., residual: Tensor, impl: Impl = ...
) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float = 1e-6,
    residual: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Return ``x`` scaled to root mean square 1 over its last dimension, times ``weight``.

    Differentiable in every tensor.

    Args:
        x: [..., N]. A slice of a wider tensor is read in place if it has at most 3 dimensions.
        weight: [N].
        eps: Added to the mean square.
        residual: [..., N], added to ``x`` before it is normalised; None for nothing.
        impl: Which implementation runs; see :mod:`.dispatch`.

    Returns:
        ``x``'s shape and dtype, computed in float32 and rounded once (float64 for float64 input);
        with a residual, that and the sum, whose rounded value is what is normalised.

    Raises:
        ValueError: ``weight`` or ``residual`` does not match, or a row is too long for the kernel.

    >>> rms_norm(torch.tensor([3.0, 3.0]), torch.ones(2), eps=0.0)
    tensor([1., 1.])
    >>> rms_norm(torch.tensor([1.0, 1.0]), torch.ones(2), eps=0.0, residual=torch.ones(2))
    (tensor([1., 1.]), tensor([2., 2.]))
    """
    _check(x, weight, residual)
    if not use_triton(impl, x):
        if residual is None:
            return reference(x, weight, eps=eps)
        total = x + residual
        return reference(total, weight, eps=eps), total
    if x.shape[-1] > MAX_WIDTH:
        raise ValueError(
            f"N={x.shape[-1]} does not fit one tile of at most {MAX_WIDTH}; use impl='reference'"
        )
    if residual is None:
        y: Tensor = _plain_op(x, weight.contiguous(), eps)
        return y
    pair: tuple[Tensor, Tensor] = _sum_op(x, weight.contiguous(), residual, eps)
    return pair


def _check(x: Tensor, weight: Tensor, residual: Tensor | None) -> None:
    if x.ndim == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(
            f"weight={tuple(weight.shape)} does not match x={tuple(x.shape)}; "
            "pass one weight for each entry of the last dimension"
        )
    if residual is not None and (residual.shape, residual.dtype) != (x.shape, x.dtype):
        raise ValueError(
            f"residual={residual.dtype}{tuple(residual.shape)} does not match "
            f"x={x.dtype}{tuple(x.shape)}; they are added, so pass the same shape and dtype"
        )


def tunables() -> "Iterator[Tunable]":
    """Yield the choices of launch parameters, for 64 Mi entries in bfloat16."""
    from .tune import Tunable

    for width in (128, 256, 512, 1024, 2048, 4096, 8192):

        def inputs(width: int = width) -> tuple[Tensor, Tensor, Tensor]:
            x, dy = torch.randn(2, (64 << 20) // width, width, device="cuda", dtype=torch.bfloat16)
            return x, dy, torch.randn(width, device="cuda", dtype=torch.bfloat16)

        def forward(make: Callable[[], Any] = inputs) -> Callable[[Config], Tensor]:
            x, _, w = make()
            return lambda config: _launch_forward(x, w, None, 1e-6, config)[0]

        def backward(make: Callable[[], Any] = inputs) -> Callable[[Config], Tensor]:
            x, dy, w = make()
            return lambda config: _launch_backward(x, w, dy, None, 1e-6, config)[0]

        for name, prepare in (("forward", forward), ("backward", backward)):
            yield Tunable("rms_norm", f"{name}/{width}", _candidates(name, width), prepare)


def _candidates(direction: str, width: int) -> list[Config]:
    """Return the launch parameters worth timing: 8 to 32 entries a thread."""
    found: list[Config] = []
    for warps in (1, 2, 4, 8, 16):
        for tile in (warps * 256, warps * 512, warps * 1024):
            if tile < width or (tile > 2 * width and tile > 4096):
                continue
            if direction == "forward":
                found.append({"tile": tile, "num_warps": warps})
            else:
                found += [
                    {"tile": tile, "num_warps": warps, "num_stages": s, "programs": p}
                    for s in (2, 3, 4)
                    for p in (132, 264, 396)
                ]
    return found
