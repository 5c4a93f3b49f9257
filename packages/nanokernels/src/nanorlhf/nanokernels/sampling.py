"""Drawing one token per row, reproducibly and independently of the batch.

A draw is the arg-max of ``log p + g`` with Gumbel noise g (Gumbel 1954; the "Gumbel-max trick"),
where the noise is a hash of (seed, step, token): :mod:`.gumbel`. A row draws the same token alone
or among others, whatever was drawn before.

Truncation works on the row ordered by logit from high to low, equals by index, where top-k, top-p
and min-p all keep a prefix; the shortest of the three is kept. top-p counts within what top-k left,
as in vLLM and transformers. The reference sorts (:mod:`.sampling_by_sort`), the kernels find the
cut without (:mod:`.sampling_kernels`, :mod:`.truncation`).

What is promised at a cut: counts and order are exact, so top-k keeps what a stable sort keeps. Sums
of probabilities are float32, added in an order that depends on V alone; so the cut of top-p is that
of exact sums unless a sum comes within about 1e-6 of ``top_p`` (relative), and min-p's is likewise
exact to a few units in the last place of ``log(min_p)``. Either way one row gives one answer.

Shape legend: B = rows, V = vocabulary.
"""

import torch
from torch import Tensor

from .dispatch import Impl, use_triton
from .registration import register
from .sampling_by_sort import Limits, Sampled, reference
from .sampling_kernels import launch_sampling


def _fake(logits: Tensor, temperature: Tensor, *_rest: Tensor | None) -> tuple[Tensor, ...]:
    rows = logits.shape[:1]
    numbers = tuple(logits.new_empty(rows, dtype=torch.float32) for _ in range(3))
    return logits.new_empty(rows, dtype=torch.int64), *numbers


_op = register(
    "sample(Tensor logits, Tensor temperature, Tensor? top_k, Tensor? top_p, Tensor? min_p, "
    "Tensor seeds, Tensor steps) -> (Tensor, Tensor, Tensor, Tensor)",
    launch_sampling,
    fake=_fake,
)


def _check(logits: Tensor, rows: dict[str, Tensor | None]) -> None:
    """Raise ``ValueError`` for shapes that do not fit."""
    if logits.ndim != 2 or not logits.is_floating_point() or logits.shape[1] == 0:
        raise ValueError(
            f"logits_BV={logits.dtype}{tuple(logits.shape)} must be float [B, V]; pass a row each"
        )
    for name, row in rows.items():
        if row is not None and row.shape != logits.shape[:1]:
            raise ValueError(
                f"{name}={tuple(row.shape)} does not match B={logits.shape[0]}; pass one per row"
            )


def sample(
    logits_BV: Tensor,
    *,
    temperature_B: Tensor,
    top_k_B: Tensor | None = None,
    top_p_B: Tensor | None = None,
    min_p_B: Tensor | None = None,
    seeds_B: Tensor,
    steps_B: Tensor,
    impl: Impl = "auto",
) -> Sampled:
    """Draw one token per row.

    The kernel waits for nothing and allocates the same whatever is asked, so a CUDA graph can hold
    it; the reference waits for the device to learn whether any row has limits.

    Args:
        logits_BV: Float [B, V], finite or -inf (never drawn); at least one finite in a row.
        temperature_B: float32 [B], at least 0; 0 takes the most likely token, of equals the first.
        top_k_B: Integer [B], tokens to keep; 0 keeps all. None keeps all in every row.
        top_p_B: float32 [B], in (0, 1]: the fewest likely tokens that reach this mass; 1 keeps all.
        min_p_B: float32 [B], in [0, 1]: tokens at least this share of the likeliest; 0 keeps all.
        seeds_B: Integer [B], a row's own seed.
        steps_B: Integer [B], how many tokens the row has drawn before.
        impl: Which implementation runs; see :mod:`.dispatch`.

    Returns:
        Tokens, their log-probabilities in both senses, and the mass kept.

    Raises:
        ValueError: Shapes do not fit.

    >>> one = torch.ones(1)
    >>> logits = torch.tensor([[0.0, 9.0, 0.0]])
    >>> drawn = sample(logits, temperature_B=0 * one, seeds_B=one, steps_B=one)
    >>> drawn.tokens.tolist(), drawn.logprobs.tolist()
    ([1], [0.0])
    """
    limits = Limits(top_k_B, top_p_B, min_p_B)
    rows: dict[str, Tensor | None] = {
        "temperature_B": temperature_B,
        "seeds_B": seeds_B,
        "steps_B": steps_B,
    }
    limits_by_name = {"top_k_B": top_k_B, "top_p_B": top_p_B, "min_p_B": min_p_B}
    _check(logits_BV, rows | limits_by_name)
    if not use_triton(impl, logits_BV):
        return reference(logits_BV, temperature_B, limits, seeds_B, steps_B)
    return Sampled(*_op(logits_BV, temperature_B, *limits, seeds_B, steps_B))
