"""The SFT loop: it learns, resumes exactly, and no layout changes what it computes."""

import dataclasses

import pytest

from nanorlhf.nanosets import Dataset
from nanorlhf.nanoverl import Layout, OptimConfig, SFTConfig, SFTTrainer

CONFIG = SFTConfig(
    steps=6,
    batch_size=16,
    max_tokens=40,
    optim=OptimConfig(lr=5e-3),
    layout=Layout(dp=1),
    save_every=3,
    eval_every=3,
)


def fit(config, policy, data, out, *, runtime="inprocess", valid=None, stop=None):
    trainer = SFTTrainer(
        config, model=policy, train=data, valid=valid, out=out, runtime=runtime, device="cpu"
    )
    metrics = {}
    with trainer:
        for result in trainer.fit():
            metrics[result.step] = result.metrics
            if result.step == stop:
                break
    return metrics


def losses(metrics):
    return {step: m["sft/loss"] for step, m in metrics.items()}


def test_the_loss_falls_to_what_can_be_known(policy, demonstrations, tmp_path):
    config = dataclasses.replace(CONFIG, steps=60, batch_size=50, max_tokens=400)
    metrics = fit(config, policy, demonstrations, tmp_path, valid=demonstrations)
    assert metrics[1]["sft/loss"] > 2.0
    assert metrics[60]["sft/loss"] < 0.3
    assert metrics[60]["valid/loss"] < 0.3


def test_a_run_killed_after_a_checkpoint_goes_on_exactly(policy, demonstrations, tmp_path):
    whole = fit(CONFIG, policy, demonstrations, tmp_path / "whole")
    # Step 5 is lost: the checkpoint in force is that of step 3.
    fit(CONFIG, policy, demonstrations, tmp_path / "cut", stop=5)
    rest = fit(CONFIG, policy, demonstrations, tmp_path / "cut")
    assert list(rest) == [4, 5, 6]
    assert losses(rest) == {step: loss for step, loss in losses(whole).items() if step > 3}


def test_a_finished_run_has_nothing_left_to_do(policy, demonstrations, tmp_path):
    config = dataclasses.replace(CONFIG, steps=1)
    fit(config, policy, demonstrations, tmp_path)
    assert fit(config, policy, demonstrations, tmp_path) == {}


@pytest.mark.parametrize("layout", [Layout(dp=2), Layout(dp=1, pp=2)], ids=["dp2", "pp2"])
def test_processes_compute_what_one_does(policy, demonstrations, tmp_path, layout):
    one = fit(CONFIG, policy, demonstrations, tmp_path / "one", valid=demonstrations)
    config = dataclasses.replace(CONFIG, layout=layout)
    many = fit(
        config, policy, demonstrations, tmp_path / "many", runtime="nanoray", valid=demonstrations
    )
    for step, metrics in one.items():
        assert many[step].keys() == metrics.keys()
        for name in metrics.keys() & {"sft/loss", "sft/grad_norm", "valid/loss"}:
            assert many[step][name] == pytest.approx(metrics[name], rel=2e-4), (step, name)


def test_a_layout_that_needs_processes_is_refused_in_one(policy, demonstrations, tmp_path):
    config = dataclasses.replace(CONFIG, layout=Layout(dp=2))
    with pytest.raises(ValueError, match=r"dp\*pp\*tp=2 ranks.*use runtime=nanoray"):
        fit(config, policy, demonstrations, tmp_path)


def test_a_layout_that_does_not_divide_the_model_is_refused(policy, demonstrations, tmp_path):
    config = dataclasses.replace(CONFIG, layout=Layout(dp=1, pp=3))
    with pytest.raises(ValueError, match="num_hidden_layers=2 is less than pp=3"):
        fit(config, policy, demonstrations, tmp_path, runtime="nanoray")


def test_a_mask_of_another_length_than_its_row_is_refused(policy, tmp_path):
    rows = [
        {"tokens": [3, 4, 5], "loss_mask": [False, True, True, True]},
        {"tokens": [3, 4, 5, 6], "loss_mask": [False, True, True]},
    ]
    config = dataclasses.replace(CONFIG, batch_size=2)
    with pytest.raises(ValueError, match=r"row \d: loss_mask is not as long as its \d tokens"):
        fit(config, policy, Dataset.from_list(rows), tmp_path)


def test_validation_without_a_single_target_is_refused(policy, demonstrations, tmp_path):
    rows = [{"tokens": [3, 4], "loss_mask": [False, False]}]
    with pytest.raises(ValueError, match="no token of the validation rows"):
        fit(CONFIG, policy, demonstrations, tmp_path, valid=Dataset.from_list(rows))
