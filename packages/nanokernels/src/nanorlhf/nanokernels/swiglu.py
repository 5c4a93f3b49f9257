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

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .configs import Config, table
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
from .registration import register

if TYPE_CHECKING:
    from .tune import Tunable


def reference(gate_up: Tensor) -> Tensor:
    """Return ``silu(gate) * up`` in plain PyTorch, computed in float32 (float64 stays)."""
    gate, up = gate_up.to(accumulator(gate_up.dtype)).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


@jit
def _forward_kernel(
    gate_ptr: tl.tensor,
    up_ptr: tl.tensor,
    y_ptr: tl.tensor,
    stride_gate: tl.tensor,
    stride_up: tl.tensor,
    width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    blocks = tl.cdiv(width, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_ptr + row * stride_gate + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * stride_up + column, mask=inside, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + row * width + column, y.to(y_ptr.dtype.element_ty), mask=inside)


@jit
def _backward_kernel(
    gate_ptr: tl.tensor,
    up_ptr: tl.tensor,
    dy_ptr: tl.tensor,
    d_gate_ptr: tl.tensor,
    d_up_ptr: tl.tensor,
    stride_gate: tl.tensor,
    stride_up: tl.tensor,
    stride_out: tl.tensor,
    width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    blocks = tl.cdiv(width, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_ptr + row * stride_gate + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * stride_up + column, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    d_gate = dy * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    d_up = dy * gate * sigmoid
    out = row * stride_out + column
    tl.store(d_gate_ptr + out, d_gate.to(d_gate_ptr.dtype.element_ty), mask=inside)
    tl.store(d_up_ptr + out, d_up.to(d_up_ptr.dtype.element_ty), mask=inside)


def _rows(x: Tensor) -> Tensor:
    """Return the input as [R, W] with unit column stride, a view where that is possible."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def _launch_forward(gate: Tensor, up: Tensor, config: Config | None = None) -> Tensor:
    config = config or table("swiglu")["any"]
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if y.numel():
        gate, up = _rows(gate), _rows(up)
        rows, width = gate.shape
        block = min(config["block"], next_power_of_2(width))
        launch(
            _forward_kernel,
            (rows * cdiv(width, block),),
            gate,
            up,
            y,
            gate.stride(0),
            up.stride(0),
            width,
            BLOCK=block,
            num_warps=config["num_warps"],
        )
    return y


def _launch_backward(
    gate: Tensor,
    up: Tensor,
    dy: Tensor,
    out: tuple[Tensor, Tensor],
    config: Config | None = None,
) -> None:
    """Write both gradients to ``out``, [..., F] each, whose rows lie equally far apart."""
    config = config or table("swiglu")["any"]
    if not dy.numel():
        return
    gate, up, d_gate, d_up = _rows(gate), _rows(up), *(x.view(-1, x.shape[-1]) for x in out)
    rows, width = gate.shape
    block = min(config["block"], next_power_of_2(width))
    launch(
        _backward_kernel,
        (rows * cdiv(width, block),),
        gate,
        up,
        dy.contiguous(),
        d_gate,
        d_up,
        gate.stride(0),
        up.stride(0),
        d_gate.stride(0),
        width,
        BLOCK=block,
        num_warps=config["num_warps"],
    )


def _fused_forward(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return _launch_forward(gate, up)


def _fused_backward(gate_up: Tensor, dy: Tensor) -> Tensor:
    grad = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)
    gate, up = gate_up.chunk(2, dim=-1)
    d_gate, d_up = grad.view(-1, grad.shape[-1]).chunk(2, dim=-1)
    _launch_backward(gate, up, dy, (d_gate, d_up))
    return grad


def _split_backward(gate: Tensor, up: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    d_gate, d_up = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (gate, up))
    _launch_backward(gate, up, dy, (d_gate, d_up))
    return d_gate, d_up


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ANN401 - no type
    ctx.save_for_backward(*inputs)


_fused_backward_op = register(
    "swiglu_backward(Tensor gate_up, Tensor dy) -> Tensor",
    _fused_backward,
    fake=lambda gate_up, _dy: gate_up.new_empty(gate_up.shape),
)
_fused_op = register(
    "swiglu(Tensor gate_up) -> Tensor",
    _fused_forward,
    fake=lambda gate_up: gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2),
    backward=lambda ctx, dy: _fused_backward_op(*ctx.saved_tensors, dy),
    save=_save,
)
_split_backward_op = register(
    "silu_mul_backward(Tensor gate, Tensor up, Tensor dy) -> (Tensor, Tensor)",
    _split_backward,
    fake=lambda gate, up, _dy: (gate.new_empty(gate.shape), up.new_empty(up.shape)),
)
_split_op = register(
    "silu_mul(Tensor gate, Tensor up) -> Tensor",
    _launch_forward,
    fake=lambda gate, _up: gate.new_empty(gate.shape),
    backward=lambda ctx, dy: _split_backward_op(*ctx.saved_tensors, dy),
    save=_save,
)


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
    y: Tensor = _fused_op(gate_up)
    return y


def silu_mul(gate: Tensor, up: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Return ``silu(gate) * up`` of two tensors; differentiable in both.

    Args:
        gate: [..., F].
        up: The same shape and dtype.
        impl: Which implementation runs; see :mod:`.dispatch`.

    Returns:
        [..., F], in the inputs' dtype, computed in float32 (float64 for float64 input).

    Raises:
        ValueError: The two differ in shape or dtype.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype or gate.ndim == 0:
        raise ValueError(
            f"gate={gate.dtype}{tuple(gate.shape)} and up={up.dtype}{tuple(up.shape)} differ; "
            "pass one shape [..., F] and one dtype"
        )
    if not use_triton(impl, gate):
        return reference(torch.cat((gate, up), dim=-1))
    y: Tensor = _split_op(gate, up)
    return y


def tunables() -> "Iterator[Tunable]":
    """Yield the choices of launch parameters, for rows of 2 x 3072."""
    from .tune import Tunable

    candidates = [
        {"block": block, "num_warps": warps} for block in (512, 1024, 2048) for warps in (4, 8)
    ]

    def prepare() -> Callable[[Config], Tensor]:
        gate_up = torch.randn(16384, 6144, device="cuda", dtype=torch.bfloat16)
        gate, up = gate_up.chunk(2, dim=-1)
        return lambda config: _launch_forward(gate, up, config)

    yield Tunable("swiglu", "any", candidates, prepare)
