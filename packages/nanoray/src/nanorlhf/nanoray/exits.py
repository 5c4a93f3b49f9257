"""What became of a process, in words.

The status of an exit is waitpid's, 16 bits, and above them one more: whether the kernel's
out-of-memory killer struck in this cgroup since the exit before. A SIGKILL does not say who sent
it, but the cgroup counts.
"""

import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

OUT_OF_MEMORY = 1 << 16
"""Set in a status when the kernel has killed a process for want of memory."""

_COUNTERS = ("memory.events", "memory.oom_control")  # cgroup v2, v1
_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


class OomKills:
    """The number of processes that the kernel has killed in a cgroup for want of memory.

    Args:
        cgroups: Text of ``/proc/self/cgroup``, which says where the counter is.
        mount: Where cgroups are mounted.
    """

    def __init__(self, cgroups: str, mount: Path = Path("/sys/fs/cgroup")) -> None:
        self._files = [file for file in _candidates(cgroups, mount) if _count(file) is not None]
        self._last = self._total()

    def have_grown(self) -> bool:
        """Return whether there are more than at the last call; False where nothing counts."""
        before, self._last = self._last, self._total()
        return self._last > before

    def _total(self) -> int:
        return sum(_count(file) or 0 for file in self._files[:1])


def describe_exit(status: int, *, tail: Sequence[str] = ()) -> str:
    """Return what a status says, in words, and after them what the process last said.

    >>> describe_exit(9), describe_exit(256)
    ('was killed by SIGKILL (kill -9, or out of memory)', 'exited with code 1')
    """
    said = "".join(f"\n  | {line}" for line in tail)
    how = _how(status)
    return f"{how}; its last lines were:{said}" if said else how


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status & ~OUT_OF_MEMORY)
    if code >= 0:
        return f"exited with code {code}"
    how = f"was killed by {signal.Signals(-code).name}"
    if -code != signal.SIGKILL:
        return how
    if status & OUT_OF_MEMORY:
        return (
            f"{how} by the kernel, for want of memory (its cgroup's oom_kill has grown): raise the "
            f"limit, run fewer processes at a time, or let each hold less"
        )
    return f"{how} (kill -9, or out of memory)"


def _candidates(cgroups: str, mount: Path) -> list[Path]:
    """Return where the counter may be; a container sees its own cgroup at the top."""
    folders = []
    for line in cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            folders += [mount / controllers / path.lstrip("/"), mount / controllers]
    return [folder / name for folder in folders for name in _COUNTERS]


def _count(file: Path) -> int | None:
    try:
        found = _COUNT.search(file.read_text())
    except OSError:
        return None
    return None if found is None else int(found[1])
