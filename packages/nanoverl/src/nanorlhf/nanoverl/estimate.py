"""From an evaluated batch to what the losses read: corrections, weights, advantages."""

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from .advantages import estimate_advantages
from .config import RLConfig
from .corrections import importance_weights
from .experience import Experience
from .losses import aggregation


class Estimate(NamedTuple):
    """A batch ready to be trained on."""

    experience: Experience
    """With corrections, shares, loss weights, advantages, and returns where there is a critic."""
    metrics: dict[str, float]


def estimate(experience: Experience, config: RLConfig) -> Estimate:
    """Return ``experience`` with everything the losses read.

    All statistics are of the whole batch, here on the controller, so that they do not depend on how
    many ranks train on it.

    Args:
        experience: With ``old_logprobs``, and ``values`` or ``ref_logprobs`` where
            ``config.algo`` needs them.
        config: Estimator, correction and aggregation.
    """
    algo = config.algo
    assert experience.old_logprobs is not None, "evaluate the batch first"
    correction = importance_weights(
        experience.old_logprobs,
        experience.rollout_logprobs,
        response_T=experience.response,
        lengths_N=experience.lengths,
        mode=algo.correction.mode,
        cap=algo.correction.cap,
    )
    weights = aggregation(
        experience.response,
        experience.lengths,
        aggregate=algo.aggregate,
        max_length=config.rollout.max_new_tokens,
    )
    weighed = replace(
        experience,
        corrections=correction.weights,
        shares=weights.shares,
        loss_weights=weights.loss_weights,
    )
    done = estimate_advantages(weighed, algo)
    metrics = {f"rollout/{name}": value for name, value in correction.metrics.items()}
    if done.returns is not None and done.values is not None:
        response = done.response
        metrics["critic/explained_variance"] = explained_variance(
            done.values[response], done.returns[response]
        )
    return Estimate(done, metrics)


def explained_variance(values_T: Tensor, returns_T: Tensor) -> float:
    """Return the share of the returns' variance that the values predict; at most 1, 0 without any.

    >>> import torch
    >>> explained_variance(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    1.0
    """
    total = float(returns_T.double().var(correction=0))
    rest = float((returns_T.double() - values_T.double()).var(correction=0))
    return 1.0 - rest / total if total > 0 else 0.0
