"""SwiGLU, ``silu(gate) * up``, on the fused ``[gate | up]`` output of one matmul.

Shazeer, arXiv:2002.05202. With ``s = sigmoid(gate)``::

    y     = gate s up
    dgate = dy up s (1 + gate (1 - s))        dup = dy gate s

::

    gate_up  [ gate: F columns | up: F columns ]  row 0      one program = BLOCK columns of
             [ ...             | ...           ]  row 1      one row, from both halves

Nothing but the input is saved: the backward recomputes the sigmoid, which costs no memory traffic.
Memory bound: 3 F elements move per row forward, 5 F backward, for about 5 F and 12 F FLOPs.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import (
    Impl,
    accumulator,
    cdiv,
    jit,
    launch,
    next_power_of_2,
    tl,
    use_triton,
)


class Config(NamedTuple):
    """Launch parameters."""

    block: int
    num_warps: int


CONFIG = Config(block=1024, num_warps=4)


def reference(gate_up: Tensor) -> Tensor:
    """Return ``silu(gate) * up`` in plain PyTorch, computed in float32 (float64 stays)."""
    gate, up = gate_up.to(accumulator(gate_up.dtype)).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


@jit
def _forward_kernel(
    x_ptr: tl.tensor, y_ptr: tl.tensor, stride_x: tl.tensor, width: tl.tensor, BLOCK: tl.constexpr
) -> None:
    blocks = tl.cdiv(width, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(x_ptr + row * stride_x + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * stride_x + width + column, mask=inside, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + row * width + column, y.to(y_ptr.dtype.element_ty), mask=inside)


@jit
def _backward_kernel(
    x_ptr: tl.tensor,
    dy_ptr: tl.tensor,
    dx_ptr: tl.tensor,
    stride_x: tl.tensor,
    width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    blocks = tl.cdiv(width, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(x_ptr + row * stride_x + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * stride_x + width + column, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    d_gate = dy * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    d_up = dy * gate * sigmoid
    out = dx_ptr + row * 2 * width + column
    tl.store(out, d_gate.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(out + width, d_up.to(dx_ptr.dtype.element_ty), mask=inside)


def _rows(gate_up: Tensor) -> Tensor:
    """Return the input as [R, 2F] with unit column stride, a view where that is possible."""
    x = gate_up.reshape(-1, gate_up.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def _launch_forward(gate_up: Tensor, config: Config = CONFIG) -> Tensor:
    x = _rows(gate_up)
    width = x.shape[1] // 2
    y = x.new_empty(*gate_up.shape[:-1], width)
    if y.numel():
        block = min(config.block, next_power_of_2(width))
        launch(
            _forward_kernel,
            (x.shape[0] * cdiv(width, block),),
            x,
            y,
            x.stride(0),
            width,
            BLOCK=block,
            num_warps=config.num_warps,
        )
    return y


def _launch_backward(gate_up: Tensor, dy: Tensor, config: Config = CONFIG) -> Tensor:
    x = _rows(gate_up)
    width = x.shape[1] // 2
    dx = torch.empty(gate_up.shape, dtype=x.dtype, device=x.device)
    if dx.numel():
        block = min(config.block, next_power_of_2(width))
        launch(
            _backward_kernel,
            (x.shape[0] * cdiv(width, block),),
            x,
            dy.contiguous(),
            dx,
            x.stride(0),
            width,
            BLOCK=block,
            num_warps=config.num_warps,
        )
    return dx


class _SwiGLU(torch.autograd.Function):
    """The two launches, joined."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:  # noqa: ANN401 - autograd's has no type
        ctx.save_for_backward(gate_up)
        return _launch_forward(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # noqa: ANN401
        return _launch_backward(ctx.saved_tensors[0], dy)


def swiglu(gate_up: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Return ``silu(gate) * up`` of the two halves of the last dimension; differentiable.

    Args:
        gate_up: [..., 2F], the gate in the first half.
        impl: Which implementation runs; see :mod:`.dispatch`.

    Returns:
        [..., F], in the input's dtype, computed in float32 (float64 for float64 input).

    Raises:
        ValueError: The last dimension is odd.

    >>> swiglu(torch.tensor([[0.0, 30.0, 5.0, 2.0]]))
    tensor([[ 0., 60.]])
    """
    if gate_up.ndim == 0 or gate_up.shape[-1] % 2:
        raise ValueError(
            f"gate_up={tuple(gate_up.shape)} has no two halves; pass [..., 2F], gate first"
        )
    if not use_triton(impl, gate_up):
        return reference(gate_up)
    y: Tensor = _SwiGLU.apply(gate_up)
    return y
