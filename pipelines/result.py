"""What a finished run has to show: result.json and the table."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from disk import replace_text
from run import ORDER, Run
from settings import Raw


def write_result(run: Run, config: Raw) -> None:
    """Write ``result.json`` from the evaluations and the stage times."""
    result = {
        **{of: scores(run.folder / "eval" / f"{of}.json") for of in ("sft", "rl")},
        "seconds": run.seconds(),
        "seed": config["run"]["seed"],
        "config": config,
    }
    replace_text(run.folder / "result.json", json.dumps(result, indent=1))


def scores(path: Path) -> dict[str, float]:
    """Return what the table shows of one evaluation; the length is that of sampled responses."""
    report = json.loads(path.read_text())
    return {
        "accuracy_greedy": report["greedy"]["accuracy"],
        "accuracy_sampled": report["sampled"]["accuracy"],
        "response_tokens": report["sampled"]["tokens"],
    }


def print_result(folder: Path, *, console: Console | None = None) -> None:
    """Print the table of the finished run in ``folder``."""
    console = console or Console(highlight=False)
    result = json.loads((folder / "result.json").read_text())
    console.print(accuracy_table(result))
    console.print(time_table(result["seconds"]))
    console.print(f"{folder}: result.json, curves.png, metrics.jsonl, samples.jsonl, merged/rl/")


def accuracy_table(result: dict[str, Any]) -> Table:
    """Return held-out accuracy and response length after SFT and after RL."""
    table = Table(title="Held-out problems")
    for heading in ("", "greedy", "sampled (T=1)", "response tokens"):
        table.add_column(heading, justify="right" if heading else "left")
    for of in ("sft", "rl"):
        row = result[of]
        accuracies = [f"{row[name]:.1%}" for name in ("accuracy_greedy", "accuracy_sampled")]
        table.add_row(f"after {of.upper()}", *accuracies, f"{row['response_tokens']:.1f}")
    return table


def time_table(seconds: dict[str, float]) -> Table:
    """Return the wall time of each stage and of all."""
    table = Table(title="Wall time")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for name in ORDER:
        table.add_row(name, f"{seconds[name]:.1f}")
    table.add_section()
    table.add_row("all", f"{sum(seconds.values()):.1f}")
    return table
