"""What ran where and when: the last calls of an engine, and the picture a browser draws of them.

The process that runs a call measures it; the engine keeps the last ``KEPT``. ``chrome_trace``
gives the format of ``chrome://tracing`` and of https://ui.perfetto.dev: a row for each process, a
bar for each call (Trace Event Format, "complete events").
"""

from collections import deque
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

KEPT = 10_000

Outcome = Literal["FINISHED", "FAILED", "RETRIED"]


class Ran(NamedTuple):
    """One call that has run, or one try of it."""

    call: int
    name: str
    kind: str
    worker: int
    machine: int
    began_s: float
    took_s: float
    outcome: Outcome


class Timeline:
    """The last calls that ended, oldest first."""

    def __init__(self) -> None:
        self._ran: deque[tuple[Any, ...]] = deque(maxlen=KEPT)
        self.add = self._ran.append
        """Note a call that has ended, as a plain tuple in the order of ``Ran``."""

    def last(self) -> list[tuple[Any, ...]]:
        """Return what is kept, as plain tuples in the order of ``Ran``."""
        return list(self._ran)


def chrome_trace(ran: Iterable[Ran]) -> list[dict[str, Any]]:
    """Return complete events; times are microseconds, from the beginning of the first call.

    >>> events = chrome_trace([Ran(7, "f()", "task", 3, 0, 100.0, 0.5, "FINISHED")])
    >>> events[0]["ts"], events[0]["dur"], events[0]["tid"], events[1]["name"]
    (0.0, 500000.0, 3, 'process_name')
    """
    bars = sorted(ran, key=lambda call: call.began_s)
    events: list[dict[str, Any]] = [
        {
            "ph": "X",
            "cat": call.kind,
            "name": call.name,
            "pid": call.machine,
            "tid": call.worker,
            "ts": (call.began_s - bars[0].began_s) * 1e6,
            "dur": call.took_s * 1e6,
            "args": {"id": f"{call.call:x}", "outcome": call.outcome},
        }
        for call in bars
    ]
    for machine in sorted({call.machine for call in bars}):
        events.append(_title("process_name", f"machine {machine}", machine, 0))
    for machine, worker in sorted({(call.machine, call.worker) for call in bars}):
        events.append(_title("thread_name", f"worker {worker}", machine, worker))
    return events


def _title(kind: str, text: str, machine: int, worker: int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": machine, "tid": worker, "args": {"name": text}}
