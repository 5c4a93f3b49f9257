"""AdamW on flat buffers, and the norm that clipping needs, without waiting for the device.

Loshchilov and Hutter, arXiv:1711.05101, Algorithm 2, with the gradient scaled first::

    g = grad * grad_scale
    m = b1 m + (1 - b1) g                   v = b2 v + (1 - b2) g^2
    p = p (1 - lr weight_decay) - lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)

A model that trains in bfloat16 keeps float32 *master* weights: they are updated, and their rounded
values written to the parameters in the same pass, so that no later kernel has to copy them.

::

    params   bf16 | w      one program = BLOCK entries of every buffer
    grads    bf16 | r
    master   fp32 | rw     28 bytes an entry move; with float32 parameters and gradients and no
    exp_avg  fp32 | rw     master also 28
    exp_avg_sq    | rw

The scale is a number on the device, ``clip_scale(global_norm(grads), max_norm=1.0)``: nothing waits
for the norm. It is summed in two stages, a fixed number of parts and then their sum, so that two
runs agree to the last bit.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .configs import Config, table
from .dispatch import Impl, accumulator, cdiv, jit, jit_varying, launch, tl, use_triton
from .registration import register

if TYPE_CHECKING:
    from .tune import Tunable


def reference(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    master: Tensor | None,
    grad_scale: Tensor,
    numbers: Sequence[float],
) -> None:
    """Update in place in plain PyTorch, in float32 (float64 stays), by :func:`_numbers`."""
    keep, one_minus_beta1, beta2, one_minus_beta2, step_size, root_scale, eps = numbers
    weights = params if master is None else master
    high = accumulator(weights.dtype)
    grad = grads.to(high) * grad_scale.to(high)
    mean, square = exp_avg.to(high), exp_avg_sq.to(high)
    mean = mean + one_minus_beta1 * (grad - mean)
    square = beta2 * square + one_minus_beta2 * grad * grad
    updated = weights.to(high) * keep - step_size * mean / (square.sqrt() * root_scale + eps)
    exp_avg.copy_(mean)
    exp_avg_sq.copy_(square)
    weights.copy_(updated)
    params.copy_(updated)


# A size that is a multiple of 16 is compiled apart, and its loads are as wide as they can be.
@jit
def _update_kernel(
    p_ptr: tl.tensor,
    g_ptr: tl.tensor,
    m_ptr: tl.tensor,
    v_ptr: tl.tensor,
    master_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    size: tl.tensor,
    keep: tl.tensor,
    one_minus_beta1: tl.tensor,
    beta2: tl.tensor,
    one_minus_beta2: tl.tensor,
    step_size: tl.tensor,
    root_scale: tl.tensor,
    eps: tl.tensor,
    MASTER: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    g = tl.load(g_ptr + at, mask=inside, other=0.0).to(tl.float32) * tl.load(scale_ptr)
    m = tl.load(m_ptr + at, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + at, mask=inside, other=0.0).to(tl.float32)
    weights_ptr = master_ptr if MASTER else p_ptr
    w = tl.load(weights_ptr + at, mask=inside, other=0.0).to(tl.float32)
    m += one_minus_beta1 * (g - m)
    v = beta2 * v + one_minus_beta2 * g * g
    w = w * keep - step_size * m / (tl.sqrt(v) * root_scale + eps)
    tl.store(m_ptr + at, m.to(m_ptr.dtype.element_ty), mask=inside)
    tl.store(v_ptr + at, v.to(v_ptr.dtype.element_ty), mask=inside)
    tl.store(p_ptr + at, w.to(p_ptr.dtype.element_ty), mask=inside)
    if MASTER:
        tl.store(master_ptr + at, w, mask=inside)


@jit
def _squares_kernel(
    x_ptr: tl.tensor,
    parts_ptr: tl.tensor,
    size: tl.tensor,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Part i sums blocks i, i + P, ..."""
    total = tl.zeros((BLOCK,), tl.float32)
    blocks = tl.cdiv(size, BLOCK)
    for block in tl.range(tl.program_id(0), blocks, tl.num_programs(0), num_stages=STAGES):
        at = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + at, mask=at < size, other=0.0).to(tl.float32)
        total += x * x
    tl.store(parts_ptr + tl.program_id(0), tl.sum(total, axis=0))


