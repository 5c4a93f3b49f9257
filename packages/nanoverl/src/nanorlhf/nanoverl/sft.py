"""Supervised fine-tuning: maximise the likelihood of the responses of a dataset."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanorlhf.nanosets import Dataset
from nanorlhf.nanotron import LRSchedule

from .config import OptimConfig, SFTConfig
from .group import TrainGroup
from .order import Order
from .placement import DeviceName, place_here
from .runtime import RuntimeName, create_runtime
from .step import Checkpoints, StepResult, Trainer
from .worker import LossSum


class SFTTrainer(Trainer):
    """Trains ``model`` on packed rows, over any layout; resumes from what ``out`` holds.

    Args:
        config: How.
        model: A Hugging Face directory.
        train: Columns ``tokens: list<int32>`` and ``loss_mask: list<bool>``.
        valid: The same columns; its loss is reported every ``config.eval_every`` steps.
        out: Folder of the checkpoints; weights lie in ``step_*/model``.
        runtime: Where the ranks live.
        device: Kind of device.

    Raises:
        ValueError: The layout does not fit the model, the data or the runtime.
    """

    def __init__(
        self,
        config: SFTConfig,
        *,
        model: Path,
        train: Dataset,
        valid: Dataset | None = None,
        out: Path,
        runtime: RuntimeName = "nanoray",
        device: DeviceName = "auto",
    ) -> None:
        self.config = config
        self.valid = valid
        self.total_steps = config.steps
        self.checkpoints = Checkpoints(out, keep=config.keep)
        self.start_step = int(self.checkpoints.state()["step"])
        self.order = Order(len(train), seed=config.seed)
        self.train = train
        self.schedule = lr_schedule(config.optim, config.steps)
        self.runtime = create_runtime(runtime)
        try:
            placement = place_here(
                config.layout, device=device, processes=self.runtime.has_processes
            )
            self.group = TrainGroup(
                self.runtime,
                placement.layout,
                devices=placement.trainer,
                threads=placement.threads,
                max_tokens=config.max_tokens,
                timeout_s=config.timeout_s,
            )
            resumed = self.checkpoints.latest()
            source = resumed / "model" if resumed else model
            self.group.load(
                "actor", str(source), config.optim, dtype=config.dtype, resume=resumed is not None
            )
            self.group.call("open_datasets", train, valid)
        except BaseException:
            self.close()
            raise

    def fit(self) -> Iterator[StepResult]:
        """Yield each step's metrics; write checkpoints between the steps.

        The call of step s + 1 is sent before the result of step s is read, so that the ranks do
        not wait for the controller; but never past a checkpoint, which must hold step s alone.
        """
        clock = time.perf_counter()
        started = self._start(self.start_step) if self.start_step < self.total_steps else []
        for step in range(self.start_step, self.total_steps):
            metrics = self.group.wait(started, "an SFT step")[0]
            done = step + 1
            pause = self._saves(done) or self._evaluates(done) or not self.runtime.has_processes
            if not pause:
                started = self._start(done)
            now = time.perf_counter()
            yield StepResult(done, self._report(step, metrics, seconds=now - clock), [])
            clock = now
            if pause:
                if self._saves(done):
                    self._save(done)
                if done < self.total_steps:
                    started = self._start(done)

    def _saves(self, done: int) -> bool:
        return done % self.config.save_every == 0 or done == self.total_steps

    def _evaluates(self, done: int) -> bool:
        if self.valid is None:
            return False
        return done % self.config.eval_every == 0 or done == self.total_steps

    def _start(self, step: int) -> list[Any]:
        size = self.config.batch_size
        rows = self.order.take(step * size, size)
        plans = self.group.plan(row_lengths(self.train, rows), rows)
        return self.group.start("sft_step", plans, lr=self.schedule(step))

    def _report(self, step: int, metrics: dict[str, float], *, seconds: float) -> dict[str, float]:
        report = {f"sft/{name}": value for name, value in metrics.items()}
        report["sft/lr"] = self.schedule(step)
        report["sft/tokens_per_s"] = metrics["tokens"] / seconds
        if self._evaluates(step + 1):
            report["valid/loss"] = self._valid_loss()
        return report

    def _valid_loss(self) -> float:
        assert self.valid is not None, "no validation data"
        rows = list(range(len(self.valid)))
        plans = self.group.plan(row_lengths(self.valid, rows), rows)
        parts = self.group.wait(self.group.start("sft_evaluate", plans), "validation")
        # Ranks without the model's head report nothing; the tp ranks of one stage report the same.
        last = self.config.layout.pp - 1
        heads: dict[int, LossSum] = {
            at.dp: part for at, part in zip(self.group.places, parts, strict=True) if at.pp == last
        }
        loss = sum(part.loss for part in heads.values())
        tokens = sum(part.tokens for part in heads.values())
        if not tokens:
            raise ValueError("no token of the validation rows is in its loss_mask; give others")
        return loss / tokens

    def _save(self, done: int) -> None:
        folder = self.checkpoints.begin(done)
        self.group.save("actor", str(folder / "model"))
        self.checkpoints.commit(done, {})

    def close(self) -> None:
        """End the ranks."""
        self.runtime.shutdown()


def lr_schedule(optim: OptimConfig, total_steps: int) -> LRSchedule:
    """Return the schedule ``optim`` describes over ``total_steps``."""
    return LRSchedule(
        optim.lr,
        warmup_steps=optim.warmup_steps,
        total_steps=total_steps,
        min_ratio=optim.min_ratio,
        shape=optim.schedule,
    )


def row_lengths(data: Dataset, rows: list[int]) -> list[int]:
    """Return the number of tokens of each of ``rows``."""
    offsets = data.gather("tokens", rows).offsets.tolist()
    return [stop - start for start, stop in itertools.pairwise(offsets)]
