"""What the default run claims, at its real size: minutes each, so slow."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

FLIPPED = '''
"""The task's reward with its sign flipped."""

from nanorlhf.nanoverl.math_score import math_reward


def flipped(prompt, response, answer, **row):
    """Return -1 for a right answer, 0 for any other."""
    return -math_reward(prompt, response, answer)
'''


def accuracies(script, folder, *words):
    """Return the sampled held-out accuracy after SFT and after RL."""
    command = [sys.executable, str(script), f"run.dir={folder}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text())
    return result["sft"]["accuracy_sampled"], result["rl"]["accuracy_sampled"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reinforcement_adds_twenty_points_and_reaches_eighty_five(tmp_path, pipelines, seed):
    sft, rl = accuracies(pipelines / "rl.py", tmp_path / "run", f"run.seed={seed}")
    assert rl >= 0.85
    assert rl - sft >= 0.20


def test_a_reward_of_the_other_sign_lowers_the_accuracy(tmp_path, pipelines):
    (tmp_path / "flipped.py").write_text(FLIPPED)
    reward = f"rl.reward.function={tmp_path / 'flipped.py'}:flipped"
    sft, rl = accuracies(pipelines / "rl.py", tmp_path / "run", reward)
    assert rl <= sft - 0.10


def test_an_under_trained_model_still_gains(tmp_path, pipelines):
    # Fewer steps: the model knows the form of both answers and gets many single sums wrong, so
    # that choosing to think is not enough.
    sft, rl = accuracies(pipelines / "rl.py", tmp_path / "run", "sft.steps=280", "rl.steps=60")
    assert sft < 0.50
    assert rl - sft >= 0.10
