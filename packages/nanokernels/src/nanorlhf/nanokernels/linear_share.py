"""What a vocabulary says of each token, from hidden states: log-sum-exp, entropy, one logit.

With ``z = h W^T / temperature`` over the rows of one rank's vocabulary::

    lse = log sum exp z           p = exp(z - lse)
    entropy = lse - sum p z       picked = z[row], 0 where the row is another rank's

On CUDA the kernels of :mod:`.vocab_tiles` use up the logits where they are made: the forward stores
none, and its sums see them in float32 (rounding logits to bfloat16 moves log-probabilities by up to
0.06). The backward makes them again, ``chunk_tokens`` rows at a time, as their gradient ::

    dz = p (g_lse - g_entropy (log p + entropy)) + g_picked onehot(row)

rounded once to the inputs' dtype, of which cuBLAS makes both gradients (:mod:`.weight_gradient`).
For 4,096 tokens and 151,936 words a chunk is 1.2 GB. On a CPU the same chunks are checkpoints of
plain PyTorch.

FLOPs: 2 T C V forward, 6 T C V backward. Shape legend: T = tokens, C = hidden size, V = vocabulary
rows on this rank.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .dispatch import Impl, accumulator, use_triton
from .picked_logits import logits_buffer, picked_logits, write_picked
from .registration import register
from .vocab_parallel import Share
from .vocab_tiles import LN_2, LOG2_E, Line, aligned, chunks, exponentials, statistics
from .weight_gradient import Gradients, empty_gradients


def reference(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    rows_T: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 4096,
) -> Share:
    """Return each token's share of these rows in plain PyTorch, in float32 (float64 stays).

    ``chunk_tokens`` rows of logits are held at a time, in the backward too.
    """
    high = accumulator(hidden_TC.dtype)
    weight = weight_VC.to(high)
    rows = iter(rows_T.split(chunk_tokens))  # type: ignore[no-untyped-call]
    parts = [
        checkpoint(
            _share,
            *(hidden.to(high), weight, next(rows), temperature),
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for hidden in hidden_TC.split(chunk_tokens)  # type: ignore[no-untyped-call]
    ]
    return Share(*(torch.cat(field) for field in zip(*parts, strict=True)))


def _share(hidden: Tensor, weight: Tensor, rows: Tensor, temperature: float) -> Share:
    """Return one chunk's share, from all of its logits."""
    logits = hidden @ weight.t() / temperature
    owned = (rows >= 0) & (rows < weight.shape[0])
    picked = logits.gather(1, rows.where(owned, 0)[:, None]).squeeze(1)
    logp = logits.log_softmax(dim=1)
    return Share(logits.logsumexp(dim=1), -(logp.exp() * logp).sum(dim=1), picked * owned)


def _launch_forward(
    hidden: Tensor, weight: Tensor, rows: Tensor, temperature: float, chunk_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = aligned(hidden), aligned(weight)
    lse, entropy = statistics(hidden, weight, scale=LOG2_E / temperature)
    return lse, entropy, picked_logits(hidden, weight, rows).div_(temperature)


def _launch_backward(
    hidden: Tensor,
    weight: Tensor,
    rows: Tensor,
    lse: Tensor,
    entropy: Tensor,
    picked: Tensor,
    grad_lse: Tensor,
    grad_entropy: Tensor,
    grad_picked: Tensor,
    temperature: float,
    chunk_tokens: int,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor]:
    x, w = aligned(hidden), aligned(weight)
    vocab = weight.shape[0]
    line = Line(
        lse * LOG2_E,
        (grad_lse - grad_entropy * entropy) / temperature,
        grad_entropy * (-LN_2 / temperature),
    )
    d = picked * LOG2_E - line.shift_T
    at_target = d.exp2() * (line.a_T + line.b_T * d) + grad_picked / temperature
    wanted = torch.ones(1, dtype=torch.int32, device=x.device)
    gradients = Gradients(hidden, weight, wants_hidden=wants_hidden, wants_weight=wants_weight)
    for c in chunks(x.shape[0], chunk_tokens):
        dz = logits_buffer(c.stop - c.start, vocab, x)
        part = Line(*(field[c] for field in line))
        exponentials(x[c], w, part, dz, scale=LOG2_E / temperature, wanted=wanted)
        write_picked(dz, at_target[c], rows[c], vocab)
        gradients.add(dz[:, :vocab], c, hidden[c])
        del dz  # before the next chunk's is made
    return gradients.hidden_TC.to(hidden.dtype), gradients.weight_VC.to(weight.dtype)


def _fake_forward(
    hidden: Tensor, _weight: Tensor, _rows: Tensor, _temperature: float, _chunk_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    lse, entropy, picked = (
        hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(3)
    )
    return lse, entropy, picked


def _fake_backward(hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    of_hidden, of_weight = empty_gradients(
        hidden, weight, wants_hidden=rest[-2], wants_weight=rest[-1]
    )
    return of_hidden.to(hidden.dtype), of_weight.to(weight.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.numbers = inputs[3:]


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    wants = ctx.needs_input_grad[:2]
    found = _backward_op(*ctx.saved_tensors, *grads, *ctx.numbers, *wants)
    kept = (grad if wanted else None for grad, wanted in zip(found, wants, strict=True))
    return *kept, None, None, None


_backward_op = register(
    "linear_share_backward(Tensor hidden, Tensor weight, Tensor rows, Tensor lse, Tensor entropy, "
    "Tensor picked, Tensor grad_lse, Tensor grad_entropy, Tensor grad_picked, float temperature, "
    "int chunk_tokens, bool wants_hidden, bool wants_weight) -> (Tensor, Tensor)",
    _launch_backward,
    fake=_fake_backward,
)
_forward_op = register(
    "linear_share(Tensor hidden, Tensor weight, Tensor rows, float temperature, int chunk_tokens) "
    "-> (Tensor, Tensor, Tensor)",
    _launch_forward,
    fake=_fake_forward,
    backward=_backward,
    save=_save,
)


def share_of(
    hidden: Tensor,
    weight: Tensor,
    rows: Tensor,
    *,
    temperature: float,
    chunk_tokens: int,
    impl: Impl,
) -> Share:
    """Return what these rows of a vocabulary say of each token, differentiable."""
    if use_triton(impl, hidden):
        return Share(*_forward_op(hidden, weight, rows, temperature, chunk_tokens))
    return reference(hidden, weight, rows, temperature=temperature, chunk_tokens=chunk_tokens)