@jit_varying("parts")
def _norm_kernel(
    parts_ptr: tl.tensor, norm_ptr: tl.tensor, parts: tl.tensor, BLOCK: tl.constexpr
) -> None:
    total = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, parts, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(parts_ptr + at, mask=at < parts, other=0.0)
    tl.store(norm_ptr, tl.sqrt(tl.sum(total, axis=0)))


def _launch_update(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    master: Tensor | None,
    grad_scale: Tensor,
    numbers: Sequence[float],
    config: Config | None = None,
) -> None:
    config = config or table("adamw")["update"]
    if params.numel():
        launch(
            _update_kernel,
            (cdiv(params.numel(), config["block"]),),
            *(params, grads, exp_avg, exp_avg_sq, params if master is None else master),
            *(grad_scale, params.numel(), *numbers),
            MASTER=master is not None,
            BLOCK=config["block"],
            num_warps=config["num_warps"],
        )


def _launch_norm(tensors: Sequence[Tensor], config: Config | None = None) -> Tensor:
    config = config or table("adamw")["norm"]
    block = config["block"]
    counts = [min(config["programs"], cdiv(x.numel(), block)) for x in tensors]
    device = tensors[0].device
    parts = torch.empty(sum(counts), dtype=torch.float32, device=device)
    start = 0
    for x, count in zip(tensors, counts, strict=True):
        if count:
            launch(
                _squares_kernel,
                (count,),
                *(x.contiguous(), parts[start:], x.numel()),
                BLOCK=block,
                STAGES=config["num_stages"],
                num_warps=config["num_warps"],
            )
        start += count
    norm = torch.empty((), dtype=torch.float32, device=device)
    launch(_norm_kernel, (1,), parts, norm, len(parts), BLOCK=1024, num_warps=4)
    return norm


def _fake_update(*_arguments: object) -> None:
    return None


def _fake_norm(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].new_empty((), dtype=torch.float32)


_update_op = register(
    "adamw_(Tensor(a!) params, Tensor grads, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, "
    "Tensor(d!)? master, Tensor grad_scale, float[] numbers) -> ()",
    _launch_update,
    fake=_fake_update,
)
_norm_op = register("global_norm(Tensor[] tensors) -> Tensor", _launch_norm, fake=_fake_norm)


def _numbers(
    lr: float, betas: tuple[float, float], eps: float, weight_decay: float, step: int
) -> list[float]:
    """Return what the update multiplies with, from float64 on the host."""
    beta1, beta2 = betas
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1) or lr < 0 or eps <= 0 or weight_decay < 0:
        raise ValueError(
            f"lr={lr}, betas={betas}, eps={eps}, weight_decay={weight_decay}: betas must be in "
            "[0, 1), eps > 0, lr and weight_decay >= 0"
        )
    if step < 1:
        raise ValueError(f"step={step} has no bias correction; count steps from 1")
    root_scale = 1 / math.sqrt(1 - beta2**step)
    step_size = lr / (1 - beta1**step)
    return [1 - lr * weight_decay, 1 - beta1, beta2, 1 - beta2, step_size, root_scale, eps]


def _check(
    params: Tensor, grads: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, master: Tensor | None
) -> None:
    others = {"grads": grads, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if master is not None:
        others["master"] = master
    for name, x in {"params": params, **others}.items():
        if x.shape != params.shape or not x.is_contiguous():
            raise ValueError(
                f"{name}={tuple(x.shape)} with strides {x.stride()} is not contiguous in the shape "
                f"of params={tuple(params.shape)}; pass flat buffers of one length"
            )
    if master is not None and master.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"master is {master.dtype}; master weights are float32")


