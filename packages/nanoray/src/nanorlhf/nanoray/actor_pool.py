"""A pool of actors that share work: each item goes to the actor that is free next."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from . import api
from .errors import GetTimeoutError
from .refs import ObjectRef, UserValue
from .remote import ActorHandle

Call = Callable[[ActorHandle, Any], ObjectRef]
"""``lambda actor, item: actor.method.remote(item)``"""


class ActorPool:
    """Spreads calls over actors; the names are those of ``ray.util.ActorPool``.

    Not thread-safe. ``get_next`` and ``get_next_unordered`` of one round may not be mixed.

    Args:
        actors: Handles; at least one call runs on each at a time.
    """

    def __init__(self, actors: Iterable[ActorHandle]) -> None:
        self._idle = list(actors)
        self._waiting: deque[tuple[Call, Any]] = deque()
        self._running: dict[ObjectRef, tuple[int, ActorHandle]] = {}
        self._by_index: dict[int, ObjectRef] = {}
        self._num_started = 0
        self._next = 0
        """The index that ``get_next`` returns."""

    def map(self, call: Call, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the results in the order of ``items``."""
        return self._drain(call, items, self.get_next)

    def map_unordered(self, call: Call, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the results as they come."""
        return self._drain(call, items, self.get_next_unordered)

    def submit(self, call: Call, item: UserValue) -> None:
        """Call ``call(actor, item)`` with the first actor that is or becomes free."""
        if not self._idle:
            self._waiting.append((call, item))
            return
        actor = self._idle.pop()
        ref = call(actor, item)
        self._running[ref] = (self._num_started, actor)
        self._by_index[self._num_started] = ref
        self._num_started += 1

    def has_next(self) -> bool:
        """Return whether there is a result to take, now or later."""
        return bool(self._running)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> UserValue:
        """Return the next result in the order of ``submit``.

        Args:
            timeout: Seconds to wait; None is for ever.
            ignore_if_timedout: Give the result up when time is out, so that the next one follows.

        Raises:
            StopIteration: Nothing was submitted, or all has been taken.
            GetTimeoutError: Time is up.
            Exception: What the call raised; its actor is free again.
        """
        self._check_next()
        while self._next not in self._by_index:  # taken by get_next_unordered
            self._next += 1
        ref = self._by_index[self._next]
        return self._take(ref, [ref], timeout, ignore_if_timedout)

    def get_next_unordered(
        self, timeout: float | None = None, ignore_if_timedout: bool = False
    ) -> UserValue:
        """Return the result that comes first; see ``get_next``."""
        self._check_next()
        return self._take(None, list(self._running), timeout, ignore_if_timedout)

    def has_free(self) -> bool:
        """Return whether an actor is idle and nothing waits for it."""
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> ActorHandle | None:
        """Take an idle actor out of the pool, or return None when there is none."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: ActorHandle) -> None:
        """Put an actor into the pool.

        Raises:
            ValueError: It is in the pool already.
        """
        known = [handle.id for handle in self._idle]
        known += [handle.id for _, handle in self._running.values()]
        if actor.id in known:
            raise ValueError(f"{actor!r} is in the pool already; push other actors")
        self._free(actor)

    def _drain(
        self, call: Call, items: Iterable[Any], take: Callable[[], UserValue]
    ) -> Iterator[Any]:
        while self.has_next():  # results of an earlier round, which nobody took
            self.get_next_unordered()
        for item in items:
            self.submit(call, item)
        while self.has_next():
            yield take()

    def _check_next(self) -> None:
        if not self.has_next():
            raise StopIteration("the pool has no results left; submit() more")

    def _take(
        self,
        wanted: ObjectRef | None,
        refs: list[ObjectRef],
        timeout: float | None,
        ignore_if_timedout: bool,
    ) -> UserValue:
        """Return the value of the first of ``refs`` that is ready, and free its actor."""
        ready, _ = api.wait(refs, num_returns=1, timeout=timeout)
        if not ready:
            if ignore_if_timedout and wanted is not None:
                self._forget(wanted)
            raise GetTimeoutError(
                f"no result of {len(refs)} came within timeout={timeout} s; the work goes on"
            )
        self._forget(ready[0])
        return api.get(ready[0])

    def _forget(self, ref: ObjectRef) -> None:
        index, actor = self._running.pop(ref)
        del self._by_index[index]
        if index == self._next:
            self._next += 1
        self._free(actor)

    def _free(self, actor: ActorHandle) -> None:
        self._idle.append(actor)
        if self._waiting:
            self.submit(*self._waiting.popleft())
