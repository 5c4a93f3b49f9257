"""Configurations check their arithmetic and say what to do."""

import ast
import dataclasses
import inspect
import itertools
import types
import typing

import pytest

from nanorlhf.nanoverl import (
    AlgoConfig,
    CorrectionConfig,
    KLConfig,
    Layout,
    OptimConfig,
    RewardConfig,
    RLConfig,
    RolloutConfig,
    SFTConfig,
)

CONFIGS = [
    AlgoConfig,
    CorrectionConfig,
    KLConfig,
    Layout,
    OptimConfig,
    RewardConfig,
    RLConfig,
    RolloutConfig,
    SFTConfig,
]
OFF = CorrectionConfig(mode="none")

WRONG = [
    (lambda: Layout(tp=0), "tp=0 is below 1; use 1 or more"),
    (lambda: Layout(dp=0), "dp=0 is below 1"),
    (lambda: OptimConfig(lr=-1.0), "lr=-1.0 is below 0"),
    (lambda: OptimConfig(betas=(0.9, 1.0)), r"betas=\(0.9, 1.0\).*0.95"),
    (lambda: OptimConfig(clip_norm=0.0), "clip_norm=0.0 must be above 0"),
    (lambda: OptimConfig(min_ratio=2.0), r"min_ratio=2.0 is outside \[0, 1\]"),
    (lambda: OptimConfig(lr=float("nan")), "lr=nan is below 0"),
    (lambda: SFTConfig(steps=0), "steps=0"),
    (lambda: RolloutConfig(top_p=0.0), "top_p=0.0"),
    (lambda: RolloutConfig(top_k=-2), "top_k=-2"),
    (lambda: RolloutConfig(max_model_len=64, max_new_tokens=64), "no room for a prompt"),
    (lambda: KLConfig(coef=-0.1), "coef=-0.1"),
    (lambda: CorrectionConfig(cap=1.0), "cap=1.0 must be above 1"),
    (lambda: AlgoConfig(clip_low=1.5), "negative ratios; use less than 1"),
    (lambda: AlgoConfig(dual_clip=0.5), "dual_clip=0.5 must be above 1"),
    (lambda: AlgoConfig(loss="gspo", dual_clip=3.0), "part of loss='ppo'"),
    (lambda: AlgoConfig(gamma=1.1), "gamma=1.1"),
    (lambda: RewardConfig(function="no_colon"), "names no function; use 'package.module:name'"),
    (lambda: RewardConfig(timeout_s=0.0), "timeout_s=0.0"),
    (lambda: RLConfig(minibatches=257), r"prompts\*samples=256\*1=256 responses; use at most 256"),
    (
        lambda: RLConfig(critic_warmup=1, algo=AlgoConfig(advantage="grpo")),
        "trains no critic; use critic_warmup=0",
    ),
    (lambda: RLConfig(rollout=RolloutConfig(temperature=0.0)), "explores nothing; use 1.0"),
    (lambda: RLConfig(rollout=RolloutConfig(top_p=0.9)), "top_p=0.9.*correction.mode='none'"),
]


@pytest.mark.parametrize(("build", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_value_is_named_with_its_rule_and_its_fix(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_defaults_agree_with_each_other():
    for config in CONFIGS:
        assert config() == config()


def test_truncated_sampling_is_allowed_without_corrections():
    config = RLConfig(rollout=RolloutConfig(top_p=0.9), algo=AlgoConfig(correction=OFF))
    assert config.rollout.truncates


def test_the_world_of_a_layout_is_the_product_of_its_axes():
    assert Layout(dp=2, pp=3, tp=4).world == 24
    with pytest.raises(ValueError, match="dp='auto' has no size yet"):
        _ = Layout().world


def test_only_gae_needs_a_critic_and_only_a_penalty_needs_a_reference():
    assert AlgoConfig(advantage="gae").needs_critic
    assert not AlgoConfig(advantage="rloo").needs_critic
    assert not AlgoConfig().needs_reference
    assert AlgoConfig(kl=KLConfig(where="loss")).needs_reference
    assert not AlgoConfig(kl=KLConfig(where="loss", coef=0.0)).needs_reference


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_is_frozen_and_takes_keywords_only(config):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config(), dataclasses.fields(config)[0].name, None)
    with pytest.raises(TypeError):
        config(1)


def leaves(hint):
    """The types a value may have, unions and tuples taken apart."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union, tuple):
        return [leaf for arg in typing.get_args(hint) for leaf in leaves(arg)]
    return [hint]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_can_be_built_from_plain_values(config):
    for name, hint in typing.get_type_hints(config).items():
        for leaf in leaves(hint):
            plain = leaf in (int, float, str, bool, type(None))
            nested = dataclasses.is_dataclass(leaf)
            assert plain or nested or typing.get_origin(leaf) is typing.Literal, (name, leaf)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_that_is_a_number_or_a_word_is_explained(config):
    body = ast.parse(inspect.getsource(config)).body[0].body
    explained = {
        item.target.id
        for item, after in itertools.pairwise(body)
        if isinstance(item, ast.AnnAssign) and isinstance(after, ast.Expr)
    }
    hints = typing.get_type_hints(config)
    plain = {n for n, hint in hints.items() if not dataclasses.is_dataclass(hint)}
    assert plain <= explained


def test_a_warm_up_longer_than_the_run_is_refused_at_once():
    with pytest.raises(ValueError, match="warmup_steps=9 is more than steps=8; lower it"):
        SFTConfig(steps=8, optim=OptimConfig(warmup_steps=9))
    with pytest.raises(ValueError, match="warmup_steps=9 is more than steps=8; lower it"):
        RLConfig(steps=8, critic_optim=OptimConfig(warmup_steps=9))
