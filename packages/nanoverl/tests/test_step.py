"""Checkpoints that a kill at any time leaves whole."""

import pytest

from nanorlhf.nanoverl.step import Checkpoints


def write(checkpoints, step, **state):
    folder = checkpoints.begin(step)
    (folder / "weights").write_text(f"of step {step}")
    return checkpoints.commit(step, state)


def test_a_run_without_checkpoints_starts_at_zero(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    assert checkpoints.state() == {"step": 0}


def test_the_newest_are_kept_and_the_last_is_in_force(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 15):
        write(checkpoints, step, seconds=step)
    assert checkpoints.state() == {"step": 15, "seconds": 15}
    assert sorted(p.name for p in tmp_path.glob("step_*")) == ["step_000010", "step_000015"]


@pytest.mark.parametrize("renamed", [False, True])
def test_a_checkpoint_cut_short_leaves_the_one_before_in_force(tmp_path, renamed):
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, 5)
    torn = checkpoints.begin(10)
    (torn / "weights").write_text("half")
    if renamed:  # killed between the rename of the folder and that of the marker
        torn.rename(tmp_path / "step_000010")
    assert checkpoints.state()["step"] == 5
    write(checkpoints, 10)
    assert (checkpoints.latest() / "weights").read_text() == "of step 10"
