"""Which waiting call may start: a pure state machine over resource pools.

Calls with the same needs form one queue, first come, first served. Queues do not block each
other: a call that waits for a GPU holds back no call that only wants a CPU. Calls made inside
others come before those: a recursion is walked depth first, so that few processes wait at a time.
"""

from collections import deque
from collections.abc import Iterable, Mapping
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


class _Group(NamedTuple):
    share: Share
    bundles: list[Pool]


class _Waiting(NamedTuple):
    bundles: list[Demand]
    strategy: Strategy


class _Running(NamedTuple):
    pool: Pool
    share: Share
    group: int


class Scheduler:
    """Admission control of one node.

    >>> scheduler = Scheduler(Pool({"CPU": 10000}))
    >>> scheduler.add(Request(1, (("CPU", 10000),))), scheduler.add(Request(2, (("CPU", 10000),)))
    (None, None)
    >>> scheduler.schedule(), scheduler.schedule()
    ([Grant(id=1, gpu_ids=())], [])
    >>> scheduler.release(1); scheduler.schedule()
    [Grant(id=2, gpu_ids=())]
    """

    def __init__(self, node: Pool) -> None:
        self._node = node
        self._queues: dict[tuple[Demand, int, int, int], deque[int]] = {}
        self._running: dict[int, _Running] = {}
        self._paused: set[int] = set()
        self._groups: dict[int, _Group] = {}
        self._waiting_groups: dict[int, _Waiting] = {}

    def add(self, request: Request) -> None:
        """Queue a call."""
        key = (request.needs, request.group, request.bundle, request.depth)
        self._queues.setdefault(key, deque()).append(request.id)

    def withdraw(self, call_id: int) -> None:
        """Forget a call that is still queued."""
        for key, queue in list(self._queues.items()):
            if call_id in queue:
                queue.remove(call_id)
                if not queue:
                    del self._queues[key]

    def schedule(self) -> list[Grant]:
        """Return every call that can start now and charge it."""
        grants: list[Grant] = []
        for key in sorted(self._queues, key=lambda key: -key[3]):
            (needs, group, bundle, _), queue = key, self._queues[key]
            while queue:
                running = self._place(needs, group, bundle)
                if running is None:
                    break  # first come, first served: nothing with these needs may jump ahead
                call_id = queue.popleft()
                self._running[call_id] = running
                grants.append(Grant(call_id, running.share.gpu_ids))
            if not queue:
                del self._queues[key]
        return grants

    def release(self, call_id: int) -> None:
        """Return what a finished call used."""
        self.resume(call_id)
        running = self._running.pop(call_id, None)
        if running is not None:
            running.pool.give(running.share)

    def pause(self, call_id: int) -> None:
        """A running call waits for others: they may use its CPUs."""
        if call_id in self._running and call_id not in self._paused:
            self._paused.add(call_id)
            running = self._running[call_id]
            running.pool.lend(running.share)

    def resume(self, call_id: int) -> None:
        """A paused call goes on."""
        if call_id in self._paused:
            self._paused.discard(call_id)
            running = self._running[call_id]
            running.pool.reclaim(running.share)

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
        return placed

    def remove_group(self, group: int) -> list[int]:
        """Dissolve a group; return the calls that were queued for it or run in it."""
        self._waiting_groups.pop(group, None)
        gone = self._groups.pop(group, None)
        if gone is not None:
            self._node.give(gone.share)
        orphans = [call for call, running in self._running.items() if running.group == group]
        for key in [key for key in self._queues if key[1] == group]:
            orphans += self._queues.pop(key)
        return orphans

    def has_group(self, group: int) -> bool:
        """Return whether the group exists, placed or waiting."""
        return group in self._groups or group in self._waiting_groups

    def available(self) -> Mapping[str, int]:
        """Return what is free on the node, outside groups."""
        return self._node.available()

    def _place(self, needs: Demand, group: int, bundle: int) -> _Running | None:
        for pool in self._pools(group, bundle):
            share = pool.take(needs)
            if share is not None:
                return _Running(pool, share, group)
        return None

    def _pools(self, group: int, bundle: int) -> list[Pool]:
        if not group:
            return [self._node]
        if group not in self._groups:
            return []
        pools = self._groups[group].bundles
        return pools if bundle < 0 else [pools[bundle]]

    def _reserve(self, waiting: _Waiting) -> _Group | None:
        if plan(waiting.bundles, [self._node.available()], waiting.strategy) is None:
            return None
        shares: list[Share] = []
        for bundle in waiting.bundles:
            share = self._node.take(bundle)
            if share is None:  # the sum of GPU fractions fits, one device does not
                for taken in shares:
                    self._node.give(taken)
                return None
            shares.append(share)
        amounts = tuple(pair for share in shares for pair in share.amounts)
        gpus = tuple(pair for share in shares for pair in share.gpus)
        return _Group(Share(amounts, gpus), [_bundle_pool(share) for share in shares])


def _bundle_pool(share: Share) -> Pool:
    """Return a pool of exactly what a bundle reserved, GPU ids included."""
    pool = Pool(dict(share.amounts))
    pool.gpus = dict(share.gpus)
    if share.gpus:
        pool.totals[GPU] = sum(amount for _, amount in share.gpus)
    return pool
