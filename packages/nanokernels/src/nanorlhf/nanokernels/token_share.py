"""What a row of logits says of its token: log-sum-exp, entropy, the target's logit.

With ``z`` a row of logits over the temperature and ``p = exp(z - lse)``::

    lse     = log sum exp z                dz = p (g_lse - g_entropy (log p + entropy))
    entropy = lse - sum p z                     + g_picked onehot(target)
    picked  = z[target]

One program reads a row once, each thread keeping the peak and the sums of what it saw itself::

    row  | head |  8  8  8  8  8  8  ...  | rest |      vectors of 8 start at multiples of 8
    lane    -      0  1  2  0  1  2          -          elements, whatever the vocabulary is

so that rows of odd length are read as fast as others. The backward reads the row again and writes
its gradient, over the logits where that is asked for.

Memory bound: 2 V bytes a row forward and 4 V backward in bfloat16. Shape legend: T = tokens, V =
vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .configs import Config, table
from .dispatch import Impl, accumulator, cdiv, jit_varying, launch, tl, use_triton
from .registration import register
from .vocab_parallel import Share
from .vocab_tiles import LN_2, LOG2_E

if TYPE_CHECKING:
    from .tune import Tunable


def reference(logits_TV: Tensor, targets_T: Tensor, *, temperature: float = 1.0) -> Share:
    """Return each row's log-sum-exp, entropy and target's logit in plain PyTorch, in float32.

    Float64 stays. Rows whose target lies outside [0, V) are 0, and so is their gradient.
    """
    logits = logits_TV.to(accumulator(logits_TV.dtype)) / temperature
    owned = (targets_T >= 0) & (targets_T < logits.shape[1])
    picked = logits.gather(1, targets_T.where(owned, 0)[:, None]).squeeze(1)
    logp = logits.log_softmax(dim=1)
    # A word of logit -inf has no part in the entropy; -inf times its 0 would be NaN.
    entropy = -(logp.exp() * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(dim=1)
    found = (logits.logsumexp(dim=1), entropy, picked)
    return Share(*(field.where(owned, 0.0) for field in found))


@jit_varying("vocab")
def _forward_kernel(
    z_ptr: tl.tensor,
    target_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    entropy_ptr: tl.tensor,
    picked_ptr: tl.tensor,
    stride_z: tl.tensor,
    vocab: tl.tensor,
    scale: tl.tensor,
    LANES: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(target_ptr + row)
    owned = (target >= 0) & (target < vocab)
    start = row * stride_z
    width = tl.where(owned, vocab, 0)
    head = tl.minimum((8 - start % 8) % 8, width).to(tl.int32)
    vectors = (width - head) // 8
    rest = (width - head) % 8
    # Elements before the first vector and after the last.
    edge = tl.arange(0, 16)
    column = tl.where(edge < 8, edge, width - rest + edge - 8)
    inside = tl.where(edge < 8, edge < head, edge - 8 < rest)
    x_edge = tl.load(z_ptr + start + column, mask=inside, other=float("-inf")).to(tl.float32)
    y_edge = tl.maximum(x_edge * scale, -1e30, propagate_nan=tl.PropagateNan.ALL)
    peak_edge = tl.max(y_edge, 0)
    y_edge -= peak_edge
    e_edge = tl.math.exp2(y_edge)
    total_edge = tl.sum(e_edge, 0)
    weighted_edge = tl.sum(e_edge * y_edge, 0)
    # Vectors: a lane's sums are its own until the end.
    base = z_ptr + tl.multiple_of(start + head, 8)
    lane = tl.arange(0, LANES)
    offset = lane[:, None] * 8 + tl.arange(0, 8)[None, :]
    peak = tl.full((LANES,), -1e30, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    weighted = tl.zeros((LANES,), tl.float32)
    for first in range(0, vectors, LANES):
        valid = (first + lane < vectors)[:, None]
        x = tl.load(base + first * 8 + offset, mask=valid, other=float("-inf")).to(tl.float32)
        # Finite, so that the difference of two of them is 0, and 0 times one of them as well.
        y = tl.maximum(x * scale, -1e30, propagate_nan=tl.PropagateNan.ALL)
        top = tl.maximum(peak, tl.max(y, 1))
        y -= top[:, None]
        e = tl.math.exp2(y)
        drop = peak - top
        shrink = tl.math.exp2(drop)
        weighted = shrink * (weighted + drop * total) + tl.sum(e * y, 1)
        total = total * shrink + tl.sum(e, 1)
        peak = top
    top_all = tl.maximum(tl.max(peak, 0), peak_edge)
    drop = peak - top_all
    shrink = tl.math.exp2(drop)
    drop_edge = peak_edge - top_all
    shrink_edge = tl.math.exp2(drop_edge)
    sums = tl.sum(total * shrink, 0) + total_edge * shrink_edge
    weighted_sums = tl.sum(shrink * (weighted + drop * total), 0)
    weighted_sums += shrink_edge * (weighted_edge + drop_edge * total_edge)
    log_sums = tl.math.log2(sums)
    ln_2 = 0.6931471805599453
    picked = tl.load(z_ptr + start + target, mask=owned, other=0.0).to(tl.float32) * scale
    tl.store(lse_ptr + row, tl.where(owned, (top_all + log_sums) * ln_2, 0.0))
    entropy = tl.maximum(log_sums - weighted_sums / sums, 0.0) * ln_2
    tl.store(entropy_ptr + row, tl.where(owned, entropy, 0.0))
    tl.store(picked_ptr + row, picked * ln_2)


@jit_varying("vocab")
def _backward_kernel(
    z_ptr: tl.tensor,
    target_ptr: tl.tensor,
    shift_ptr: tl.tensor,
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    picked_ptr: tl.tensor,
    dz_ptr: tl.tensor,
    stride_z: tl.tensor,
    vocab: tl.tensor,
    scale: tl.tensor,
    LANES: tl.constexpr,
) -> None:
    blocks = tl.maximum(tl.cdiv(vocab, LANES * 8), 1)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    target = tl.load(target_ptr + row)
    shift = tl.load(shift_ptr + row)
    a = tl.load(a_ptr + row)
    b = tl.load(b_ptr + row)
    picked = tl.load(picked_ptr + row)
    # A row that gets no gradient is not read.
    width = tl.where((a != 0.0) | (b != 0.0) | (picked != 0.0), vocab, 0)
    start = row * stride_z
    head = tl.minimum((8 - start % 8) % 8, vocab).to(tl.int32)
    vectors = (vocab - head) // 8
    rest = (vocab - head) % 8
    if block == 0:
        edge = tl.arange(0, 16)
        at = tl.where(edge < 8, edge, vocab - rest + edge - 8)
        inside = tl.where(edge < 8, edge < head, edge - 8 < rest)
        z = tl.load(z_ptr + start + at, mask=inside & (at < width), other=0.0).to(tl.float32)
        d_edge = z * scale - shift
        dz_edge = tl.math.exp2(d_edge) * (a + b * tl.maximum(d_edge, -1e30))
        dz_edge += tl.where(at == target, picked, 0.0)
        tl.store(dz_ptr + start + at, dz_edge.to(dz_ptr.dtype.element_ty), mask=inside)
    vector = block * LANES + tl.arange(0, LANES)
    column = vector[:, None] * 8 + tl.arange(0, 8)[None, :]
    at = tl.multiple_of(start + head, 8) + column
    valid = (vector < vectors)[:, None]
    x = tl.load(z_ptr + at, mask=(vector < tl.minimum(vectors, width))[:, None], other=0.0)
    d = x.to(tl.float32) * scale - shift
    dz = tl.math.exp2(d) * (a + b * tl.maximum(d, -1e30))
    dz += tl.where(column + head == target, picked, 0.0)
    tl.store(dz_ptr + at, dz.to(dz_ptr.dtype.element_ty), mask=valid)


def rows_of(logits: Tensor) -> Tensor:
    """Return the logits with unit column stride and rows of their own, a view where possible."""
    distinct = logits.stride(1) == 1 and logits.stride(0) >= logits.shape[1]
    return logits if distinct else logits.contiguous()


def _launch_forward(
    logits: Tensor,
    targets: Tensor,
    temperature: float,
    in_place: bool,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    config = config or table("token_share")["forward"]
    z = rows_of(logits)
    lse, entropy, picked = (z.new_empty(len(z), dtype=torch.float32) for _ in range(3))
    if len(z):
        launch(
            _forward_kernel,
            (len(z),),
            *(z, targets, lse, entropy, picked, z.stride(0), z.shape[1], LOG2_E / temperature),
            LANES=config["lanes"],
            num_warps=config["num_warps"],
        )
    return lse, entropy, picked


def _write_gradient(
    z: Tensor,
    out: Tensor,
    targets: Tensor,
    share: Share,
    grads: Share,
    temperature: float,
    config: Config | None = None,
) -> None:
    """Write the gradient of ``z`` into ``out``, of the same strides; they may be one tensor."""
    config = config or table("token_share")["backward"]
    a = (grads.lse_T - grads.entropy_T * share.entropy_T) / temperature
    b = grads.entropy_T * (-LN_2 / temperature)
    if not len(z):
        return
    launch(
        _backward_kernel,
        (len(z) * max(1, cdiv(z.shape[1], 8 * config["lanes"])),),
        *(z, targets, share.lse_T * LOG2_E, a, b, grads.picked_T / temperature, out),
        *(z.stride(0), z.shape[1], LOG2_E / temperature),
        LANES=config["lanes"],
        num_warps=config["num_warps"],
    )


def _launch_backward(
    logits: Tensor,
    targets: Tensor,
    lse: Tensor,
    entropy: Tensor,
    picked: Tensor,
    grad_lse: Tensor,
    grad_entropy: Tensor,
    grad_picked: Tensor,
    temperature: float,
) -> Tensor:
    z = rows_of(logits)
    dz = torch.empty_strided(z.shape, z.stride(), dtype=z.dtype, device=z.device)
    share, grads = Share(lse, entropy, picked), Share(grad_lse, grad_entropy, grad_picked)
    _write_gradient(z, dz, targets, share, grads, temperature)
    return dz


def _launch_backward_in_place(
    logits: Tensor,
    targets: Tensor,
    lse: Tensor,
    entropy: Tensor,
    picked: Tensor,
    grad_lse: Tensor,
    grad_entropy: Tensor,
    grad_picked: Tensor,
    temperature: float,
) -> None:
    share, grads = Share(lse, entropy, picked), Share(grad_lse, grad_entropy, grad_picked)
    _write_gradient(logits, logits, targets, share, grads, temperature)


def _fake_forward(
    logits: Tensor,
    _targets: Tensor,
    _temperature: float,
    _in_place: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    lse, entropy, picked = (logits.new_empty(len(logits), dtype=torch.float32) for _ in range(3))
    return lse, entropy, picked


def _fake_backward(logits: Tensor, *_rest: Any) -> Tensor:
    z = rows_of(logits)
    return z.new_empty_strided(z.shape, z.stride())


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
    logits, targets, ctx.temperature, ctx.in_place = inputs
    ctx.save_for_backward(logits, targets, *output)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
    logits, *rest = ctx.saved_tensors
    if not ctx.in_place:
        return _backward_op(logits, *rest, *grads, ctx.temperature), None, None, None
    _backward_in_place_op(logits, *rest, *grads, ctx.temperature)
    # A second backward, or another use of the logits' values, is now an error and not garbage.
    torch.autograd.graph.increment_version(logits)
    return logits.detach(), None, None, None


_ARGUMENTS = (
    "Tensor targets, Tensor lse, Tensor entropy, Tensor picked, Tensor grad_lse, "
    "Tensor grad_entropy, Tensor grad_picked, float temperature"
)
_backward_op = register(
    f"token_share_backward(Tensor logits, {_ARGUMENTS}) -> Tensor",
    _launch_backward,
    fake=_fake_backward,
)
_backward_in_place_op = register(
    f"token_share_backward_(Tensor(a!) logits, {_ARGUMENTS}) -> ()",
    _launch_backward_in_place,
    fake=lambda *_: None,
)
_forward_op = register(
    "token_share(Tensor logits, Tensor targets, float temperature, bool in_place) "
    "-> (Tensor, Tensor, Tensor)",
    _launch_forward,
    fake=_fake_forward,
    backward=_backward,
    save=_save,
)


def share_of(
    logits: Tensor, targets: Tensor, *, temperature: float, in_place: bool, impl: Impl
) -> Share:
    """Return what each row says of its token, differentiable; zeros for targets outside [0, V)."""
    if use_triton(impl, logits):
        return Share(*_forward_op(logits, targets, temperature, in_place))
    return reference(logits, targets, temperature=temperature)


def tunables() -> "Iterator[Tunable]":
    """Yield the choices of launch parameters, for the vocabulary of a Qwen3."""
    from .tune import Tunable

    def prepare() -> Callable[[Config], Tensor]:
        z = torch.randn(4096, 151_936, device="cuda", dtype=torch.bfloat16)
        targets = torch.randint(z.shape[1], (len(z),), device="cuda")
        return lambda config: _launch_forward(z, targets, 1.0, False, config)[0]

    candidates = [
        {"lanes": lanes, "num_warps": warps} for lanes in (512, 1024, 2048) for warps in (4, 8)
    ]
    yield Tunable("token_share", "forward", candidates, prepare)
