"""Advantages: how much better a token turned out than expected.

Two families. `gae` asks a critic what was expected, token by token. The group estimators compare
the responses to one prompt with each other and give every token of a response the same number:

========================  ===========================================================
grpo                      (R - mean) / (std + 1e-6)            arXiv:2402.03300
dr_grpo                   R - mean                             arXiv:2503.20783
rloo                      R - mean of the *other* responses    arXiv:2402.14740
reinforce++               R to go, whitened over the batch     arXiv:2501.03262
reinforce++_baseline      R - mean, whitened over the batch    arXiv:2501.03262
========================  ===========================================================

A group of one has nothing to compare with and keeps its raw reward, as in verl (core_algos.py).
Sums are formed in float64, results are float32.

Shape legend: T = packed tokens, N = sequences, R = response tokens of the longest response.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .algo import AlgoConfig
from .experience import Experience
from .losses import kl_penalty


class Advantages(NamedTuple):
    """Estimates for each token, 0 outside responses."""

    advantages: Tensor
    """float32 [T]."""
    returns: Tensor
    """float32 [T]: what the critic should have said."""


class _Grid(NamedTuple):
    """Response tokens as rows of a padded table; tokens between them (tool output) left out."""

    tokens: Tensor
    """int64: positions of the response tokens in [T]."""
    row: Tensor
    """int64: sequence of each."""
    column: Tensor
    """int64: how many response tokens of its sequence come before it."""
    shape: tuple[int, int]
    """[N, R]."""

    def spread(self, values_T: Tensor) -> Tensor:
        """Return float64 [N, R], 0 on padding."""
        table = torch.zeros(self.shape, dtype=torch.float64)
        table[self.row, self.column] = values_T[self.tokens].double()
        return table

    def gather(self, table_NR: Tensor, total: int) -> Tensor:
        """Return float32 [T], 0 outside responses."""
        result = torch.zeros(total)
        result[self.tokens] = table_NR[self.row, self.column].float()
        return result


def _grid(response_T: Tensor, lengths_N: Tensor) -> _Grid:
    index = response_T.nonzero()[:, 0]
    row = torch.arange(len(lengths_N)).repeat_interleave(lengths_N)[index]
    counts = torch.bincount(row, minlength=len(lengths_N))
    before = counts.cumsum(0) - counts
    longest = int(counts.max()) if len(counts) else 0
    return _Grid(index, row, torch.arange(len(index)) - before[row], (len(lengths_N), longest))


def _sum_to_go(table_NR: Tensor, decay: float) -> Tensor:
    """Return ``out[t] = table[t] + decay * out[t + 1]`` for every row."""
    if decay == 1:
        return table_NR.flip(1).cumsum(1).flip(1)
    result = torch.zeros_like(table_NR)
    carry = torch.zeros(len(table_NR), dtype=table_NR.dtype)
    for t in reversed(range(table_NR.shape[1])):
        carry = table_NR[:, t] + decay * carry
        result[:, t] = carry
    return result


def gae(
    rewards_T: Tensor,
    values_T: Tensor,
    *,
    response_T: Tensor,
    lengths_N: Tensor,
    gamma: float = 1.0,
    lam: float = 1.0,
) -> Advantages:
    """Return generalized advantage estimates and the critic's targets.

    Eq. 16 of Schulman et al., arXiv:1506.02438, run backwards over the response tokens alone:
    value and advantage are carried across tokens that the policy did not choose, and nothing
    follows the last one. O(R) steps, each over all sequences at once.

    Args:
        rewards_T: float [T], in the task's own units.
        values_T: float [T], the critic's value of the state each token was chosen in.
        response_T: bool [T].
        lengths_N: int64 [N], tokens of each sequence.
        gamma: Discount per token, in [0, 1].
        lam: Bias-variance knob, in [0, 1]; 1 is Monte Carlo, 0 is TD(0).

    >>> out = gae(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 0.5, 0.75]),
    ...           response_T=torch.tensor([False, True, True]), lengths_N=torch.tensor([3]))
    >>> out.advantages, out.returns
    (tensor([0.0000, 0.5000, 0.2500]), tensor([0., 1., 1.]))
    """
    grid = _grid(response_T, lengths_N)
    rewards, values = grid.spread(rewards_T), grid.spread(values_T)
    # Padding behind a row's last token is 0, so that token bootstraps from nothing.
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    advantages = _sum_to_go(rewards + gamma * following - values, gamma * lam)
    total = len(response_T)
    return Advantages(grid.gather(advantages, total), grid.gather(advantages + values, total))


def rewards_to_go(
    rewards_T: Tensor, *, response_T: Tensor, lengths_N: Tensor, gamma: float = 1.0
) -> Tensor:
    """Return float32 [T]: the discounted rewards from each response token on, itself included."""
    grid = _grid(response_T, lengths_N)
    return grid.gather(_sum_to_go(grid.spread(rewards_T), gamma), len(response_T))


def whiten(values_T: Tensor, mask_T: Tensor) -> Tensor:
    """Return the values shifted and scaled to mean 0 and variance 1 over ``mask_T``, 0 elsewhere.

    The mask must cover the whole batch of all ranks, or the result depends on how it was dealt out.

    >>> whiten(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    tensor([-1.,  1.,  0.])
    """
    chosen = values_T[mask_T].double()
    result = torch.zeros_like(values_T)
    if len(chosen):
        centred = chosen - chosen.mean()
        result[mask_T] = (centred * (centred.square().mean() + 1e-8).rsqrt()).to(values_T.dtype)
    return result


class _Groups(NamedTuple):
    """Statistics of each sequence's group, all [N]."""

    size: Tensor
    mean: Tensor
    """float64; 0 in a group of one."""
    std: Tensor
    """float64, unbiased; 1 in a group of one."""


def _groups(reward_N: Tensor, group_N: Tensor) -> _Groups:
    _, index = torch.unique(group_N, return_inverse=True)
    count = torch.bincount(index)
    reward = reward_N.double()
    total = torch.zeros(len(count), dtype=torch.float64)
    mean = total.index_add(0, index, reward) / count
    squares = total.index_add(0, index, (reward - mean[index]).square())
    std = (squares / (count - 1).clamp(min=1)).sqrt()
    alone = count == 1
    mean, std = mean.masked_fill(alone, 0.0), std.masked_fill(alone, 1.0)
    return _Groups(count[index], mean[index], std[index])


def grpo(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """Return float32 [N]: rewards standardised within their group (unbiased deviation)."""
    groups = _groups(reward_N, group_N)
    return ((reward_N.double() - groups.mean) / (groups.std + 1e-6)).float()


def dr_grpo(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """Return float32 [N]: rewards less the mean of their group."""
    return (reward_N.double() - _groups(reward_N, group_N).mean).float()


def rloo(reward_N: Tensor, group_N: Tensor) -> Tensor:
    """Return float32 [N]: rewards less the mean of the others in their group.

    >>> rloo(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([7, 7, 7]))
    tensor([ 1.0000, -0.5000, -0.5000])
    """
    groups = _groups(reward_N, group_N)
    scale = groups.size / (groups.size - 1).clamp(min=1)  # 1 for a group of one: its raw reward
    return (scale * (reward_N.double() - groups.mean)).float()


def token_rewards(experience: Experience, algo: AlgoConfig) -> Tensor:
    """Return float32 [T]: each reward at the last response token, less the KL penalty of each.

    Raises:
        ValueError: The penalty is in the reward and log-probabilities are missing.
    """
    response = experience.response
    rewards = torch.zeros(len(response))
    if algo.kl.where == "reward" and algo.kl.coef > 0:
        old, ref = experience.old_logprobs, experience.ref_logprobs
        if old is None or ref is None:
            raise ValueError(
                "kl.where='reward' needs old_logprobs and ref_logprobs; fill them first"
            )
        rewards -= algo.kl.coef * kl_penalty(old, ref, algo.kl.estimator) * response
    index = torch.where(response, torch.arange(len(response)), -1)
    last = torch.full_like(experience.lengths, -1)
    last.scatter_reduce_(0, experience.sequence, index, "amax")
    answered = last >= 0
    rewards[last[answered]] += experience.reward[answered]
    return rewards


def estimate_advantages(experience: Experience, algo: AlgoConfig) -> Experience:
    """Return ``experience`` with advantages, and with returns where ``algo`` has a critic.

    Raises:
        ValueError: A field that ``algo`` needs is not filled.
    """
    response, lengths = experience.response, experience.lengths
    rewards = token_rewards(experience, algo)
    if algo.advantage == "gae":
        if experience.values is None:
            raise ValueError("advantage='gae' needs values; fill them with the critic's first")
        advantages, returns = gae(
            rewards,
            experience.values,
            response_T=response,
            lengths_N=lengths,
            gamma=algo.gamma,
            lam=algo.lam,
        )
        if algo.normalize:
            advantages = whiten(advantages, response)
        return replace(experience, advantages=advantages, returns=returns)
    if algo.advantage == "reinforce++":
        to_go = rewards_to_go(rewards, response_T=response, lengths_N=lengths, gamma=algo.gamma)
        return replace(experience, advantages=whiten(to_go, response))
    scores = torch.zeros(len(lengths)).index_add(0, experience.sequence, rewards)
    estimator = {"grpo": grpo, "rloo": rloo}.get(algo.advantage, dr_grpo)
    advantages = estimator(scores, experience.group)[experience.sequence] * response
    if algo.advantage == "reinforce++_baseline":
        advantages = whiten(advantages, response)
    return replace(experience, advantages=advantages)