@torch.no_grad()
def adamw_(
    params: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    master: Tensor | None = None,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    step: int,
    grad_scale: float | Tensor = 1.0,
    impl: Impl = "auto",
) -> None:
    """Update weights and moments in place by one step of AdamW.

    Weight decay applies to all entries: where it should not, call this on slices of the buffers.

    Args:
        params: [n], any floating dtype, contiguous, as every buffer here.
        grads: [n], any floating dtype; left as they are.
        exp_avg: [n], first moment, float32 in practice.
        exp_avg_sq: [n], second moment.
        master: float32 [n], updated in place of ``params``, which become its rounded copy.
        lr: Learning rate. A number, as ``step`` is: a CUDA graph would keep both.
        betas: Decays of the moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled, times ``lr``.
        step: Number of this step, from 1.
        grad_scale: Gradients are multiplied by it; on the device, such as :func:`clip_scale`'s,
            it is read there.
        impl: Which implementation runs; see :mod:`.dispatch`.

    Raises:
        ValueError: Shapes differ, a buffer is not contiguous, or a number is out of its range.

    >>> p, g, m, v = torch.tensor([[1.0], [2.0], [0.0], [0.0]]).unbind()
    >>> adamw_(p, g, m, v, lr=0.1, step=1)
    >>> p
    tensor([0.9000])
    """
    _check(params, grads, exp_avg, exp_avg_sq, master)
    numbers = _numbers(lr, betas, eps, weight_decay, step)
    if not isinstance(grad_scale, Tensor):
        grad_scale = torch.full((), grad_scale, dtype=torch.float32, device=params.device)
    buffers = (params, grads, exp_avg, exp_avg_sq, master, grad_scale)
    if use_triton(impl, params):
        _update_op(*buffers, numbers)
        # Autograd sees only PyTorch's own writes: a backward that saved the old weights must fail.
        torch.autograd.graph.increment_version(params)
    else:
        reference(*buffers, numbers)


def norm_reference(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm of all entries in plain PyTorch, summed in float32 (float64 stays)."""
    squares = [x.to(accumulator(x.dtype)).square().sum() for x in tensors]
    return torch.stack(squares).sum().sqrt()


@torch.no_grad()
def global_norm(tensors: Sequence[Tensor], *, impl: Impl = "auto") -> Tensor:
    """Return the L2 norm of all entries of all tensors, float32 [], on their device.

    Deterministic. Each tensor is one launch: pass flat buffers, not a list of parameters.

    Args:
        tensors: At least one; any shapes and floating dtypes, one device.
        impl: Which implementation runs; see :mod:`.dispatch`.

    Raises:
        ValueError: There is no tensor.

    >>> global_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(5.)
    """
    if not tensors:
        raise ValueError("tensors=[] has no device for its norm; pass at least one tensor")
    if any(use_triton(impl, x) for x in tensors):
        norm: Tensor = _norm_op(list(tensors))
        return norm
    return norm_reference(tensors)


def clip_scale(norm: Tensor, *, max_norm: float) -> Tensor:
    """Return what gradients are multiplied with so that their norm is at most ``max_norm``.

    Args:
        norm: [], of :func:`global_norm`; of all ranks' gradients where they are shared out.
        max_norm: Largest norm.

    >>> clip_scale(torch.tensor(4.0), max_norm=1.0), clip_scale(torch.tensor(0.5), max_norm=1.0)
    (tensor(0.2500), tensor(1.))
    """
    scale: Tensor = max_norm / (norm + 1e-6)
    return scale.clamp(max=1.0)


def tunables() -> "Iterator[Tunable]":
    """Yield the choices of launch parameters, for 256 Mi entries."""
    from .tune import Tunable

    size = 256 << 20
    blocks = [{"block": b, "num_warps": w} for b in (256, 512, 1024, 4096) for w in (2, 4, 8)]

    def update() -> Callable[[Config], Tensor]:
        moments = torch.randn(3, size, device="cuda").abs()
        params, grads = torch.randn(2, size, device="cuda", dtype=torch.bfloat16)
        scale = torch.ones((), device="cuda")
        # A learning rate of 0: candidates then agree however often each has run.
        numbers = _numbers(0.0, (0.9, 0.95), 1e-8, 0.0, 1)

        def run(config: Config) -> Tensor:
            _launch_update(
                params, grads, moments[0], moments[1], moments[2], scale, numbers, config
            )
            some: Tensor = params[: 1 << 20]
            return some

        return run

    def norm() -> Callable[[Config], Tensor]:
        x = torch.randn(size, device="cuda", dtype=torch.bfloat16)
        return lambda config: _launch_norm([x], config)

    yield Tunable("adamw", "update", blocks, update)
    loops = [
        b | {"num_stages": stages, "programs": programs}
        for b in blocks
        for stages in (2, 4)
        for programs in (264, 528, 1056)
    ]
    yield Tunable("adamw", "norm", loops, norm)
