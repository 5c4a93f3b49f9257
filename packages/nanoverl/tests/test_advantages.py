"""Each estimator against its definition, one sequence or one group at a time."""

import statistics
from dataclasses import replace

import pytest
import torch

from nanorlhf.nanoverl import (
    AlgoConfig,
    Experience,
    KLConfig,
    dr_grpo,
    estimate_advantages,
    gae,
    grpo,
    rewards_to_go,
    rloo,
    token_rewards,
    whiten,
)


@pytest.fixture
def batch(ragged):
    """The ragged batch with values, and log-probabilities of trainer and reference."""
    experience = Experience.from_samples(ragged)
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(len(experience.tokens), generator=generator) for _ in range(3)]
    old, ref, values = (x * experience.response for x in noise)
    return replace(experience, old_logprobs=old, ref_logprobs=ref, values=values)


def rows(experience, *tensors):
    """For each sequence, its response tokens' entries of each tensor as lists."""
    lengths = experience.lengths.tolist()
    masks = experience.response.split(lengths)
    parts = [tensor.split(lengths) for tensor in tensors]
    return [
        [column[n][masks[n]].tolist() for column in parts] for n in range(len(experience.lengths))
    ]


def gae_by_definition(rewards, values, gamma, lam):
    """The sum in eq. 16 of arXiv:1506.02438, O(T^2)."""
    values = [*values, 0.0]
    steps = range(len(rewards))
    deltas = [rewards[t] + gamma * values[t + 1] - values[t] for t in steps]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in steps if k >= t) for t in steps]


def flat(lists):
    """All numbers of a list of lists."""
    return [x for part in lists for x in part]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_gae_matches_its_definition_on_ragged_rows_with_tool_output(batch, gamma, lam):
    rewards = torch.randn(len(batch.tokens)) * batch.response
    out = gae(
        rewards,
        batch.values,
        response_T=batch.response,
        lengths_N=batch.lengths,
        gamma=gamma,
        lam=lam,
    )
    found = rows(batch, out.advantages, out.returns, rewards, batch.values)
    for advantages, returns, r, v in found:
        wanted = gae_by_definition(r, v, gamma, lam)
        assert advantages == pytest.approx(wanted, abs=1e-5)
        assert returns == pytest.approx([a + b for a, b in zip(wanted, v, strict=True)], abs=1e-5)
    assert not out.advantages[~batch.response].any()
    assert not out.returns[~batch.response].any()


def test_gae_without_bootstrapping_is_reward_less_value(batch):
    rewards = token_rewards(batch, AlgoConfig())
    out = gae(rewards, batch.values, response_T=batch.response, lengths_N=batch.lengths)
    reward = batch.reward[batch.sequence]
    torch.testing.assert_close(out.returns, reward * batch.response)
    torch.testing.assert_close(out.advantages, (reward - batch.values) * batch.response)


def test_gae_of_a_perfect_critic_is_zero(batch):
    rewards = token_rewards(batch, AlgoConfig())
    perfect = batch.reward[batch.sequence] * batch.response
    for lam in (0.0, 0.7, 1.0):
        out = gae(rewards, perfect, response_T=batch.response, lengths_N=batch.lengths, lam=lam)
        torch.testing.assert_close(out.advantages, torch.zeros_like(perfect))


def test_gae_does_not_depend_on_how_sequences_are_packed(batch):
    rewards = token_rewards(batch, AlgoConfig())

    def run(indices):
        part, index = batch.select(indices), batch.token_index(indices)
        given = {"response_T": part.response, "lengths_N": part.lengths}
        return gae(rewards[index], part.values, **given, gamma=0.9, lam=0.5).advantages

    together = run([0, 1, 2, 3, 4])
    alone = torch.cat([run([n]) for n in range(5)])
    torch.testing.assert_close(alone, together)


def test_gae_takes_noncontiguous_tensors_and_no_tokens(batch):
    rewards = token_rewards(batch, AlgoConfig())
    both = torch.stack([rewards, batch.values], dim=1)
    given = {"response_T": batch.response, "lengths_N": batch.lengths, "lam": 0.5}
    strided = gae(both[:, 0], both[:, 1], **given)
    torch.testing.assert_close(strided.advantages, gae(rewards, batch.values, **given).advantages)
    nothing = torch.zeros(0)
    empty = {"response_T": nothing.bool(), "lengths_N": nothing.long()}
    assert len(gae(nothing, nothing, **empty, lam=0.5).advantages) == 0


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_rewards_to_go_sum_what_is_still_to_come(batch, gamma):
    rewards = torch.randn(len(batch.tokens)) * batch.response
    found = rewards_to_go(rewards, response_T=batch.response, lengths_N=batch.lengths, gamma=gamma)
    for to_go, r in rows(batch, found, rewards):
        steps = range(len(r))
        wanted = [sum(gamma ** (k - t) * r[k] for k in steps if k >= t) for t in steps]
        assert to_go == pytest.approx(wanted, abs=1e-5)


REWARDS = [1.0, 0.0, 0.0, 0.5, 0.25, 2.0, 2.0, 2.0, -3.0]
GROUPS = [9, 9, 9, 4, 4, 1, 1, 1, 6]  # the last one is alone


