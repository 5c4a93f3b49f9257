"""A first-in first-out queue that tasks, actors and drivers share: an actor with an event loop."""

import asyncio
import queue
from collections.abc import Iterable, Mapping
from typing import Any

from . import api
from .options import Options
from .refs import UserValue
from .remote import ActorClass, ActorHandle


class Empty(queue.Empty):
    """Nothing to get, now or in time."""


class Full(queue.Full):
    """No room to put, now or in time."""


class _Items:
    """The actor: coroutines of one event loop, so that any number of callers may wait."""

    def __init__(self, maxsize: int) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    async def qsize(self) -> int:
        return self._queue.qsize()

    async def put(self, item: UserValue, timeout: float | None) -> bool:
        """Return whether the item was put in time; 0 seconds do not wait."""
        if timeout is not None and timeout <= 0:
            return await self.put_batch([item])
        try:
            await asyncio.wait_for(self._queue.put(item), timeout)
        except TimeoutError:
            return False
        return True

    async def get(self, timeout: float | None) -> tuple[bool, UserValue]:
        """Return whether there was an item in time, and the item; 0 seconds do not wait."""
        if timeout is not None and timeout <= 0:
            items = await self.get_batch(1)
            return (True, items[0]) if items else (False, None)
        try:
            return True, await asyncio.wait_for(self._queue.get(), timeout)
        except TimeoutError:
            return False, None

    async def put_batch(self, items: list[Any]) -> bool:
        """Put all items or, when they do not fit now, none."""
        if self._queue.maxsize and self._queue.qsize() + len(items) > self._queue.maxsize:
            return False
        for item in items:
            self._queue.put_nowait(item)
        return True

    async def get_batch(self, number: int) -> list[Any] | None:
        """Return so many items or, when there are fewer now, None."""
        if self._queue.qsize() < number:
            return None
        return [self._queue.get_nowait() for _ in range(number)]


class Queue:
    """A queue with the methods of ``ray.util.queue.Queue``; may be passed to tasks and actors.

    It ends with its last copy in any process, or with ``shutdown``.

    Args:
        maxsize: Items it holds at most; 0 is no bound.
        actor_options: Options of its actor, ``{"num_cpus": 1, "name": "results"}``.
    """

    def __init__(self, maxsize: int = 0, *, actor_options: Mapping[str, Any] | None = None) -> None:
        self.maxsize = maxsize
        options = Options().merged(dict(actor_options or {}))
        self.actor: ActorHandle = ActorClass(_Items, options).remote(maxsize)

    def __len__(self) -> int:
        return self.qsize()

    def qsize(self) -> int:
        """Return the number of items."""
        size: int = api.get(self.actor.qsize.remote())
        return size

    size = qsize

    def empty(self) -> bool:
        """Return whether there is no item."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Return whether there is no room."""
        return 0 < self.maxsize <= self.qsize()

    def put(self, item: UserValue, block: bool = True, timeout: float | None = None) -> None:
        """Put an item, waiting for room for ``timeout`` seconds, for ever with None.

        Raises:
            Full: There is no room, now (``block=False``) or in time.
            ValueError: ``timeout`` is negative.
        """
        is_put = api.get(self.actor.put.remote(item, _patience(block, timeout)))
        self._check_put(is_put, 1)

    def get(self, block: bool = True, timeout: float | None = None) -> UserValue:
        """Take the oldest item, waiting for one for ``timeout`` seconds, for ever with None.

        Raises:
            Empty: There is none, now (``block=False``) or in time.
            ValueError: ``timeout`` is negative.
        """
        is_there, item = api.get(self.actor.get.remote(_patience(block, timeout)))
        self._check_got(is_there, 1)
        return item

    async def put_async(
        self, item: UserValue, block: bool = True, timeout: float | None = None
    ) -> None:
        """Put an item; see ``put``."""
        self._check_put(await self.actor.put.remote(item, _patience(block, timeout)), 1)

    async def get_async(self, block: bool = True, timeout: float | None = None) -> UserValue:
        """Take the oldest item; see ``get``."""
        is_there, item = await self.actor.get.remote(_patience(block, timeout))
        self._check_got(is_there, 1)
        return item

    def put_nowait(self, item: UserValue) -> None:
        """Put an item, or raise Full."""
        self.put(item, block=False)

    def get_nowait(self) -> UserValue:
        """Take the oldest item, or raise Empty."""
        return self.get(block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Put all items together or, when they do not fit, none and raise Full."""
        batch = list(items)
        self._check_put(api.get(self.actor.put_batch.remote(batch)), len(batch))

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Take so many items together or, when there are fewer, none and raise Empty."""
        if num_items < 0:
            raise ValueError(f"num_items={num_items} is negative; use 0 or more")
        items: list[Any] | None = api.get(self.actor.get_batch.remote(num_items))
        self._check_got(items is not None, num_items)
        return items or []

    def shutdown(self) -> None:
        """End the queue and lose its items; who waits for it gets an ActorDiedError."""
        api.kill(self.actor)

    def _check_put(self, is_put: bool, number: int) -> None:
        if not is_put:
            raise Full(f"the queue of maxsize={self.maxsize} has no room for {number} more")

    def _check_got(self, is_there: bool, number: int) -> None:
        if not is_there:
            raise Empty(f"the queue has fewer items than the {number} asked for")


def _patience(block: bool, timeout: float | None) -> float | None:
    """Return how long to wait, in seconds."""
    if block and timeout is not None and timeout < 0:
        raise ValueError(f"timeout={timeout} is negative; use None to wait for ever")
    return timeout if block else 0.0
