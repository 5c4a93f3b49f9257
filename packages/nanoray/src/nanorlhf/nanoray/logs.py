"""What workers print: cut into lines, marked with their process, and said once.

A pipe stands in for stdout and another for stderr in every worker. Lines that differ in numbers
alone and come from several processes within a few seconds are shown once, with a count, as Ray
does (python/ray/_private/ray_logging): eight ranks that warn of the same thing warn once::

    (Trainer pid=4711) loading shard 0
    (Trainer pid=4718) loading shard 7 [7 lines like it from other processes]

Times are the caller's. ``Printer`` alone prints.
"""

import contextlib
import re
import sys
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

TAIL_LINES = 20
"""Lines kept of each process, for the error that tells of its death."""
_LONGEST = 64 * 1024  # characters of a line; a program that prints without newlines fills no memory
_WINDOW_S = 5.0
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")


class Lines:
    r"""Cuts a byte stream, which arrives in arbitrary pieces, into lines; keeps the last ones.

    >>> lines = Lines()
    >>> lines.feed(b"one\ntw"), lines.feed(b"o\n"), lines.rest(), lines.tail
    (['one'], ['two'], [], ['one', 'two'])
    """

    def __init__(self) -> None:
        self._rest = b""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)

    @property
    def tail(self) -> list[str]:
        """The last lines, oldest first."""
        return list(self._tail)

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that ``data`` completes; one that grows too long is cut."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST:
            whole.append(self._rest)
            self._rest = b""
        return self._keep(whole)

    def rest(self) -> list[str]:
        """Return the unfinished line: there will be no more."""
        rest, self._rest = self._rest, b""
        return self._keep([rest] if rest else [])

    def _keep(self, raw: list[bytes]) -> list[str]:
        # A progress bar rewrites its line with \r: what stands last is what a terminal shows.
        lines = [line.decode(errors="replace").rstrip("\r").split("\r")[-1] for line in raw]
        self._tail.extend(lines)
        return lines


@dataclass(slots=True)
class _Said:
    source: str
    until_s: float
    num_more: int = 0
    last: str = ""


class Deduplicator:
    """Lets a line through once while other processes say the same; none is dropped uncounted.

    >>> once = Deduplicator()
    >>> once.feed("(f pid=1)", "step 1", now_s=0.0), once.feed("(f pid=2)", "step 2", now_s=1.0)
    (['(f pid=1) step 1'], [])
    >>> once.feed("(f pid=1)", "step 3", now_s=2.0), once.feed("(f pid=3)", "step 3", now_s=3.0)
    (['(f pid=1) step 3'], [])
    >>> once.due(now_s=6.0)
    ['(f pid=3) step 3 [2 lines like it from other processes]']
    """

    def __init__(self) -> None:
        self._said: dict[str, _Said] = {}

    def feed(self, source: str, line: str, *, now_s: float) -> list[str]:
        """Return what to print of a line of ``source``, after what has become due by now."""
        shown = self.due(now_s=now_s)
        key = _NUMBER.sub("#", line)
        said = self._said.get(key)
        if said is None:
            said = self._said[key] = _Said(source, now_s + _WINDOW_S)
        if said.source == source or not line.strip():
            return [*shown, f"{source} {line}"]
        said.num_more += 1
        said.last = f"{source} {line}"
        return shown

    def due(self, *, now_s: float) -> list[str]:
        """Return what stands for the lines held back whose time is up.

        Entries lie in the order of their ends, so this looks at those alone that are over.
        """
        shown = []
        while self._said:
            key = next(iter(self._said))
            if self._said[key].until_s > now_s:
                break
            said = self._said.pop(key)
            if said.num_more > 1:
                shown.append(f"{said.last} [{said.num_more} lines like it from other processes]")
            elif said.num_more:
                shown.append(said.last)
        return shown


class Printer:
    """Shows the lines of many processes on this process's own stdout and stderr. Thread-safe."""

    def __init__(self) -> None:
        self._once = Deduplicator()
        self._lock = threading.Lock()
        self._ready: deque[tuple[str, str]] = deque()

    def add(self, source: str, stream: str, lines: list[str], *, now_s: float) -> None:
        """Take lines in; ``stream`` is "stdout" or "stderr"."""
        with self._lock:
            for line in lines:
                for shown in self._once.feed(source, line, now_s=now_s):
                    self._ready.append((stream, shown))

    def print(self, *, now_s: float) -> None:
        """Print what is ready; may block for as long as nobody reads the output."""
        with self._lock:
            self._ready.extend(("stderr", line) for line in self._once.due(now_s=now_s))
        while self._ready:
            stream, line = self._ready.popleft()
            # Looked up each time: a notebook or a test may have put its own in place.
            with contextlib.suppress(OSError, ValueError):  # closed: there is nobody to tell
                print(line, file=getattr(sys, stream), flush=True)


class LogFiles:
    """Keeps what each process of a machine prints in a file of its own, ``worker-<n>.log``.

    Args:
        folder: Where the files go.
        max_bytes: A file that has grown to this size begins anew.
    """

    def __init__(self, folder: Path, *, max_bytes: int = 64 << 20) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def write(self, worker: int, lines: list[str]) -> None:
        """Append lines of a process."""
        path = self._folder / f"worker-{worker}.log"
        with open(path, "a", encoding="utf-8", errors="replace") as file:
            if file.tell() > self._max_bytes:
                file.truncate(0)
            file.write("\n".join(lines) + "\n")
