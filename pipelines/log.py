"""metrics.jsonl and samples.jsonl: one line a step, without a gap and without a double."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from config import LogConfig


Line = dict[str, Any]


class JsonLines:
    """A file of JSON objects that each carry ``stage`` and ``step``.

    A line is handed to the operating system before `append` returns, so killing this process
    loses none that a checkpoint counts on; it may leave a torn last line, which `rewind` drops.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("a")

    def append(self, lines: Iterable[Line]) -> None:
        """Write ``lines`` at the end."""
        self.file.write("".join(json.dumps(line) + "\n" for line in lines))
        self.file.flush()

    def rewind(self, stage: str, step: int) -> None:
        """Drop the lines of ``stage`` after ``step``: a resumed stage writes them again."""
        tmp = self.path.with_suffix(".tmp")
        with tmp.open("w") as file:
            for line in read_lines(self.path):
                if line["stage"] != stage or line["step"] <= step:
                    file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        tmp.replace(self.path)
        self.close()
        self.file = self.path.open("a")

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the whole lines of ``path``; a last one that a kill has torn is left out."""
    if not path.exists():
        return
    with path.open() as file:
        for text in file:
            if not text.endswith("\n"):
                return
            yield json.loads(text)


class Log:
    """What one stage writes while it runs.

    Args:
        folder: The run's.
        stage: Name on every line.
        start: Step the stage resumes after.
        config: Who else listens.
        settings: The whole configuration, for the tracker.
    """

    def __init__(
        self, folder: Path, *, stage: str, start: int, config: LogConfig, settings: Line
    ) -> None:
        self.stage = stage
        self.config = config
        self.metrics = JsonLines(folder / "metrics.jsonl")
        self.samples = JsonLines(folder / "samples.jsonl")
        for lines in (self.metrics, self.samples):
            lines.rewind(stage, start)
        self.tracker = self._track(folder, settings) if config.wandb else None

    def _track(self, folder: Path, settings: Line) -> Any:  # noqa: ANN401 - wandb's run; wandb is imported only here
        import wandb

        name = f"{settings['run']['name']}-{self.stage}"
        return wandb.init(
            project=self.config.wandb,
            name=name,
            id=name,  # a resumed stage continues its curve
            resume="allow",
            dir=str(folder),
            config=settings,
        )

    def write(self, step: int, metrics: dict[str, float], samples: list[Line]) -> None:
        """Record one step."""
        head = {"stage": self.stage, "step": step}
        # Samples first: a step whose metrics are on disk is complete.
        self.samples.append({**head, **sample} for sample in samples[: self.config.samples])
        self.metrics.append([{**head, **metrics}])
        if self.tracker is not None:
            self.tracker.log(metrics, step=step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.metrics.close()
        self.samples.close()
        if self.tracker is not None:
            self.tracker.finish(exit_code=0 if error is None else 1)
