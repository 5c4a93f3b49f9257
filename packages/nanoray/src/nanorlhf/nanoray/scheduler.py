"""Which waiting call may start, and on which machine: a pure state machine over resource pools.

Calls with the same wants form one line, first come, first served. Lines do not block each other: a
call that waits for a GPU holds back no call that only wants a CPU. A line that cannot go on is not
looked at again until something is given back, so a thousand waiting calls cost as much as one.
Calls made inside others come before those: a recursion is walked depth first, so that few processes
wait at a time.
"""

import heapq
import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from .placement import Strategy
from .policies import Policy, check_policy, in_turn, packed, spread
from .reservations import Groups
from .resources import Demand, Pool, Share, readable, shortage


class Request(NamedTuple):
    """One call that wants to start; all but ``id`` says where."""

    id: int
    needs: Demand
    group: int = 0
    """The placement group; 0 is the machines themselves."""
    bundle: int = -1
    """Which bundle of the group; -1 is any."""
    depth: int = 0
    """The number of calls under way that it was made in."""
    sees_gpus: bool = False
    """Whether it is shown its bundle's GPUs though it needs none."""
    is_spread: bool = False
    node: str = ""
    """The id of the machine it wants; empty is any."""
    is_soft: bool = False
    """Whether another machine will do when ``node`` can never hold it."""


class Grant(NamedTuple):
    """A call that starts now, on this machine and these devices."""

    id: int
    machine: int
    gpu_ids: tuple[str, ...]


class Lost(NamedTuple):
    """What went with a machine."""

    calls: list[int]
    """Calls that ran there."""
    groups: list[int]
    """Placement groups that lost a bundle; they wait to be placed again."""
    stranded: dict[int, str]
    """Queued calls that no machine can hold any more, and why. They are withdrawn."""


class _Running(NamedTuple):
    machine: int
    pool: Pool
    share: Share
    want: "_Want"


class _Want(NamedTuple):
    """A request without its id."""

    needs: Demand
    group: int
    bundle: int
    depth: int
    sees_gpus: bool
    is_spread: bool
    node: str
    is_soft: bool


_Turn = tuple[int, int]
"""Whose turn it is: the least (-depth, arrival)."""


