"""Which machine each bundle of a placement group goes to: a pure function.

====================  =====================================================
PACK                  on as few machines as possible
SPREAD                on as many machines as possible
STRICT_PACK           all on one machine, or not at all
STRICT_SPREAD         each on a machine of its own, or not at all
====================  =====================================================

The strategies are Ray's (python/ray/util/placement_group.py). They only say which machine to try
first; behind the first choice stands a search, so that "does not fit" is true and not a guess.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from .resources import UNIT, Demand, Pool, Share, empty_pool, readable

Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]

_MAX_TRIES = 2_000
"""Bundles put somewhere before the search gives up; a first choice that works takes one each."""


class Plan(NamedTuple):
    """What a search found."""

    places: list[int] | None
    """The machine of each bundle, or None when there is no way."""
    is_proven: bool
    """Whether None is the whole truth: False when the search gave up."""
    order: tuple[int, ...] = ()
    """The bundles in the order they were put there: in another, GPU fractions may not fit."""


def check_strategy(strategy: str) -> None:
    """Raise ValueError unless ``strategy`` is one of the four."""
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy={strategy!r} is unknown; use one of {get_args(Strategy)}")


def plan(
    bundles: Sequence[Demand],
    machines: Mapping[int, Pool],
    strategy: Strategy,
    *,
    settled: Sequence[int] = (),
) -> Plan:
    """Return a machine for each bundle, all together or none.

    Args:
        bundles: What each bundle needs.
        machines: What each machine has free (or in total, to ask whether it ever fits).
        strategy: See the table above.
        settled: Machines of the group's bundles that stay where they are.

    Takes O(bundles x machines) when first choices work, and a bounded time else.

    >>> one_cpu, machine = (("CPU", 10000),), Pool({"CPU": 20000})
    >>> plan([one_cpu] * 3, {0: machine, 1: machine}, "PACK").places
    [0, 0, 1]
    >>> plan([one_cpu] * 3, {0: machine, 1: machine}, "SPREAD").places
    [0, 1, 0]
    >>> plan([one_cpu] * 3, {0: machine, 1: machine}, "STRICT_SPREAD")
    Plan(places=None, is_proven=True, order=())
    """
    if _is_too_much(bundles, machines):
        return Plan(None, is_proven=True)
    if strategy == "PACK":
        together = _Search(bundles, machines, "STRICT_PACK", settled).run()
        if together.places is not None:
            return together
    return _Search(bundles, machines, strategy, settled).run()


def why_infeasible(
    bundles: Sequence[Demand], totals: Sequence[Mapping[str, int]], strategy: Strategy
) -> str | None:
    """Return why machines with such totals can never hold the group, or None when they may."""
    machines = {index: empty_pool(total) for index, total in enumerate(totals)}
    found = plan(bundles, machines, strategy)
    if found.places is not None or not found.is_proven:
        return None
    if strategy == "STRICT_SPREAD" and len(bundles) > len(totals):
        return f"STRICT_SPREAD needs {len(bundles)} nodes and there are {len(totals)}"
    wanted = [readable(bundle) for bundle in bundles]
    return f"bundles={wanted} do not fit into {[readable(total.items()) for total in totals]}"


class _Step:
    """One bundle of the search, the machines still to try for it, and the one it is on."""

    def __init__(self, bundle: int, choices: Iterator[int]) -> None:
        self.bundle, self.choices = bundle, choices
        self.machine: int | None = None
        self.share: Share | None = None


class _Search:
    """Depth first, the largest bundle first, each time the machine the strategy likes best."""

    def __init__(
        self,
        bundles: Sequence[Demand],
        machines: Mapping[int, Pool],
        strategy: Strategy,
        settled: Sequence[int],
    ) -> None:
        self._bundles, self._strategy = bundles, strategy
        self._free = {machine: pool.copy() for machine, pool in machines.items()}
        self._counts = Counter(settled)
        self._room = {machine: _room(bundles, pool) for machine, pool in machines.items()}
        most = _most(machines)
        self._order = sorted(range(len(bundles)), key=lambda index: -_weight(bundles[index], most))
        self._num_tries = 0

    def run(self) -> Plan:
        """Search."""
        stack = [self._step(0)]
        while stack:
            step = stack[-1]
            self._undo(step)
            if self._num_tries >= _MAX_TRIES + len(self._bundles):
                return Plan(None, is_proven=False)
            if not self._advance(step):
                stack.pop()
            elif len(stack) == len(self._bundles):
                places = {done.bundle: done.machine or 0 for done in stack}
                found = [places[index] for index in range(len(places))]
                return Plan(found, is_proven=True, order=tuple(self._order))
            else:
                stack.append(self._step(len(stack)))
        return Plan(None, is_proven=True)

    def _step(self, depth: int) -> _Step:
        return _Step(self._order[depth], iter(self._choices()))

    def _advance(self, step: _Step) -> bool:
        """Put the step's bundle on the next machine that holds it."""
        for machine in step.choices:
            self._num_tries += 1
            share = self._free[machine].take(self._bundles[step.bundle])
            if share is not None:
                step.machine, step.share = machine, share
                self._counts[machine] += 1
                return True
        return False

    def _undo(self, step: _Step) -> None:
        if step.machine is not None and step.share is not None:
            self._free[step.machine].give(step.share)
            self._counts[step.machine] -= 1
            step.machine = step.share = None

    def _choices(self) -> list[int]:
        """Return the machines to try for the next bundle, the best first."""
        counts, room = self._counts, self._room
        if self._strategy == "STRICT_PACK":
            used = [machine for machine in room if counts[machine]]
            return used or sorted(room, key=lambda machine: (room[machine], machine))
        if self._strategy == "STRICT_SPREAD":
            unused = [machine for machine in room if not counts[machine]]
            return sorted(unused, key=lambda machine: (-room[machine], machine))
        sign = -1 if self._strategy == "PACK" else 1
        return sorted(room, key=lambda number: (sign * counts[number], -room[number], number))


def _is_too_much(bundles: Sequence[Demand], machines: Mapping[int, Pool]) -> bool:
    """Return whether the bundles need more than all machines have: a quick no."""
    wanted: Counter[str] = Counter()
    for bundle in bundles:
        wanted.update(dict(bundle))
    free: Counter[str] = Counter()
    for pool in machines.values():
        free.update(pool.available())
    return any(amount > free[name] for name, amount in wanted.items())


def _most(machines: Mapping[int, Pool]) -> dict[str, int]:
    """Return the most that any one machine has of each resource."""
    most: dict[str, int] = {}
    for pool in machines.values():
        for name, amount in pool.totals.items():
            most[name] = max(amount, most.get(name, 0))
    return most


def _weight(bundle: Demand, most: Mapping[str, int]) -> float:
    """Return how much of a machine the bundle takes, by its scarcest resource."""
    return max((amount / (most.get(name, 0) or UNIT) for name, amount in bundle), default=0.0)


def _room(bundles: Sequence[Demand], pool: Pool) -> float:
    """Return how often all bundles together would fit into what is free."""
    wanted: Counter[str] = Counter()
    for bundle in bundles:
        wanted.update(dict(bundle))
    free = pool.available()
    return min((free.get(name, 0) / amount for name, amount in wanted.items()), default=0.0)
