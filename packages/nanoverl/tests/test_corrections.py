"""Importance weights against their definitions."""

import math

import pytest
import torch

from nanorlhf.nanoverl import Experience, importance_weights


@pytest.fixture
def pair(ragged):
    """The batch, the trainer's and the engine's log-probabilities."""
    experience = Experience.from_samples(ragged)
    noise = torch.randn(len(experience.tokens), generator=torch.Generator().manual_seed(2))
    old = experience.rollout_logprobs + noise * experience.response
    return experience, old


def weigh(pair, mode, cap=2.0):
    """The correction of the batch."""
    experience, old = pair
    return importance_weights(
        old,
        experience.rollout_logprobs,
        response_T=experience.response,
        lengths_N=experience.lengths,
        mode=mode,
        cap=cap,
    )


def ratios(pair):
    """old / mu of each response token, one list a sequence."""
    experience, old = pair
    lengths = experience.lengths.tolist()
    columns = (old, experience.rollout_logprobs, experience.response)
    parts = zip(*(c.split(lengths) for c in columns), strict=True)
    return [
        [math.exp(a - b) for a, b, m in zip(*(x.tolist() for x in part), strict=True) if m]
        for part in parts
    ]


def on_responses(pair, weights):
    """The weights of the response tokens, end to end."""
    return weights[pair[0].response].tolist()


@pytest.mark.parametrize(
    ("mode", "definition"),
    [
        ("none", lambda w: 1.0),
        ("tis", lambda w: min(w, 2.0)),
        ("mis", lambda w: w if 0.5 <= w <= 2.0 else 0.0),
    ],
)
def test_token_weights_match_their_definition(pair, mode, definition):
    found = weigh(pair, mode).weights
    wanted = [definition(w) for part in ratios(pair) for w in part]
    assert on_responses(pair, found) == pytest.approx(wanted, rel=1e-5)
    assert not found[~pair[0].response].any()


def test_a_sequence_is_kept_while_its_geometric_mean_is_near_one(pair):
    wanted = []
    for part in ratios(pair):
        mean = math.exp(sum(math.log(w) for w in part) / len(part))
        wanted += [1.0 if 1 / 1.5 <= mean <= 1.5 else 0.0] * len(part)
    assert 0 < sum(wanted) < len(wanted)
    assert on_responses(pair, weigh(pair, "sequence", 1.5).weights) == wanted


def test_metrics_match_their_definitions(pair):
    w = [x for part in ratios(pair) for x in part]
    found = weigh(pair, "mis").metrics
    assert found["kl"] == pytest.approx(sum(x - 1 - math.log(x) for x in w) / len(w), rel=1e-5)
    assert found["max_difference"] == pytest.approx(max(abs(math.log(x)) for x in w), rel=1e-5)
    assert found["ess"] == pytest.approx(sum(w) ** 2 / len(w) / sum(x * x for x in w), rel=1e-5)
    assert found["masked_fraction"] == sum(not 0.5 <= x <= 2 for x in w) / len(w)
    assert found["truncated_fraction"] == 0.0
    capped = weigh(pair, "tis").metrics
    assert capped["truncated_fraction"] == sum(x > 2 for x in w) / len(w)
    assert capped["masked_fraction"] == 0.0


@pytest.mark.parametrize("mode", ["none", "tis", "mis", "sequence"])
def test_equal_policies_change_nothing(pair, mode):
    experience, _ = pair
    found = weigh((experience, experience.rollout_logprobs), mode)
    torch.testing.assert_close(found.weights, experience.response.float())
    assert found.metrics["kl"] == found.metrics["max_difference"] == 0.0
    assert found.metrics["ess"] == pytest.approx(1.0)


def test_weights_are_constants_and_extreme_differences_stay_finite(pair):
    experience, old = pair
    far = (old + torch.tensor([200.0, -200.0]).repeat(12) * experience.response).requires_grad_()
    found = weigh((experience, far), "tis", cap=1e6)
    assert not found.weights.requires_grad
    assert found.weights.isfinite().all()
    assert found.metrics["max_difference"] == 20.0


def test_a_batch_without_response_tokens_has_no_distance():
    nothing = torch.zeros(0)
    given = {"response_T": nothing.bool(), "lengths_N": nothing.long()}
    found = importance_weights(nothing, nothing, **given, mode="tis", cap=2.0)
    assert found.metrics["ess"] == 1.0
