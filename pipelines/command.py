"""The command line of every script here, and the border at which errors become exit codes.

0    the asked stages have finished
1    a bug: the traceback is shown
2    something asked for cannot be: one line says what, the rule and the fix
130  Ctrl-C (143: terminated): one line says how to go on
141  whoever read what is printed has left, as after ``| head``: nothing is said
"""

from __future__ import annotations

import argparse
import os
import select
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from run import Run, finished_as_asked, open_run, without_free
from settings import Raw, plain, read, to_yaml

if TYPE_CHECKING:
    from config import Config
    from stage import Stage

DEFAULT = Path(__file__).parent / "configs" / "arithmetic.yaml"
_STDOUT = 1


class Parser(argparse.ArgumentParser):
    """Errors as exceptions, so that they end like every other wrong input."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError."""
        raise ValueError(f"{message}; --help shows the usage")


def main(stages: Sequence[Stage], words: Sequence[str] | None = None) -> int:
    """Do ``stages`` as ``words`` of the command line ask; return the exit code."""
    words = list(sys.argv[1:] if words is None else words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = obey(stages, words)
        sys.stdout.flush()  # that the reader has left is noticed here, not at exit
        return code
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            return 141  # rich has found out, and sees to the rest
        again = shlex.join(["uv", "run", sys.argv[0], *words])
        print(f"\nstopped; to go on from the last checkpoint: {again}", file=sys.stderr)
        return 130 if isinstance(stop, KeyboardInterrupt) else 143
    except Exception as error:
        if isinstance(error, BrokenPipeError) and has_lost_its_reader():
            return 141
        if not is_explained(origin(error)) or "--traceback" in words:
            raise
        print(f"error: {' '.join(str(origin(error)).split())}", file=sys.stderr)
        return 2


def has_lost_its_reader() -> bool:
    """Return whether nobody reads what is printed; if so, what is left of it goes nowhere."""
    poll = select.poll()
    poll.register(_STDOUT, 0)  # for nothing but its end
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
    return True


def is_explained(error: Exception) -> bool:
    """Return whether the message of ``error`` is for the user: wrong input, or a package's own."""
    return isinstance(error, ValueError) or type(error).__module__.startswith("nanorlhf.")


def origin(error: Exception) -> Exception:
    """Return what an actor raised rather than the report of it that reached this process."""
    cause = getattr(error, "cause", None)
    return origin(cause) if isinstance(cause, Exception) else error


def obey(stages: Sequence[Stage], words: Sequence[str]) -> int:
    """Parse ``words`` and do what they ask."""
    asked = parser().parse_intermixed_args(words)
    if asked.help:
        return show_help()
    raw = read(asked.config, asked.words)
    if not asked.dry_run and finished_as_asked(raw):
        return show_result(Path(raw["run"]["dir"]))
    from config import resolve  # imports torch, which a finished run can do without

    config = resolve(raw)
    if asked.dry_run:
        print(to_yaml(plain(config)), end="")
        return 0
    run = open_run(plain(config))
    try:
        run.state["asked"] = without_free(raw)
        do(stages, run, config)
    except Exception as error:
        if run.created and is_explained(origin(error)) and not run.has_finished_any():
            run.discard()  # nothing half-written: the corrected command starts afresh
        raise
    finally:
        run.close()
    return 0


def parser() -> Parser:
    """Return the parser of the command line."""
    usage = "%(prog)s [--config PATH] [--dry-run] [--traceback] [--help] [key.sub=value ...]"
    result = Parser(usage=usage, add_help=False)
    result.add_argument("words", nargs="*")
    result.add_argument("--config", type=Path, default=DEFAULT)
    for flag in ("--dry-run", "--traceback", "--help"):
        result.add_argument(flag, action="store_true")
    return result


def do(stages: Sequence[Stage], run: Run, config: Config) -> None:
    """Run those of ``stages`` that are not finished; after the last of all, show the result.

    Raises:
        ValueError: None of ``stages`` can run yet.
    """
    done = 0
    for stage in stages:
        if run.is_finished(stage.name):
            print(f"{stage.name}: finished before")
        elif done and not run.has_finished(stage.needs):
            continue  # merge.py after sft: there is nothing of rl to merge yet
        else:
            stage.run(run, config)
        done += 1
    if run.is_complete():
        report(run, plain(config))


def report(run: Run, config: Raw) -> None:
    """Write what a finished run has to show, and show it."""
    from curves import draw_curves
    from result import write_result

    write_result(run, config)
    draw_curves(run.folder / "metrics.jsonl", run.folder / "curves.png")
    show_result(run.folder)


def show_result(folder: Path) -> int:
    """Print the table of the finished run in ``folder``."""
    from result import print_result

    print_result(folder)
    return 0


def show_help() -> int:
    """Print the usage and every key with its default."""
    from config import Config
    from keys import keys

    print(parser().format_usage() + __doc__)
    print(f"The default config is {DEFAULT}. Keys, types and defaults:\n")
    for key, meaning in keys(Config):
        print(f"  {key}: {meaning}")
    return 0