class Scheduler:
    """Admission control of all machines.

    Args:
        pool: The resources of machine 0.
        node_id: The public id of machine 0.
        policy: See ``policies.py``.

    >>> scheduler = Scheduler(Pool({"CPU": 10000}))
    >>> scheduler.add(Request(1, (("CPU", 10000),))), scheduler.add(Request(2, (("CPU", 10000),)))
    (None, None)
    >>> scheduler.schedule(), scheduler.schedule()
    ([Grant(id=1, machine=0, gpu_ids=())], [])
    >>> scheduler.release(1); scheduler.schedule()
    [Grant(id=2, machine=0, gpu_ids=())]
    """

    def __init__(self, pool: Pool, *, node_id: str = "", policy: Policy = "default") -> None:
        check_policy(policy)
        self._policy = policy
        self._machines: dict[int, Pool] = {}
        self._numbers: dict[str, int] = {}
        """Node id -> machine."""
        self._lines: dict[_Want, OrderedDict[int, int]] = {}
        """What is wanted -> who wants it -> when it came."""
        self._wants: dict[int, _Want] = {}
        self._clock = itertools.count()
        self._open: list[tuple[_Turn, _Want]] = []
        """A heap: lines worth a look, by the turn of their first call."""
        self._shut: set[_Want] = set()
        """Lines that wait for something to be given back."""
        self._stalled: dict[int, _Turn] = {}
        """Group (0 is the machines) -> the turn that has come and cannot be taken; for ``fifo``."""
        self._running: dict[int, _Running] = {}
        self._num_running: Counter[int] = Counter()
        self._paused: set[int] = set()
        self._groups = Groups(self._machines)
        self._may_place = False
        """Whether a group that waits may fit now."""
        self.has_room = False
        """Something was given back before the last ``schedule``, and nothing waits for it."""
        self.is_stirred = False
        """Something came, or was given back, since the last ``schedule``."""
        self._was_woken = False
        self._last = -1
        """The machine chosen last."""
        self.add_machine(0, pool, node_id=node_id)

    # -- machines ------------------------------------------------------------------------------

    def add_machine(self, machine: int, pool: Pool, *, node_id: str = "") -> None:
        """A machine has joined."""
        self._machines[machine] = pool
        self._numbers[node_id] = machine
        self._wake()

    def remove_machine(self, machine: int) -> Lost:
        """A machine is gone: nothing starts there any more, and what ran there is over."""
        del self._machines[machine]
        self._numbers = {
            node: number for node, number in self._numbers.items() if number != machine
        }
        calls = [call for call, running in self._running.items() if running.machine == machine]
        groups = self._groups.lose(machine)
        for call in calls:
            self._end(call)
        stranded = {}
        for want, line in list(self._lines.items()):
            reason = self.why_infeasible(Request(0, *want))
            if reason is not None:
                stranded.update(dict.fromkeys(line, reason))
        for call in stranded:
            self.withdraw(call)
        self._wake()
        return Lost(calls, groups, stranded)

    def totals(self) -> list[dict[str, int]]:
        """Return what each machine has."""
        return [dict(pool.totals) for pool in self._machines.values()]

    def available(self) -> Mapping[str, int]:
        """Return what is free on all machines together, outside groups."""
        free: Counter[str] = Counter()
        for pool in self._machines.values():
            free.update(pool.available())
        return free

    # -- calls ---------------------------------------------------------------------------------

    def why_infeasible(self, request: Request) -> str | None:
        """Return why a call could never start, however long it waits, or None when it could."""
        needs = request.needs
        if request.group:
            bundles = self._groups.needs(request.group)
            chosen = bundles if request.bundle < 0 else [bundles[request.bundle]]
            if any(shortage(needs, dict(bundle)) is None for bundle in chosen):
                return None
            return f"its placement group has {[readable(bundle) for bundle in chosen]}"
        if request.node and not request.is_soft:
            if request.node not in self._numbers:
                return f"there is no node {request.node} (any more)"
            totals = self._machines[self._numbers[request.node]].totals
            lack = shortage(needs, totals)
            return None if lack is None else f"on node {request.node}, {lack}"
        reasons = [shortage(needs, totals) for totals in self.totals()]
        if None in reasons:
            return None
        shown = "; ".join(f"{reason}" for reason in dict.fromkeys(reasons))
        return f"no node can hold it: {shown}" if len(reasons) != 1 else shown

    def add(self, request: Request, *, is_first: bool = False) -> str | None:
        """Queue a call, last or first in its line, or return why it could never start."""
        want = _Want(*request[1:])
        now = -next(self._clock) if is_first else next(self._clock)
        line = self._lines.get(want)
        if line is None:
            reason = self.why_infeasible(request)
            if reason is not None:
                return reason
            line = self._lines[want] = OrderedDict()
            heapq.heappush(self._open, ((-want.depth, now), want))
            self.is_stirred = True
        self._wants[request.id] = want
        line[request.id] = now
        if is_first:
            line.move_to_end(request.id, last=False)
        return None

    def withdraw(self, call_id: int) -> None:
        """Forget a call that is still queued."""
        want = self._wants.pop(call_id, None)
        if want is not None:
            self._leave(want, call_id)
            if self._policy == "fifo":
                self._wake()  # it may have been the one that all others waited for

    def schedule(self) -> list[Grant]:
        """Return every call that can start now, in the order they came, and charge it."""
        grants: list[Grant] = []
        while self._open:
            turn, want = heapq.heappop(self._open)
            if want not in self._lines or want in self._shut:
                continue
            if turn != self._turn(want):  # its first call was withdrawn
                heapq.heappush(self._open, (self._turn(want), want))
                continue
            call_id = next(iter(self._lines[want]))
            running = None if self._must_wait(want, turn) else self._place(want)
            if running is None:
                self._shut.add(want)
                self._stalled.setdefault(want.group, turn)
                continue
            self._start(call_id, want, running)
            grants.append(Grant(call_id, running.machine, self._gpu_ids(want, running)))
        self.has_room = self._was_woken and not self._lines
        self._was_woken = self.is_stirred = False
        return grants

    def ahead(self, call_id: int, limit: int, fits: Callable[[int], bool]) -> list[int]:
        """Take up to ``limit`` calls that may follow a running one, for ``hand_over`` to charge.

        Only while all that wait want the same as it, and at most half of them: the others are for
        whoever is free next. Calls that are to spread follow nobody.
        """
        running = self._running.get(call_id)
        line = self._lines.get(running.want) if running is not None else None
        if running is None or line is None or len(self._lines) > 1 or running.want.is_spread:
            return []
        first = itertools.islice(line, min(limit, len(line) // 2))
        taken = list(itertools.takewhile(fits, first))
        for one in taken:
            del self._wants[one]
            self._leave(running.want, one)
        return taken

    def hand_over(self, call_id: int, next_id: int) -> None:
        """A running call has ended, and another goes on with what it was granted."""
        self.resume(call_id)
        self._running[next_id] = self._running.pop(call_id)

    def release(self, call_id: int) -> None:
        """Return what a finished call used."""
        self.resume(call_id)
        running = self._end(call_id)
        if running is not None:
            running.pool.give(running.share)
            self._wake()

    def pause(self, call_id: int) -> None:
        """A running call waits for others: they may use its CPUs."""
        if call_id in self._running and call_id not in self._paused:
            self._paused.add(call_id)
            running = self._running[call_id]
            running.pool.lend(running.share)
            self._wake()

    def resume(self, call_id: int) -> None:
        """A paused call goes on."""
        if call_id in self._paused:
            self._paused.discard(call_id)
            running = self._running[call_id]
            running.pool.reclaim(running.share)

    # -- placement groups ----------------------------------------------------------------------

    def add_group(
        self, group: int, bundles: Iterable[Demand], strategy: Strategy, *, name: str = ""
    ) -> None:
        """Queue a placement group; ``place_groups`` reserves it."""
        self._groups.add(group, bundles, strategy, name=name)
        self._may_place = self.is_stirred = True

    def find_group(self, name: str) -> tuple[int, Sequence[Demand], Strategy] | None:
        """Return the id, bundles and strategy of the group of that name."""
        return self._groups.find(name)

    def place_groups(self) -> list[int]:
        """Reserve the waiting groups that fit, all bundles or none; return their ids."""
        if not self._may_place:
            return []
        self._may_place = False
        placed = self._groups.place()
        if placed:
            self._open_lines()
        return placed

    def remove_group(self, group: int) -> list[int]:
        """Dissolve a group; return the calls that were queued for it or run in it."""
        self._groups.remove(group)
        running = [call for call, where in self._running.items() if where.want.group == group]
        queued = [
            call for want, line in self._lines.items() if want.group == group for call in line
        ]
        for call in queued:
            self.withdraw(call)
        self._wake()
        return running + queued

    def has_group(self, group: int) -> bool:
        """Return whether the group exists, placed or waiting."""
        return group in self._groups

    def bundle_machines(self, group: int) -> list[int]:
        """Return the machine of each bundle, in order; empty while one is not placed."""
        bundles = self._groups.bundles(group, -1)
        is_whole = group in self._groups and len(bundles) == len(self._groups.needs(group))
        return [bundle.machine for bundle in bundles] if is_whole else []

    # -- how -----------------------------------------------------------------------------------

    def _turn(self, want: _Want) -> _Turn:
        return -want.depth, next(iter(self._lines[want].values()))

    def _must_wait(self, want: _Want, turn: _Turn) -> bool:
        return self._policy == "fifo" and self._stalled.get(want.group, turn) < turn

    def _place(self, want: _Want) -> _Running | None:
        """Take what is wanted from the first pool that has it."""
        if want.group:
            for bundle in self._groups.bundles(want.group, want.bundle):
                share = bundle.pool.take(want.needs)
                if share is not None:
                    return _Running(bundle.machine, bundle.pool, share, want)
            return None
        for machine in self._machines if len(self._machines) == 1 else self._preferred(want):
            pool = self._machines[machine]
            share = pool.take(want.needs)
            if share is not None:
                self._last = machine
                return _Running(machine, pool, share, want)
        return None

    def _preferred(self, want: _Want) -> list[int]:
        """Return the machines to try, the best first."""
        needs = want.needs
        wanted = self._numbers.get(want.node) if want.node else None
        if wanted is not None and not shortage(needs, self._machines[wanted].totals):
            return [wanted]
        if want.node and not want.is_soft:
            return []
        if want.is_spread:
            return spread(self._machines, needs, self._num_running, self._last)
        if self._policy == "round_robin":
            return in_turn(self._machines, self._last)
        return packed(self._machines, needs)

    def _gpu_ids(self, want: _Want, running: _Running) -> tuple[str, ...]:
        if want.sees_gpus and not running.share.gpus:
            return tuple(running.pool.gpus)
        return running.share.gpu_ids

    def _start(self, call_id: int, want: _Want, running: _Running) -> None:
        del self._wants[call_id]
        self._leave(want, call_id)
        if want in self._lines:
            heapq.heappush(self._open, (self._turn(want), want))
        self._running[call_id] = running
        self._num_running[running.machine] += 1

    def _end(self, call_id: int) -> _Running | None:
        self._paused.discard(call_id)
        running = self._running.pop(call_id, None)
        if running is not None:
            self._num_running[running.machine] -= 1
        return running

    def _leave(self, want: _Want, call_id: int) -> None:
        line = self._lines[want]
        del line[call_id]
        if not line:
            del self._lines[want]
            self._shut.discard(want)

    def _wake(self) -> None:
        """Something was given back: everything that waits may try again."""
        self._may_place = self._was_woken = self.is_stirred = True
        self._open_lines()

    def _open_lines(self) -> None:
        self._stalled.clear()
        for want in self._shut:
            heapq.heappush(self._open, (self._turn(want), want))
        self._shut.clear()
