"""The RL loop: what it samples, what it learns, and that it resumes exactly."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from nanorlhf.nanoverl import (
    AlgoConfig,
    Layout,
    OptimConfig,
    RewardConfig,
    RLConfig,
    RLTrainer,
    RolloutConfig,
)

REWARDS = '''
"""Rewards of responses made of digits."""


def even(prompt, response, answer, **row):
    """1 when the response begins with an even digit."""
    return float(response[:1] in set("02468"))


def odd(prompt, response, answer, **row):
    """The same with its sign flipped."""
    return -even(prompt, response, answer)


def raises(prompt, response, answer, **row):
    """No reward at all."""
    raise RuntimeError("the verifier is down")
'''


@pytest.fixture
def configure(tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)

    def make(**changes):
        reward = f"{tmp_path / 'rewards.py'}:{changes.pop('reward', 'even')}"
        algo = changes.pop("algo", AlgoConfig(advantage="gae", value_clip=None))
        base = RLConfig(
            steps=4,
            rollout=RolloutConfig(
                prompts=16, samples=changes.pop("samples", 1), max_new_tokens=3, max_model_len=8
            ),
            algo=algo,
            reward=RewardConfig(function=reward, workers=1),
            optim=OptimConfig(lr=3e-3),
            critic_optim=OptimConfig(lr=3e-3),
            minibatches=2,
            max_tokens=64,
            layout=Layout(dp=1),
            save_every=2,
        )
        return dataclasses.replace(base, **changes)

    return make


def fit(config, policy, data, out, *, runtime="inprocess", stop=None):
    trainer = RLTrainer(config, model=policy, train=data, out=out, runtime=runtime, device="cpu")
    results = {}
    with trainer:
        for result in trainer.fit():
            results[result.step] = result
            if result.step == stop:
                break
    return results


def untimed(results):
    return {
        step: (
            {k: v for k, v in result.metrics.items() if not k.startswith("time/")},
            result.samples,
        )
        for step, result in results.items()
    }


@pytest.mark.parametrize("lag", [0, 1])
def test_every_token_carries_the_version_that_drew_it(configure, policy, questions, tmp_path, lag):
    results = fit(configure(lag=lag), policy, questions, tmp_path / "run")
    versions = {
        step: {v for sample in result.samples for v in sample["versions"]}
        for step, result in results.items()
    }
    # Step 4 trains on batch 3, drawn by the weights after 3 updates, or one fewer.
    assert versions == {1: {0}, 2: {1 - lag}, 3: {2 - lag}, 4: {3 - lag}}
    assert [r.metrics["rollout/staleness"] for r in results.values()] == [0, lag, lag, lag]


def test_engine_and_trainer_agree_on_what_was_sampled(configure, policy, questions, tmp_path):
    results = fit(configure(lag=0), policy, questions, tmp_path / "run")
    for result in results.values():
        assert result.metrics["rollout/max_difference"] < 1e-4


def test_without_a_learning_rate_nothing_moves(configure, policy, questions, tmp_path):
    still = OptimConfig(lr=0.0)
    config = configure(optim=still, critic_optim=still)
    results = fit(config, policy, questions, tmp_path / "run")
    for result in results.values():
        assert result.metrics["rollout/max_difference"] < 1e-4
    before = load_file(policy / "model.safetensors")
    folder = tmp_path / "run" / "step_000004" / "actor"
    after = {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("stop", [2, 3], ids=["at-checkpoint", "past-checkpoint"])
def test_a_resumed_run_is_the_uninterrupted_one(configure, policy, questions, tmp_path, lag, stop):
    config = configure(lag=lag)
    whole = fit(config, policy, questions, tmp_path / "whole")
    fit(config, policy, questions, tmp_path / "cut", stop=stop)
    rest = fit(config, policy, questions, tmp_path / "cut")
    # A generator left at step 2 never wrote the checkpoint that comes after it.
    expected = {step: result for step, result in whole.items() if step in rest}
    assert list(rest) == ([1, 2, 3, 4] if stop == 2 else [3, 4])
    assert untimed(rest) == untimed(expected)


ALGORITHMS = {
    "ppo": {"algo": AlgoConfig(advantage="gae", value_clip=None)},
    "grpo": {"algo": AlgoConfig(advantage="grpo"), "samples": 4},
    "rloo": {"algo": AlgoConfig(advantage="rloo"), "samples": 4},
    "reinforce++": {"algo": AlgoConfig(advantage="reinforce++")},
}


def shift(results):
    """How much higher the mean reward of the last steps is than that of the first."""
    rewards = [result.metrics["reward/mean"] for result in results.values()]
    return sum(rewards[-4:]) / 4 - sum(rewards[:4]) / 4


@pytest.mark.parametrize("name", ALGORITHMS)
def test_reward_rises(configure, policy, questions, tmp_path, name):
    config = configure(steps=20, save_every=100, **ALGORITHMS[name])
    assert shift(fit(config, policy, questions, tmp_path / "run")) > 0.2


def test_a_reward_of_the_other_sign_teaches_the_opposite(configure, policy, questions, tmp_path):
    config = configure(steps=20, save_every=100, reward="odd")
    results = fit(config, policy, questions, tmp_path / "run")
    assert shift(results) > 0.1  # fewer even digits: minus a smaller number


def test_two_processes_do_what_one_does(configure, policy, questions, tmp_path):
    config = configure()
    one = fit(config, policy, questions, tmp_path / "one")
    two = fit(config, policy, questions, tmp_path / "two", runtime="nanoray")
    for step, result in one.items():
        for name in ("reward/mean", "actor/loss", "actor/grad_norm", "critic/loss"):
            assert two[step].metrics[name] == pytest.approx(
                result.metrics[name], rel=1e-3, abs=1e-5
            ), (step, name)


def test_a_reward_that_always_fails_stops_the_run(configure, policy, questions, tmp_path):
    from nanorlhf.nanoverl import RewardError

    with pytest.raises(RewardError, match="the verifier is down"):
        fit(configure(reward="raises"), policy, questions, tmp_path / "run")


def test_samples_are_ready_for_json(configure, policy, questions, tmp_path):
    results = fit(configure(steps=1), policy, questions, tmp_path / "run")
    sample = json.loads(json.dumps(results[1].samples[0]))
    assert {"prompt_tokens", "response_tokens", "logprobs", "versions", "reward"} <= sample.keys()
    assert sample["row"]["answer"] == sample["row"]["prompt"][1]


@pytest.mark.gpu
def test_trainer_and_rollout_share_one_gpu(configure, policy, questions, tmp_path):
    # The engine samples from weights it mapped out of the trainer's memory: were one of them stale,
    # the trainer's log-probabilities of the same tokens would differ.
    config = configure(lag=0, samples=4, algo=AlgoConfig(advantage="grpo"))
    config = dataclasses.replace(
        config, rollout=dataclasses.replace(config.rollout, gpu_memory_utilization=0.05)
    )
    trainer = RLTrainer(
        config,
        model=policy,
        train=questions,
        out=tmp_path / "run",
        runtime="nanoray",
        device="cuda",
    )
    with trainer:
        results = list(trainer.fit())
    assert [min(min(s["versions"]) for s in r.samples) for r in results] == [0, 1, 2, 3]
    assert all(r.metrics["rollout/max_difference"] < 1e-3 for r in results)
