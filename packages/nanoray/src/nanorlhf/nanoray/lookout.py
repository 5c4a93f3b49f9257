"""Looking for a message without sleeping, as ``spin.py`` decides."""

import contextlib
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

from .spin import Spin

Events = list[tuple[int, int]]
"""What ``poll`` and ``epoll`` return."""


class Lookout:
    """One thread's look at its sockets.

    Args:
        poll: Returns what is there; its argument says how long to wait, and is 0 here.
        may_move: Whether the thread may be moved to another processor.
    """

    def __init__(self, poll: Callable[[float], Events], *, may_move: bool) -> None:
        self._poll, self._may_move = poll, may_move
        self._spin = Spin()

    def look(self) -> Events:
        """Return what comes soon, or nothing: then sleep."""
        spin, poll = self._spin, self._poll
        if not spin.is_due():
            return []
        if self._may_move and spin.must_move():
            step_aside()
        began_s = last_s = now_s = time.perf_counter()
        while not (events := poll(0.0)) and not spin.is_over(
            now_s - began_s, away_s=now_s - last_s
        ):
            os.sched_yield()
            last_s, now_s = now_s, time.perf_counter()
        spin.note(now_s - began_s, away_s=now_s - last_s, is_caught=bool(events))
        return events


def step_aside() -> None:
    """Move this thread to another processor that it may use, a near one if there is one.

    Where it may run afterwards is what it was before.
    """
    with contextlib.suppress(OSError):  # a sandbox may forbid it or hide what it takes
        allowed = os.sched_getaffinity(0)
        fields = Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()
        here = int(fields[36])  # proc_pid_stat(5): field 39, and two stand before the bracket
        others = allowed - {here}
        if others:
            os.sched_setaffinity(0, (others & _near(here)) or others)
            os.sched_setaffinity(0, allowed)


@functools.lru_cache(64)
def _near(processor: int) -> frozenset[int]:
    """Return the processors that have their largest cache in common with one."""
    caches = Path(f"/sys/devices/system/cpu/cpu{processor}/cache").glob("index*/shared_cpu_list")
    return frozenset().union(*(_numbers(cache.read_text()) for cache in caches))


def _numbers(text: str) -> frozenset[int]:
    """Return the numbers of a list of ranges, as the kernel writes them.

    >>> sorted(_numbers("0-2,5"))
    [0, 1, 2, 5]
    """
    spans = [part.partition("-") for part in text.strip().split(",") if part]
    return frozenset(
        number for first, _, last in spans for number in range(int(first), int(last or first) + 1)
    )
