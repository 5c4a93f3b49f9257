"""A run's folder: its configuration, which stages have finished, and who works in it now.

    runs/<name>/
      config.yaml  state.json  lock
      tokenizer/  model/  data/           prepare
      sft/  rl/                           checkpoints of the stages
      merged/sft/  merged/rl/             self-contained Hugging Face folders
      eval/                               scores and samples
      metrics.jsonl  samples.jsonl        all stages, by stage and step
      curves.png  result.json             when all is done

A process may be killed between any two lines here: what is on disk is then either as before or
marked as being cleared, and the next start goes on from there.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from disk import acquire, replace_text
from settings import Raw, flatten, parse_yaml, to_yaml

ORDER = (
    "prepare_sft",
    "sft",
    "merge_sft",
    "evaluate_sft",
    "prepare_rl",
    "rl",
    "merge_rl",
    "evaluate_rl",
)
"""The stages of a whole run."""
FREE = ("run.fresh", "run.dir", "run.name", "data.root", "log.")
"""Keys, or beginnings of keys, that may change between two starts of one run."""
TICK_S = 2.0
"""How much of a killed attempt's time may go uncounted."""


class Run:
    """An open run folder; this process alone works in it until `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = not folder.exists()
        self.created = not (folder / "state.json").exists()
        self.lock = acquire(folder)
        self.state: dict[str, Any] = {"stages": {}}
        self._since = self._written = 0.0

    def close(self) -> None:
        """Let other processes in."""
        self.lock.close()

    def discard(self) -> None:
        """Delete what this run has written, the folder too if it was not there before."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.close()
        if self.made:
            self.folder.rmdir()

    def write(self) -> None:
        """Write the state, whole or not at all."""
        replace_text(self.folder / "state.json", json.dumps(self.state, indent=1))

    def clear(self, config: Raw) -> None:
        """Delete what is in the folder and begin a run of ``config``."""
        self.state = {"clearing": True}
        self.write()
        for path in self.folder.iterdir():
            if path.name not in ("lock", "state.json"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        replace_text(self.folder / "config.yaml", to_yaml(config))
        self.state = {"stages": {}}
        self.write()

    def is_finished(self, stage: str) -> bool:
        """Return whether ``stage`` has ended well."""
        return bool(self.state["stages"].get(stage, {}).get("finished"))

    def has_finished(self, stages: Iterable[str]) -> bool:
        """Return whether all of ``stages`` have."""
        return all(self.is_finished(stage) for stage in stages)

    def has_finished_any(self) -> bool:
        """Return whether any stage has."""
        return any(self.is_finished(stage) for stage in self.state["stages"])

    def is_complete(self) -> bool:
        """Return whether every stage of a whole run has."""
        return self.has_finished(ORDER)

    def seconds(self) -> dict[str, float]:
        """Return the wall time of each stage, summed over attempts."""
        stages = self.state["stages"]
        return {name: stages[name]["seconds"] for name in ORDER if name in stages}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time ``name``; it counts as finished when the block ends without an exception."""
        entry = self.state["stages"].setdefault(name, {"seconds": 0.0, "finished": False})
        self._since = self._written = time.monotonic()
        try:
            yield
            entry["finished"] = True
        finally:
            self._count(entry)
            self.write()

    def tick(self, name: str) -> None:
        """Write the time of the running stage ``name``, now and then, lest a kill lose it."""
        if time.monotonic() - self._written > TICK_S:
            self._count(self.state["stages"][name])
            self.write()
            self._written = time.monotonic()

    def _count(self, entry: dict[str, Any]) -> None:
        now = time.monotonic()
        entry["seconds"] = round(entry["seconds"] + now - self._since, 2)
        self._since = now


def open_run(config: Raw) -> Run:
    """Return the run of ``config``, new or resumed.

    Raises:
        ValueError: Another process works in the folder, it holds something else, or it holds a
            run of another configuration.
    """
    folder, fresh = Path(config["run"]["dir"]), config["run"]["fresh"]
    ours = {"lock", "state.json.tmp"}  # all there may be of a run killed while it was made
    foreign = folder.is_dir() and {path.name for path in folder.iterdir()} - ours
    if foreign and not (folder / "state.json").exists():
        raise ValueError(f"run.dir={str(folder)!r} is no run and not empty; name another folder")
    run = Run(folder)
    try:
        state = {} if run.created else json.loads((folder / "state.json").read_text())
        saved = folder / "config.yaml"
        if fresh or not state.get("stages") or not saved.exists():
            run.clear(config)
            return run
        run.state = state
        differing = differences(cast(Raw, parse_yaml(saved.read_text(), where=str(saved))), config)
        if differing and not run.has_finished_any():
            run.clear(config)  # nothing was made with the other configuration
        elif differing:
            raise ValueError(
                f"run.name={config['run']['name']!r} in {folder} has another configuration: "
                f"{'; '.join(differing)}; take another run.name or run.fresh=true to start over"
            )
    except BaseException:
        run.close()
        raise
    return run


def finished_as_asked(raw: Raw) -> bool:
    """Return whether the folder that ``raw`` names holds a finished run of the very same words.

    Only the words are compared, not what they resolve to: a no here may still turn out the same.
    """
    run = raw["run"] if isinstance(raw["run"], dict) else {}
    folder = Path(str(run.get("dir")))
    if run.get("fresh") or not (folder / "result.json").exists():
        return False
    state = json.loads((folder / "state.json").read_text())
    stages = state.get("stages", {})
    complete = all(stages.get(stage, {}).get("finished") for stage in ORDER)
    return complete and state.get("asked") == without_free(raw)


def without_free(raw: Raw) -> Raw:
    """Return the keys of ``raw`` that make a run what it is, by dotted path."""
    flat = {key: v for key, v in flatten(raw).items() if not key.startswith(FREE)}
    return cast(Raw, json.loads(json.dumps(flat, default=str)))


def differences(old: Raw, new: Raw) -> list[str]:
    """Return ``key was old, is new`` for each key that must not change and did."""
    was, now = without_free(old), without_free(new)
    return [
        f"{key} was {was.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key)
    ]
