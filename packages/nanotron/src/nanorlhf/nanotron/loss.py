"""The loss contract: losses are sums, the engine owns the denominator.

A loss function sees the outputs of one microbatch and returns a sum over its tokens. The engine
divides by one weight, summed over every microbatch of every data parallel rank, before the first
backward, and adds gradients everywhere. So the data parallel size, the number of microbatches,
the packing and the pipeline cannot change a gradient: there is no mean of means.

Shape legend: T = packed tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from .packing import Microbatch


class TokenOutputs(NamedTuple):
    """What the model says about each token; 0 where ``Microbatch.mask`` is False.

    Index t describes token t: it is computed from the hidden state at t - 1.
    """

    logprobs: Tensor | None = None
    """float32 [T], log-probability of token t; None for a value head."""
    entropy: Tensor | None = None
    """float32 [T], entropy of the distribution token t was predicted by; None for a value head."""
    values: Tensor | None = None
    """float32 [T], value before token t; None for a language model head."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of one microbatch and what to report about it."""

    sum: Tensor
    """Scalar: sum over the microbatch's tokens (or sequences), undivided."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Scalars, sums as well; divided by the same weight for the report."""


LossFunction = Callable[[TokenOutputs, Microbatch], Loss]


def next_token_loss(out: TokenOutputs, batch: Microbatch) -> Loss:
    """Return the negative log-likelihood of the masked tokens: the SFT loss."""
    if out.logprobs is None or out.entropy is None:
        raise ValueError("head='value' has no log-probabilities; use head='lm'")
    return Loss(-out.logprobs.sum(), {"entropy": out.entropy.detach().sum()})