def by_group(definition):
    """``definition(own, others)`` for each reward, others being the rest of its group."""
    pairs = list(zip(REWARDS, GROUPS, strict=True))
    result = []
    for i, (own, group) in enumerate(pairs):
        others = [r for j, (r, g) in enumerate(pairs) if g == group and j != i]
        result.append(definition(own, others) if others else own)
    return result


def standardised(own, others):
    """(R - mean) / (std + 1e-6), arXiv:2402.03300."""
    group = [own, *others]
    return (own - statistics.mean(group)) / (statistics.stdev(group) + 1e-6)


@pytest.mark.parametrize(
    ("estimator", "definition"),
    [
        (grpo, standardised),
        (dr_grpo, lambda own, others: own - statistics.mean([own, *others])),
        (rloo, lambda own, others: own - statistics.mean(others)),
    ],
)
def test_a_group_estimator_matches_its_definition_and_leaves_a_group_of_one(estimator, definition):
    found = estimator(torch.tensor(REWARDS), torch.tensor(GROUPS))
    # grpo divides a group of one by 1 + 1e-6, as verl does
    assert found.tolist() == pytest.approx(by_group(definition), abs=5e-6)


@pytest.mark.parametrize("estimator", [grpo, dr_grpo, rloo])
def test_a_group_that_agrees_gives_exactly_no_advantage(estimator):
    rewards = torch.full((7,), 0.1)
    assert estimator(rewards, torch.zeros(7, dtype=torch.long)).tolist() == [0.0] * 7


def test_whitening_covers_the_masked_tokens_of_the_whole_batch():
    values, mask = torch.randn(50) * 3 + 5, torch.rand(50) > 0.3
    found = whiten(values, mask)
    chosen = values[mask].tolist()
    mean, std = statistics.mean(chosen), statistics.pstdev(chosen)
    assert found[mask].tolist() == pytest.approx([(x - mean) / std for x in chosen], abs=1e-5)
    assert not found[~mask].any()
    assert whiten(values, torch.zeros(50, dtype=torch.bool)).tolist() == [0.0] * 50


def test_the_reward_stands_at_the_last_response_token(batch):
    for (found,) in rows(batch, token_rewards(batch, AlgoConfig())):
        assert found[:-1] == [0.0] * (len(found) - 1)
    last = [found[-1] for (found,) in rows(batch, token_rewards(batch, AlgoConfig()))]
    assert last == batch.reward.tolist()


def test_the_penalty_is_taken_off_the_reward_of_each_token(batch):
    algo = AlgoConfig(kl=KLConfig(where="reward", coef=0.5, estimator="k1"))
    found = token_rewards(batch, algo)
    penalty = 0.5 * (batch.old_logprobs - batch.ref_logprobs)
    torch.testing.assert_close(found, token_rewards(batch, AlgoConfig()) - penalty)
    assert not found[~batch.response].any()


def spread(batch, scores):
    """A number for each sequence, on each of its response tokens."""
    return torch.tensor(scores)[batch.sequence] * batch.response


def test_estimates_are_those_of_the_chosen_estimator(batch):
    def run(name, **settings):
        return estimate_advantages(batch, AlgoConfig(advantage=name, **settings))

    scores = {
        "grpo": grpo(batch.reward, batch.group),
        "dr_grpo": dr_grpo(batch.reward, batch.group),
        "rloo": rloo(batch.reward, batch.group),
    }
    for name, score in scores.items():
        found = run(name)
        torch.testing.assert_close(found.advantages, spread(batch, score.tolist()))
        assert found.returns is None
    wanted = whiten(spread(batch, batch.reward.tolist()), batch.response)
    torch.testing.assert_close(run("reinforce++").advantages, wanted)
    wanted = whiten(spread(batch, scores["dr_grpo"].tolist()), batch.response)
    torch.testing.assert_close(run("reinforce++_baseline").advantages, wanted)
    raw = run("gae", normalize=False)
    torch.testing.assert_close(run("gae").advantages, whiten(raw.advantages, batch.response))
    torch.testing.assert_close(run("gae").returns, raw.advantages + batch.values)


def test_a_penalty_in_the_reward_reaches_group_estimators_as_a_sum(batch):
    algo = AlgoConfig(advantage="rloo", kl=KLConfig(where="reward", coef=0.1, estimator="k3"))
    d = batch.old_logprobs - batch.ref_logprobs
    penalty = 0.1 * ((-d).exp() - 1 + d)
    scores = [
        r - sum(p) for r, (p,) in zip(batch.reward.tolist(), rows(batch, penalty), strict=True)
    ]
    wanted = spread(batch, rloo(torch.tensor(scores), batch.group).tolist())
    torch.testing.assert_close(estimate_advantages(batch, algo).advantages, wanted)


def test_missing_inputs_are_named(batch):
    with pytest.raises(ValueError, match="advantage='gae' needs values"):
        estimate_advantages(replace(batch, values=None), AlgoConfig())
    algo = AlgoConfig(kl=KLConfig(where="reward"))
    with pytest.raises(ValueError, match="needs old_logprobs and ref_logprobs"):
        estimate_advantages(replace(batch, ref_logprobs=None), algo)
