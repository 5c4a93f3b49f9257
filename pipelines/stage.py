"""The stages of a run and what each needs first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from run import Run

if TYPE_CHECKING:
    from config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of a run, repeated from its start, or its last checkpoint, until it finishes."""

    name: str
    needs: tuple[str, ...]
    work: Callable[[Run, Config], None]

    def run(self, run: Run, config: Config) -> None:
        """Do the work and note the time.

        Raises:
            ValueError: A stage that this one needs has not finished.
        """
        missing = [stage for stage in self.needs if not run.is_finished(stage)]
        if missing:
            raise ValueError(
                f"stage {self.name} needs {', '.join(missing)}, which has not finished in "
                f"{run.folder}; run rl.py, which does all stages, or the scripts in order"
            )
        with run.stage(self.name):
            self.work(run, config)
