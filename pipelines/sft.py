"""Supervised fine-tuning: ``uv run pipelines/sft.py [key=value ...]``, after prepare.py."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import command
from loop import follow
from model import pretrained
from run import Run
from stage import Stage

if TYPE_CHECKING:
    from config import Config


def train_sft(run: Run, config: Config) -> None:
    """Fit the demonstrations."""
    from nanorlhf.nanosets import load_dataset
    from nanorlhf.nanoverl import SFTTrainer

    data = run.folder / "data"
    trainer = SFTTrainer(
        config.sft,
        model=pretrained(config) or run.folder / "model",
        train=load_dataset(data / "sft.nano"),
        valid=load_dataset(data / "valid.nano") if config.data.valid_rows else None,
        out=run.folder / "sft",
        runtime=config.run.runtime,
        device=config.run.device,
    )
    with trainer:
        follow(trainer, run, config, stage="sft")


SFT = Stage(name="sft", needs=("prepare_sft",), work=train_sft)

if __name__ == "__main__":
    sys.exit(command.main([SFT]))
