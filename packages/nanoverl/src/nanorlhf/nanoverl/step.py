"""What a training loop is: steps that are yielded, saved atomically between, and closed at last."""

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self


class StepResult(NamedTuple):
    """One finished step."""

    step: int
    """1 after the first step."""
    metrics: dict[str, float]
    """Slash-named numbers, e.g. ``actor/grad_norm``."""
    samples: list[dict[str, Any]]
    """Responses with their prompts and rewards, JSON-ready; empty in SFT."""


class Trainer(ABC):
    """A training loop that owns processes; leaving a ``with`` block ends them."""

    start_step: int
    """Steps that the checkpoint it resumed from had done; 0 without one."""
    total_steps: int

    @abstractmethod
    def fit(self) -> Iterator[StepResult]:
        """Yield each step's result; the checkpoint of a step is written after it was taken."""

    @abstractmethod
    def close(self) -> None:
        """End the processes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Checkpoints:
    """The checkpoints of one run: ``out/step_000100/`` and ``out/latest``, which names one of them.

    A checkpoint is written under another name and renamed when it is whole, and ``latest`` is
    replaced after that, so a process killed at any time leaves the previous one in force.
    """

    def __init__(self, out: Path, *, keep: int) -> None:
        self.out = out
        self.keep = keep

    def latest(self) -> Path | None:
        """Return the folder of the newest whole checkpoint, or None."""
        marker = self.out / "latest"
        if not marker.exists():
            return None
        return self.out / str(json.loads(marker.read_text())["path"])

    def begin(self, step: int) -> Path:
        """Return an empty folder to write the checkpoint of ``step`` into."""
        folder = self.out / f"step_{step:06d}.tmp"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def commit(self, step: int, state: dict[str, Any]) -> Path:
        """Put the folder of `begin` in force, with ``state``; keep the newest ``keep``."""
        folder = self.out / f"step_{step:06d}"
        tmp = folder.with_suffix(".tmp")
        (tmp / "state.json").write_text(json.dumps({"step": step, **state}))
        shutil.rmtree(folder, ignore_errors=True)  # one that was written but never put in force
        tmp.rename(folder)
        replace_text(self.out / "latest", json.dumps({"step": step, "path": folder.name}))
        for old in sorted(self.out.glob("step_*[0-9]"))[: -self.keep]:
            shutil.rmtree(old)
        return folder

    def state(self) -> dict[str, Any]:
        """Return the state saved with the newest checkpoint, ``{"step": 0}`` without one."""
        folder = self.latest()
        if folder is None:
            return {"step": 0}
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
        return state


def replace_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader finds the old text or the new, never a part."""
    tmp = path.with_name(path.name + ".tmp")
    with tmp.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    tmp.replace(path)
