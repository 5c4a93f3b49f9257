"""A training loop as a user sees it: every step to the log and the display."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from log import Log
from progress import Progress
from run import Run
from settings import plain

if TYPE_CHECKING:
    from config import Config


class Result(Protocol):
    """One finished step."""

    @property
    def step(self) -> int:
        """1 after the first."""

    @property
    def metrics(self) -> dict[str, float]:
        """By name."""

    @property
    def samples(self) -> list[dict[str, Any]]:
        """JSON-ready."""


class Trainer(Protocol):
    """What SFT and RL have in common."""

    start_step: int
    total_steps: int

    def fit(self) -> Iterator[Any]:
        """Yield results; a checkpoint of step s is written after result s was taken."""


def follow(trainer: Trainer, run: Run, config: Config, *, stage: str) -> None:
    """Run ``trainer`` to its end.

    A result is logged before the loop goes on, hence before its checkpoint: a resumed trainer
    finds every step up to its own on disk, and the log drops what came after.
    """
    start, total = trainer.start_step, trainer.total_steps
    if start:
        print(f"{stage}: goes on after step {start} of {total}")
    settings = plain(config)
    with (
        Log(run.folder, stage=stage, start=start, config=config.log, settings=settings) as log,
        Progress(stage, total=total, start=start) as progress,
    ):
        for result in trainer.fit():
            log.write(result.step, result.metrics, result.samples)
            progress.update(result.step, result.metrics)
            run.tick(stage)
