"""Cross-entropy of next tokens straight from hidden states, its gradients made in the forward.

With ``z = h W^T`` and counted tokens t::

    loss_t = lse_t - z[target_t]           dz_t = g (p_t - onehot(target_t)),  p = exp(z - lse)

``p`` needs the log-sum-exp, which is known only after all of z. Yet any shift will do for the
product that follows: with ``s = exp(shift - lse)`` a number a row::

    U = exp(z - shift) - onehot exp(lse - shift)        dh = g s (U W)       dW = g U^T (s h)

so the kernel that sums a tile also stores its exponentials, shifted by the target's logit, known
beforehand for T C multiplications. bfloat16 has the exponents of float32, so U is as exact as p
rounded to bfloat16 would be, unless the guess is off by more than 60 factors of 2 (a token of loss
above 41): then, as the device decides by itself, the chunk is made once more with the shift that is
now known. float16 lacks the exponents; it takes the second product always.

::

    chunk of tokens   h W^T --+-- sums --> loss, s      one kernel (vocab_tiles.py)
                              +-- U ----> U W, U^T (s h)      cuBLAS, float32 (weight_gradient.py)

The loss sees float32 logits. The backward scales both float32 sums by the incoming gradient and
rounds once; it may run twice. Counting 6 T C V FLOPs, three products do 6 T C V.

Memory besides the gradients: one chunk of U (1.2 GB for 4,096 x 151,936 in bfloat16) and the
float32 sums (4 V C bytes, until the backward).

Shape legend: T = tokens, C = hidden size, V = vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from .cross_entropy import Reduction, check_reduction, reduce_losses
from .dispatch import Impl, cdiv, jit, launch, tl, use_triton
from .linear_logprob import at_most_zero, check_inputs, check_targets
from .linear_share import share_of
from .picked_logits import logits_buffer, picked_logits, write_picked
from .registration import register
from .vocab_tiles import (
    LN_2,
    LOG2_E,
    Guess,
    Line,
    aligned,
    chunks,
    exponentials,
    statistics,
)
from .weight_gradient import Gradients, empty_gradients

FAR = 1e30
"""A shift that leaves nothing of a row."""
GUESS_LIMIT = 60.0
"""How far, in factors of 2, the target's logit may be from the log-sum-exp to serve as shift."""
HALF_HEADROOM = 15.0
"""Factors of 2 between p and U in float16, whose smallest normal number is 2^-14."""
SCALED_BLOCK, SCALED_WARPS = 4096, 8


@jit
def _scaled_kernel(
    x_ptr: tl.tensor, factor_ptr: tl.tensor, y_ptr: tl.tensor, numel: tl.tensor, BLOCK: tl.constexpr
) -> None:
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < numel, other=0.0)
    y = x * tl.load(factor_ptr)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=at < numel)


class _Chunks:
    """One call's inputs, walked a chunk of tokens at a time."""

    def __init__(self, hidden: Tensor, weight: Tensor, targets: Tensor, counted: Tensor) -> None:
        self.hidden, self.weight = aligned(hidden), aligned(weight)
        self.counted = counted
        self.rows = targets.where(counted, -1)
        self.picked = picked_logits(self.hidden, self.weight, self.rows) * LOG2_E
        self.has_guess = hidden.dtype != torch.float16
        self.headroom = 0.0 if self.has_guess else HALF_HEADROOM

    def differentiate(self, c: slice, gradients: Gradients) -> Tensor:
        """Add a chunk's part to ``gradients`` and return its log-sum-exp in nats."""
        hidden, vocab = self.hidden[c], self.weight.shape[0]
        guess = self.picked[c].where(self.counted[c], FAR)
        u = logits_buffer(hidden.shape[0], vocab, hidden)
        store = Guess(guess, u) if self.has_guess else None
        nats, _ = statistics(hidden, self.weight, scale=LOG2_E, guess=store)
        lse = nats * LOG2_E
        missed = ((lse - guess).abs() > GUESS_LIMIT) & self.counted[c]
        again = missed.any().view(1) if self.has_guess else torch.ones_like(missed[:1])
        shift = torch.where(again & self.counted[c], lse - self.headroom, guess)
        ones = torch.ones_like(shift)
        line = Line(shift, ones, torch.zeros_like(shift))
        exponentials(hidden, self.weight, line, u, scale=LOG2_E, wanted=again.int())
        at_target = (self.picked[c] - shift).exp2() - (lse - shift).exp2()
        write_picked(u, at_target, self.rows[c], vocab)
        s = (shift - lse + self.headroom).exp2().where(self.counted[c], 0.0)
        width = gradients.weight.shape[1]
        gradients.add(u[:, :vocab], c, (hidden[:, :width] * s[:, None]).to(hidden.dtype))
        if gradients.wants_hidden:
            gradients.hidden_TC[c] *= s[:, None]
        return nats


