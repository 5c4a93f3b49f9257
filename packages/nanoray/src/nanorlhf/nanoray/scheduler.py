"""Which waiting call may start: a pure state machine over resource pools.

Calls with the same needs form one queue, first come, first served. Queues do not block each
other: a call that waits for a GPU holds back no call that only wants a CPU. Calls made inside
others come before those: a recursion is walked depth first, so that few processes wait at a time.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from .placement import Strategy, plan
from .resources import GPU, Demand, Pool, Share


class Request(NamedTuple):
    """One call that wants to start; ``group`` 0 is the node itself, ``bundle`` -1 any of it.

    ``depth`` counts the calls under way that it was made in.
    """

    id: int
    needs: Demand
    group: int = 0
    bundle: int = -1
    depth: int = 0


class Grant(NamedTuple):
    """A call that starts now, on these devices."""

    id: int
    gpu_ids: tuple[str, ...]
    machine: int = 0


class _Place(NamedTuple):
    """A pool of amounts on one machine: all of the machine, or a bundle there."""

    machine: int
    pool: Pool


class _Group(NamedTuple):
    shares: list[tuple[int, Share]]
    """What each bundle took, and from which machine."""
    bundles: list[_Place]


class _Waiting(NamedTuple):
    bundles: list[Demand]
    strategy: Strategy


_Key = tuple[Demand, int, int, int]


class _Running(NamedTuple):
    place: _Place
    share: Share
    key: _Key


class Scheduler:
    """Admission control of all machines; the one it begins with is machine 0.

    >>> scheduler = Scheduler(Pool({"CPU": 10000}))
    >>> scheduler.add(Request(1, (("CPU", 10000),))), scheduler.add(Request(2, (("CPU", 10000),)))
    (None, None)
    >>> scheduler.schedule(), scheduler.schedule()
    ([Grant(id=1, gpu_ids=(), machine=0)], [])
    >>> scheduler.release(1); scheduler.schedule()
    [Grant(id=2, gpu_ids=(), machine=0)]
    """

    def __init__(self, node: Pool) -> None:
        self._machines = {0: node}
        self._queues: dict[_Key, deque[int]] = {}
        self._running: dict[int, _Running] = {}
        self._paused: set[int] = set()
        self._groups: dict[int, _Group] = {}
        self._waiting_groups: dict[int, _Waiting] = {}
        self._is_settled = True
        """Nothing has happened since ``schedule`` that could let a call start."""
        self.has_room = False
        """After the last ``schedule`` no call waited, and another might have started."""

    def add_machine(self, machine: int, pool: Pool) -> None:
        """A machine has joined."""
        self._machines[machine] = pool
        self._is_settled = False

    def remove_machine(self, machine: int) -> list[int]:
        """A machine is gone: nothing starts there; return the groups that lost a bundle."""
        del self._machines[machine]
        return [
            group
            for group, placed in self._groups.items()
            if any(bundle.machine == machine for bundle in placed.bundles)
        ]

    def totals(self) -> list[dict[str, int]]:
        """Return what each machine has."""
        return [dict(pool.totals) for pool in self._machines.values()]

    def add(self, request: Request, *, is_first: bool = False) -> None:
        """Queue a call behind those with the same needs, or before them."""
        key = (request.needs, request.group, request.bundle, request.depth)
        queue = self._queues.setdefault(key, deque())
        self._is_settled &= bool(queue)  # behind others with the same needs it cannot start
        if is_first:
            queue.appendleft(request.id)
        else:
            queue.append(request.id)

    def ahead(self, call_id: int, limit: int, fits: Callable[[int], bool]) -> list[int]:
        """Take up to ``limit`` calls that may follow a running one, for ``hand_over`` to charge.

        Only while all that wait have the same needs as it, and at most half of them: the others
        are for whoever is free next.
        """
        running = self._running.get(call_id)
        queue = self._queues.get(running.key) if running is not None else None
        if queue is None or len(self._queues) > 1:
            return []
        taken: list[int] = []
        most = min(limit, len(queue) // 2)
        while len(taken) < most and fits(queue[0]):
            taken.append(queue.popleft())
        return taken

    def hand_over(self, call_id: int, next_id: int) -> None:
        """A running call has ended, and another goes on with what it was granted."""
        self.resume(call_id)
        self._running[next_id] = self._running.pop(call_id)

    def withdraw(self, call_id: int) -> None:
        """Forget a call that is still queued."""
        for key, queue in list(self._queues.items()):
            if call_id in queue:
                queue.remove(call_id)
                self._is_settled = False
                if not queue:
                    del self._queues[key]

    def schedule(self) -> list[Grant]:
        """Return every call that can start now and charge it."""
        if self._is_settled:
            self.has_room = False
            return []
        self._is_settled = True
        grants: list[Grant] = []
        for key in sorted(self._queues, key=lambda key: -key[3]):
            queue = self._queues[key]
            while queue:
                running = self._place(key)
                if running is None:
                    break  # first come, first served: nothing with these needs may jump ahead
                call_id = queue.popleft()
                self._running[call_id] = running
                grants.append(Grant(call_id, running.share.gpu_ids, running.place.machine))
            if not queue:
                del self._queues[key]
        self.has_room = not self._queues
        return grants

    def release(self, call_id: int) -> None:
        """Return what a finished call used."""
        self.resume(call_id)
        running = self._running.pop(call_id, None)
        if running is not None:
            running.place.pool.give(running.share)
            self._is_settled = False

    def pause(self, call_id: int) -> None:
        """A running call waits for others: they may use its CPUs."""
        if call_id in self._running and call_id not in self._paused:
            self._paused.add(call_id)
            running = self._running[call_id]
            running.place.pool.lend(running.share)
            self._is_settled = False

    def resume(self, call_id: int) -> None:
        """A paused call goes on."""
        if call_id in self._paused:
            self._paused.discard(call_id)
            running = self._running[call_id]
            running.place.pool.reclaim(running.share)

    def add_group(self, group: int, bundles: Iterable[Demand], strategy: Strategy) -> None:
        """Queue a placement group; ``place_groups`` reserves it."""
        self._waiting_groups[group] = _Waiting(list(bundles), strategy)

    def place_groups(self) -> list[int]:
        """Reserve the waiting groups that fit, all bundles or none; return their ids."""
        placed = []
        for group, waiting in list(self._waiting_groups.items()):
            reserved = self._reserve(waiting)
            if reserved is not None:
                self._groups[group] = reserved
                del self._waiting_groups[group]
                placed.append(group)
                self._is_settled = False
        return placed

    def remove_group(self, group: int) -> list[int]:
        """Dissolve a group; return the calls that were queued for it or run in it."""
        self._waiting_groups.pop(group, None)
        gone = self._groups.pop(group, None)
        if gone is not None:
            self._give_back(gone.shares)
        self._is_settled = False
        orphans = [call for call, running in self._running.items() if running.key[1] == group]
        for key in [key for key in self._queues if key[1] == group]:
            orphans += self._queues.pop(key)
        return orphans

    def has_group(self, group: int) -> bool:
        """Return whether the group exists, placed or waiting."""
        return group in self._groups or group in self._waiting_groups

    def available(self) -> Mapping[str, int]:
        """Return what is free on all machines, outside groups."""
        free: Counter[str] = Counter()
        for pool in self._machines.values():
            free.update(pool.available())
        return free

    def _place(self, key: _Key) -> _Running | None:
        needs, group, bundle, _ = key
        for place in self._places(group, bundle):
            share = place.pool.take(needs)
            if share is not None:
                return _Running(place, share, key)
        return None

    def _places(self, group: int, bundle: int) -> list[_Place]:
        if not group:
            return [_Place(machine, pool) for machine, pool in self._machines.items()]
        if group not in self._groups:
            return []
        bundles = self._groups[group].bundles
        return bundles if bundle < 0 else [bundles[bundle]]

    def _reserve(self, waiting: _Waiting) -> _Group | None:
        machines = list(self._machines)
        free = [self._machines[machine].available() for machine in machines]
        chosen = plan(waiting.bundles, free, waiting.strategy)
        if chosen is None:
            return None
        shares: list[tuple[int, Share]] = []
        for bundle, index in zip(waiting.bundles, chosen, strict=True):
            share = self._machines[machines[index]].take(bundle)
            if share is None:  # the sum of GPU fractions fits, one device does not
                self._give_back(shares)
                return None
            shares.append((machines[index], share))
        return _Group(shares, [_Place(m, _bundle_pool(share)) for m, share in shares])

    def _give_back(self, shares: list[tuple[int, Share]]) -> None:
        for machine, share in shares:
            if machine in self._machines:
                self._machines[machine].give(share)


def _bundle_pool(share: Share) -> Pool:
    """Return a pool of exactly what a bundle reserved, GPU ids included."""
    pool = Pool(dict(share.amounts))
    pool.gpus = dict(share.gpus)
    if share.gpus:
        pool.totals[GPU] = sum(amount for _, amount in share.gpus)
    return pool
