"""The machines of a cluster and which process is on which. No I/O.

Machine 0 is the one that holds the tables. Numbers are not used twice: a machine that was cut off
and comes back is a new one, for nothing of what it did is known any more.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .resources import readable


class About(NamedTuple):
    """What a machine says of itself."""

    node_id: str
    """Random hex digits."""
    hostname: str
    address: tuple[str, int] | None
    """Where other machines pull blocks from it; None for a driver's own engine."""
    amounts: tuple[tuple[str, int], ...]
    """Resources without GPUs, in units of 1/10000."""
    gpu_ids: tuple[str, ...]
    store_bytes: int
    """Shared memory that values may take."""
    spill_directory: str
    """Where values go that have no room."""


@dataclass(slots=True)
class Machine:
    """One row of the table."""

    number: int
    about: About
    process: int
    """The daemon of the machine, as a process that writes copies; 0 on machine 0."""
    totals: Mapping[str, int]
    is_alive: bool = True

    def __str__(self) -> str:
        return f"machine {self.number} ({self.about.hostname}, node {self.about.node_id[:8]})"

    def row(self) -> dict[str, Any]:
        """Return the machine as ``nodes()`` shows it, with the names of Ray."""
        address = self.about.address
        return {
            "NodeID": self.about.node_id,
            "Alive": self.is_alive,
            "NodeManagerAddress": "127.0.0.1" if address is None else address[0],
            "NodeManagerHostname": self.about.hostname,
            "NodeManagerPort": 0 if address is None else address[1],
            "Resources": readable(self.totals.items()) if self.is_alive else {},
        }


class Machines:
    """All machines that are, or were, of this cluster."""

    def __init__(self, about: About, totals: Mapping[str, int]) -> None:
        self._machines = {0: Machine(0, about, 0, totals)}
        self._where: dict[int, int] = {}
        self.is_one = True
        """Whether there has never been a second machine, so that nothing is ever away."""

    def __getitem__(self, number: int) -> Machine:
        return self._machines[number]

    def add(self, process: int, about: About, totals: Mapping[str, int]) -> int:
        """Add a machine whose daemon is ``process``; return its number."""
        number = len(self._machines)
        self._machines[number] = Machine(number, about, process, totals)
        self.is_one = False
        self.place(process, number)
        return number

    def of(self, process: int) -> int:
        """Return the machine that a process is on."""
        return self._where.get(process, 0)

    def place(self, process: int, machine: int) -> None:
        """Note where a process is."""
        if machine:
            self._where[process] = machine

    def drop_process(self, process: int) -> None:
        """Forget a process that is gone."""
        self._where.pop(process, None)

    def lose(self, number: int) -> list[int]:
        """Note that a machine is gone; return the processes that were on it, its daemon last."""
        machine = self._machines[number]
        machine.is_alive = False
        return sorted(
            (process for process, where in self._where.items() if where == number),
            key=lambda process: process == machine.process,
        )

    def totals(self) -> Mapping[str, int]:
        """Return the resources of all living machines together."""
        amounts: Counter[str] = Counter()
        for machine in self._machines.values():
            if machine.is_alive:
                amounts.update(machine.totals)
        return amounts

    def rows(self) -> list[dict[str, Any]]:
        """Return all machines as ``nodes()`` shows them."""
        return [machine.row() for machine in self._machines.values()]