def _launch(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    mean: bool,
    chunk_tokens: int,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the loss, both sums, and the factor that makes gradients of them."""
    counted = targets != ignore_index
    walk = _Chunks(hidden, weight, targets, counted)
    gradients = Gradients(hidden, weight, wants_hidden=wants_hidden, wants_weight=wants_weight)
    if wants_hidden or wants_weight:
        parts = [walk.differentiate(c, gradients) for c in chunks(len(targets), chunk_tokens)]
        lse = torch.cat(parts) if parts else walk.picked
    else:
        lse = statistics(walk.hidden, walk.weight, scale=LOG2_E).lse_T
    losses = (lse - walk.picked * LN_2).clamp(min=0.0).where(counted, 0.0)
    count = (
        counted.sum().clamp(min=1).float() if mean else counted.new_ones((), dtype=torch.float32)
    )
    loss = losses.sum() / count
    return loss, gradients.hidden_TC, gradients.weight_VC, 2.0**-walk.headroom / count


def _fake(
    hidden: Tensor,
    weight: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = empty_gradients(hidden, weight, wants_hidden=rest[-2], wants_weight=rest[-1])
    loss, factor = (hidden.new_empty((), dtype=torch.float32) for _ in range(2))
    return loss, *sums, factor


def _launch_scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    y = torch.empty_like(x, dtype=dtype)
    if y.numel():
        grid = (cdiv(y.numel(), SCALED_BLOCK),)
        constants = {"BLOCK": SCALED_BLOCK, "num_warps": SCALED_WARPS}
        launch(_scaled_kernel, grid, x, factor, y, y.numel(), **constants)
    return y


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
    ctx.save_for_backward(*output[1:])
    ctx.dtype = inputs[0].dtype
    ctx.set_materialize_grads(False)  # zeros for the gradients of gradients would be as large


def _backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    *sums, factor = ctx.saved_tensors
    kept = (
        _scaled_op(x, factor * grad, ctx.dtype) if wanted else None
        for x, wanted in zip(sums, ctx.needs_input_grad[:2], strict=True)
    )
    return *kept, None, None, None, None, None, None


_scaled_op = register(
    "scaled(Tensor x, Tensor factor, ScalarType dtype) -> Tensor",
    _launch_scaled,
    fake=lambda x, _factor, dtype: torch.empty_like(x, dtype=dtype),
)
_op = register(
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor targets, int ignore_index, "
    "bool mean, int chunk_tokens, bool wants_hidden, bool wants_weight) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _launch,
    fake=_fake,
    backward=_backward,
    save=_save,
)


def linear_cross_entropy(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    targets_T: Tensor,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    chunk_tokens: int = 4096,
    impl: Impl = "auto",
) -> Tensor:
    """Return the cross-entropy of ``hidden_TC @ weight_VC.T`` against targets, without the logits.

    On CUDA, gradients of those inputs that require them are made with the loss; with
    ``reduction="none"``, where they depend on what is done with each loss, in the backward.

    Args:
        hidden_TC: [T, C], the final hidden state before each target.
        weight_VC: [V, C], the output embedding; same dtype as ``hidden_TC``.
        targets_T: int64 [T]. Out of range is an error on CPU tensors and not checked on CUDA.
        ignore_index: Tokens of this target have loss and gradients of 0 and do not count.
        reduction: "mean" over the tokens that count (0 where none does), "sum", or "none": [T].
        chunk_tokens: Rows of logits held at a time. More is faster and takes more memory.
        impl: Which implementation runs; see :mod:`.dispatch`.

    Returns:
        Float32 (float64 for float64 input).

    Raises:
        ValueError: Shapes, dtypes or the reduction do not fit.

    >>> hidden, weight = torch.zeros(2, 4), torch.ones(8, 4)
    >>> linear_cross_entropy(hidden, weight, torch.tensor([3, -100])) == torch.tensor(8.0).log()
    tensor(True)
    """
    check_inputs(hidden_TC, weight_VC, targets_T, chunk_tokens=chunk_tokens)
    check_reduction(reduction)
    counted = targets_T != ignore_index
    check_targets(targets_T, 0, len(weight_VC), counted=counted)
    if use_triton(impl, hidden_TC) and reduction != "none":
        wants = (x.requires_grad and torch.is_grad_enabled() for x in (hidden_TC, weight_VC))
        arguments = (hidden_TC, weight_VC, targets_T, ignore_index, reduction == "mean")
        loss: Tensor = _op(*arguments, chunk_tokens, *wants)[0]
        return loss
    share = share_of(
        *(hidden_TC, weight_VC, targets_T.where(counted, -1)),
        temperature=1.0,
        chunk_tokens=chunk_tokens,
        impl=impl,
    )
    return reduce_losses(-at_most_zero(share.picked_T - share.lse_T), counted, reduction)
