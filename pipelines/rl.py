"""The whole stack, from data to result table: ``uv run pipelines/rl.py [key=value ...]``.

Finished stages are skipped and an interrupted one goes on from its last checkpoint, so the same
command again is how a run is resumed, and how a finished one prints its table.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import command
from evaluate import EVALUATE_RL, EVALUATE_SFT
from loop import follow
from merge import MERGE_RL, MERGE_SFT
from prepare import PREPARE_RL, PREPARE_SFT
from run import Run
from sft import SFT
from stage import Stage

if TYPE_CHECKING:
    from config import Config


def train_rl(run: Run, config: Config) -> None:
    """Reinforce what earns reward."""
    from nanorlhf.nanosets import load_dataset
    from nanorlhf.nanoverl import RLTrainer

    trainer = RLTrainer(
        config.rl,
        model=run.folder / "merged" / "sft",
        train=load_dataset(run.folder / "data" / "rl.nano"),
        out=run.folder / "rl",
        runtime=config.run.runtime,
        device=config.run.device,
    )
    with trainer:
        follow(trainer, run, config, stage="rl")


RL = Stage(name="rl", needs=("merge_sft", "prepare_rl"), work=train_rl)
ALL = [PREPARE_SFT, SFT, MERGE_SFT, EVALUATE_SFT, PREPARE_RL, RL, MERGE_RL, EVALUATE_RL]

if __name__ == "__main__":
    sys.exit(command.main(ALL))
