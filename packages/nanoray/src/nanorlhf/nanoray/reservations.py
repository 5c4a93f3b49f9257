"""Placement groups: bundles of resources reserved together, on one machine or many. No I/O.

Reserving has two phases. ``prepare`` takes every bundle from its machine, or gives all back when
one does not fit after all. ``commit`` makes the bundles usable, or gives all back when a machine
has left in between. When a machine leaves later, the bundles it had wait to be placed again and
the others stay where they are::

    add -> waiting -- prepare --> prepared -- commit --> placed
              ^                      |                     |
              +---- a machine left --+---------------------+
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .placement import Strategy, plan
from .resources import GPU, Demand, Pool, Share


class Bundle(NamedTuple):
    """What a group has on a machine, as a pool of its own."""

    machine: int
    share: Share
    pool: Pool


@dataclass(slots=True, eq=False)
class _Group:
    needs: Sequence[Demand]
    strategy: Strategy
    name: str
    placed: dict[int, Bundle] = field(default_factory=dict)
    """By the bundle's index."""
    prepared: dict[int, Bundle] = field(default_factory=dict)


class Groups:
    """All placement groups.

    Args:
        machines: The pools that bundles are taken from; the owner adds and removes machines.
    """

    def __init__(self, machines: Mapping[int, Pool]) -> None:
        self._machines = machines
        self._groups: dict[int, _Group] = {}
        self._waiting: dict[int, None] = {}
        """Groups with bundles to place, the oldest first."""

    def __contains__(self, group: int) -> bool:
        return group in self._groups

    def add(
        self, group: int, bundles: Iterable[Demand], strategy: Strategy, *, name: str = ""
    ) -> None:
        """Add a group, which then waits."""
        self._groups[group] = _Group(tuple(bundles), strategy, name)
        self._waiting[group] = None

    def needs(self, group: int) -> Sequence[Demand]:
        """Return what each bundle of a group needs."""
        return self._groups[group].needs

    def find(self, name: str) -> tuple[int, Sequence[Demand], Strategy] | None:
        """Return the id, bundles and strategy of the group of that name, which is not empty."""
        for number, group in self._groups.items():
            if group.name and group.name == name:
                return number, group.needs, group.strategy
        return None

    def place(self) -> list[int]:
        """Reserve the waiting groups that fit, all their bundles or none; return their ids."""
        return [
            group for group in list(self._waiting) if self.prepare(group) and self.commit(group)
        ]

    def prepare(self, group: int) -> bool:
        """Take every missing bundle from a machine; return False, and take none, if one fails."""
        state = self._groups[group]
        missing = [index for index in range(len(state.needs)) if index not in state.placed]
        settled = [bundle.machine for bundle in state.placed.values()]
        wanted = [state.needs[index] for index in missing]
        found = plan(wanted, self._machines, state.strategy, settled=settled)
        if found.places is None:
            return False
        for number in found.order:
            index, machine = missing[number], found.places[number]
            share = self._machines[machine].take(state.needs[index])
            if share is None:
                self._abort(state)
                return False
            state.prepared[index] = Bundle(machine, share, _bundle_pool(share))
        return True

    def commit(self, group: int) -> bool:
        """Make what was prepared usable; return False when that was given back meanwhile."""
        state = self._groups[group]
        if len(state.prepared) + len(state.placed) < len(state.needs):
            return False
        state.placed.update(state.prepared)
        state.prepared.clear()
        del self._waiting[group]
        return True

    def remove(self, group: int) -> None:
        """Dissolve a group and give back what it has; no harm when there is none."""
        self._waiting.pop(group, None)
        state = self._groups.pop(group, None)
        if state is not None:
            self._abort(state)
            for bundle in state.placed.values():
                self._give_back(bundle)

    def lose(self, machine: int) -> list[int]:
        """A machine has left: return the placed groups that lost a bundle, which wait again."""
        lost = []
        for number, group in self._groups.items():
            if any(bundle.machine == machine for bundle in group.prepared.values()):
                self._abort(group)
            gone = [index for index, bundle in group.placed.items() if bundle.machine == machine]
            for index in gone:
                del group.placed[index]
            if gone:
                self._waiting[number] = None
                lost.append(number)
        return lost

    def bundles(self, group: int, index: int) -> list[Bundle]:
        """Return the placed bundles a call may run in: ``index``, or all when that is -1."""
        state = self._groups.get(group)
        if state is None:
            return []
        if index < 0:
            return [state.placed[index] for index in sorted(state.placed)]
        return [state.placed[index]] if index in state.placed else []

    def _abort(self, group: _Group) -> None:
        for bundle in group.prepared.values():
            self._give_back(bundle)
        group.prepared.clear()

    def _give_back(self, bundle: Bundle) -> None:
        pool = self._machines.get(bundle.machine)
        if pool is not None:
            pool.give(bundle.share)


def _bundle_pool(share: Share) -> Pool:
    """Return a pool of exactly what a bundle reserved, GPU ids included."""
    pool = Pool(dict(share.amounts))
    pool.gpus = dict(share.gpus)
    if share.gpus:
        pool.totals[GPU] = sum(amount for _, amount in share.gpus)
    return pool
