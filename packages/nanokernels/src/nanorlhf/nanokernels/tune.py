"""``python -m nanorlhf.nanokernels.tune``: writes the tables of launch parameters, on a GPU.

Every module of kernels offers its choices in a function ``tunables``. For each key of each table
the candidates are compiled, checked against the entry in use (the results must agree), and timed on
inputs larger than the cache; the fastest goes into ``configs/<table>.json``.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .configs import Config, table

MODULES = (
    "adamw",
    "attention.backward",
    "attention.forward",
    "attention.paged",
    "attention.paged_prefill",
    "matmul",
    "qk_norm_rope",
    "qk_norm_rope_store",
    "rms_norm",
    "sampling_kernels",
    "swiglu",
    "token_share",
    "vocab_tiles",
)
TOLERANCE = 2e-2
WARMUP_MS, REPEAT_MS = 20, 80


class Tunable(NamedTuple):
    """One entry of one table, and what could stand there."""

    table: str
    key: str
    candidates: Sequence[Config]
    prepare: Callable[[], Callable[[Config], Tensor]]
    """Makes inputs on the GPU and returns a function that runs the kernel on them as asked."""


class Timed(NamedTuple):
    """A candidate and its median time."""

    config: Config
    ms: float


def tunables(only: Sequence[str]) -> Iterator[Tunable]:
    """Yield what the modules offer, for the tables named (all without)."""
    for name in MODULES:
        module = importlib.import_module(f".{name}", __package__)
        yield from (t for t in module.tunables() if not only or t.table in only)


def tune(tunable: Tunable) -> Timed:
    """Return the fastest candidate; the entry in use is one of them.

    Raises:
        ArithmeticError: A candidate computes something else than the entry in use.
    """
    run = tunable.prepare()
    used = table(tunable.table)[tunable.key]
    expected = run(used).float()
    found = []
    for config in [used, *(c for c in tunable.candidates if c != used)]:
        found.append(Timed(config, _time(run, config, expected, tunable)))
    return min(found, key=lambda timed: timed.ms)


def _time(
    run: Callable[[Config], Tensor], config: Config, expected: Tensor, tunable: Tunable
) -> float:
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    try:
        result = run(config).float()
    except OutOfResources:
        return float("inf")
    error = float((result - expected).norm() / expected.norm())
    if not error < TOLERANCE:
        raise ArithmeticError(
            f"{tunable.table}[{tunable.key}] with {dict(config)} differs by {error:.1e} from the "
            "entry in use; mend the kernel or drop the candidate"
        )
    ms: float = do_bench(lambda: run(config), warmup=WARMUP_MS, rep=REPEAT_MS, return_mode="median")
    return ms


def write(path: Path, entries: dict[str, Config]) -> None:
    """Write a table, an entry a line."""
    lines = (f" {json.dumps(key)}: {json.dumps(dict(c))}" for key, c in entries.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Tune the tables named, or all, and write them; return the exit code."""
    parser = argparse.ArgumentParser(description="Tune the kernels' launch parameters on a GPU.")
    parser.add_argument("tables", nargs="*", help="tables to tune; all of them without")
    folder = Path(__file__).parent / "configs"
    parser.add_argument("--out", type=Path, default=folder, help="folder the tables go to")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        sys.stderr.write("tune: no CUDA device here, and times are all it is for\n")
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Config]] = {}
    for tunable in tunables(options.tables):
        best = tune(tunable)
        entries = found.setdefault(tunable.table, dict(table(tunable.table)))
        entries[tunable.key] = best.config
        write(options.out / f"{tunable.table}.json", entries)
        sys.stdout.write(f"{tunable.table}[{tunable.key}]: {dict(best.config)} {best.ms:.4f} ms\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
