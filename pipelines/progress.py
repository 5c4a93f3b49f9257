"""What a user sees while a stage runs: a bar on a terminal, now and then a line elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_EVERY_S = 10.0
HEADLINES = {"loss": "sft/loss", "valid": "valid/loss", "reward": "reward/mean", "kl": "rollout/kl"}
"""Word on the display and the metric it shows, if the stage has it."""


class Progress:
    """The display of one stage: phase, step, loss or reward, tokens/s, time left.

    Args:
        phase: Name of the stage.
        total: Its last step.
        start: The step it resumes after.
        console: Where to write.
    """

    def __init__(
        self, phase: str, *, total: int, start: int = 0, console: Console | None = None
    ) -> None:
        self.phase = phase
        self.total = total
        self.start = start
        self.console = console or Console(soft_wrap=True, highlight=False)
        self.began = time.monotonic()
        self.printed = 0.0
        self.shown = start
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(phase, total=total, completed=start, note="")

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Show ``step``."""
        note = describe(metrics)
        self.bar.update(self.task, completed=step, note=note)
        if self.console.is_terminal:
            return
        now = time.monotonic()
        if now - self.printed >= LINE_EVERY_S or step == self.total:
            self.printed, self.shown = now, step
            left = (now - self.began) / max(1, step - self.start) * (self.total - step)
            self.console.print(f"{self.phase} {step}/{self.total}  {note}  {clock(left)} left")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.stop()


def describe(metrics: dict[str, float]) -> str:
    """Return the few numbers to watch.

    >>> describe({"sft/loss": 0.51234, "sft/tokens_per_s": 31999.6, "sft/lr": 0.1})
    'loss 0.512  32,000 tok/s'
    """
    parts = [f"{word} {metrics[name]:.3f}" for word, name in HEADLINES.items() if name in metrics]
    speeds = [value for name, value in metrics.items() if name.endswith("tokens_per_s")]
    parts += [f"{speeds[0]:,.0f} tok/s"] if speeds else []
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Return a duration as ``m:ss`` or ``h:mm:ss``.

    >>> clock(75.2), clock(3671)
    ('1:15', '1:01:11')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
