"""Rotary position embedding, rotate-half convention (HF Llama and Qwen).

Su et al., arXiv:2104.09864. Entry i and entry i + D/2 of a head are one complex number, turned by
the angle ``position * theta^(-2i/D)``::

    y[i]       = x[i] cos[i] - x[i + D/2] sin[i]
    y[i + D/2] = x[i + D/2] cos[i] + x[i] sin[i]

A rotation is orthogonal, so the gradient is the same rotation by the opposite angle: the backward
is the forward kernel with the sign of the sine flipped, and nothing but the table is saved.

::

    x[t]  [ head 0: low D/2 | high D/2 ]      one program = all heads of one token,
          [ head 1: ...                ]      which share its D/2 cosines and sines

Memory bound: 2 H D elements move per token.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dispatch import Impl, jit, launch, next_power_of_2, tl, use_triton
from .registration import register


class RopeTable(NamedTuple):
    """Cosines and sines of each token's angles."""

    cos: Tensor
    """float32 [T, D/2]."""
    sin: Tensor
    """float32 [T, D/2]."""


def rope_table(positions_T: Tensor, *, head_dim: int, theta: float) -> RopeTable:
    """Return the cosines and sines of each token's angles.

    The frequencies are computed as transformers computes them, to the last bit.

    Args:
        positions_T: Integer [T], each token's position in its sequence.
        head_dim: D, even.
        theta: Base of the wavelengths, such as 1e6 for Qwen3.

    Raises:
        ValueError: ``head_dim`` is odd.

    >>> rope_table(torch.tensor([0]), head_dim=4, theta=1e6).cos
    tensor([[1., 1.]])
    """
    if head_dim % 2:
        raise ValueError(f"head_dim={head_dim} must be even: entries are rotated in pairs")
    exponents = torch.arange(0, head_dim, 2, device=positions_T.device).to(torch.float32) / head_dim
    angles = positions_T.to(torch.float32)[:, None] * (1.0 / theta**exponents)
    return RopeTable(angles.cos(), angles.sin())


def reference(x_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the rotated heads in plain PyTorch, computed in float32 (float64 stays)."""
    cos, sin = cos[:, None, :], sin[:, None, :]
    low, high = x_THD.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x_THD.dtype)


@jit
def _rotate_kernel(
    x_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    y_ptr: tl.tensor,
    stride_t: tl.tensor,
    stride_h: tl.tensor,
    H: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    SIGN: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK_H)[:, None]
    column = tl.arange(0, BLOCK_HALF)
    cos = tl.load(cos_ptr + token * HALF + column, mask=column < HALF, other=0.0)[None, :]
    sin = tl.load(sin_ptr + token * HALF + column, mask=column < HALF, other=0.0)[None, :] * SIGN
    inside = (head < H) & (column < HALF)[None, :]
    x = x_ptr + token * stride_t + head * stride_h + column[None, :]
    low = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(x + HALF, mask=inside, other=0.0).to(tl.float32)
    y = y_ptr + token * (H * HALF * 2) + head * (HALF * 2) + column[None, :]
    tl.store(y, (low * cos - high * sin).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(y + HALF, (high * cos + low * sin).to(y_ptr.dtype.element_ty), mask=inside)


def _launch(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """Rotate by the table's angles, or back with ``sign=-1``."""
    tokens, heads, dim = x.shape
    if x.stride(2) != 1:
        x = x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        launch(
            _rotate_kernel,
            (tokens,),
            x,
            cos,
            sin,
            y,
            x.stride(0),
            x.stride(1),
            H=heads,
            HALF=dim // 2,
            BLOCK_H=next_power_of_2(heads),
            BLOCK_HALF=next_power_of_2(dim // 2),
            SIGN=sign,
            num_warps=4,
        )
    return y


def _fake(x: Tensor, _cos: Tensor, _sin: Tensor, _sign: int) -> Tensor:
    return x.new_empty(x.shape)


# Autograd's context has no type.
def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    ctx.save_for_backward(*inputs[1:3])
    ctx.sign = inputs[3]


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
    return _op(dy, *ctx.saved_tensors, -ctx.sign), None, None, None


_op = register(
    "rope(Tensor x, Tensor cos, Tensor sin, int sign) -> Tensor",
    _launch,
    fake=_fake,
    backward=_backward,
    save=_save,
)


def rope(x_THD: Tensor, cos: Tensor, sin: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Return queries or keys rotated to their positions; differentiable in ``x_THD``.

    Args:
        x_THD: [T, H, D]; a slice of a fused projection is read in place.
        cos: float32 [T, D/2] of :func:`rope_table`.
        sin: float32 [T, D/2].
        impl: Which implementation runs; see :mod:`.dispatch`.

    Returns:
        ``x_THD``'s shape and dtype, contiguous; computed in float32 (float64 for float64 input).

    Raises:
        ValueError: The table does not match.

    >>> table = rope_table(torch.tensor([0]), head_dim=4, theta=1e4)
    >>> rope(torch.ones(1, 1, 4), *table)
    tensor([[[1., 1., 1., 1.]]])
    """
    if x_THD.ndim != 3 or x_THD.shape[2] % 2:
        raise ValueError(f"x_THD={tuple(x_THD.shape)} is not [T, H, D] with an even D; reshape it")
    expected = (x_THD.shape[0], x_THD.shape[2] // 2)
    if cos.shape != expected or sin.shape != expected:
        raise ValueError(
            f"cos={tuple(cos.shape)} and sin={tuple(sin.shape)} do not match "
            f"x_THD={tuple(x_THD.shape)}; pass rope_table of T positions, {expected}"
        )
    if not use_triton(impl, x_THD):
        return reference(x_THD, cos, sin)
    y: Tensor = _op(x_THD, cos.contiguous(), sin.contiguous(), 1)
    return y
