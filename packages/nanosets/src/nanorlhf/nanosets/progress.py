"""How far long work is: a bar on a terminal, nothing anywhere else."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .blocks import Range


@contextmanager
def counting(total: int | None, desc: str) -> Iterator[Callable[[int], object]]:
    """Show a bar on a terminal; yields what to call with how many more rows are done.

    Args:
        total: How many there are; None if that shows at the end only.
        desc: Label of the bar.
    """
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from tqdm import tqdm  # type: ignore[import-untyped]  # 30 ms that only long verbs need

    with tqdm(total=total, desc=desc, unit="row", leave=False) as bar:
        yield bar.update


@contextmanager
def progress(plan: Sequence[Range], desc: str) -> Iterator[Callable[[Range], object]]:
    """Show a bar of the rows of ``plan``; yields what to call after each range."""
    with counting(sum(rows.stop - rows.start for rows in plan), desc) as done:
        yield lambda rows: done(rows.stop - rows.start)
