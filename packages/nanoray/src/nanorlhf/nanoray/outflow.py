"""The producer's side of generators that stream: items leave as they are made.

Item ``i`` is numbered, so that a task that is run again does not give an item twice. With a bound
the generator rests while ``bound`` items wait to be taken; when nobody will take any more it is
closed where it stands, at its ``yield``.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from typing import Any

from .client import Client
from .interrupts import Cancelled, Interrupts
from .link import Flow, WorkerLink
from .messages import Run
from .refs import UserValue
from .value import pickled

_END = object()


class Outflow:
    """Sends the items of this process's generators."""

    def __init__(self, link: WorkerLink, client: Client, interrupts: Interrupts) -> None:
        self._link, self._client, self._interrupts = link, client, interrupts

    def pour(self, run: Run, value: UserValue) -> None:
        """Send the items of an iterator until it ends or nobody wants more."""
        items = iter(_checked(run, value, Iterable))
        flow = self._open(run)
        try:
            for index in _count_while(flow):
                if not self._send_next(run, index, items):
                    break
                self._link.read_now()
                self._run(run, self._link.wait_for, partial(_has_room, run, flow, index))
                if run.id in self._interrupts.cancelled:
                    raise Cancelled
        finally:
            self._close(run)
            close = getattr(items, "close", None)
            if close is not None:
                close()

    async def pour_async(self, run: Run, value: UserValue) -> None:
        """Do the same in an event loop, with an iterator of either kind."""
        if not isinstance(value, AsyncIterable):
            value = _in_loop(_checked(run, value, Iterable))
        items = aiter(value)
        flow = self._open(run)
        changed = asyncio.Event()
        flow.on_change = changed.set
        try:
            for index in _count_while(flow):
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    break
                self._send(run, index, item)
                del item  # gone before the next one is made
                while not _has_room(run, flow, index):
                    changed.clear()
                    await changed.wait()
        finally:
            self._close(run)
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

    def _send_next(self, run: Run, index: int, items: Iterator[Any]) -> bool:
        """Send one item; return False when there is none. Its frame keeps nothing alive."""
        item = self._run(run, next, items, _END)
        if item is not _END:
            self._send(run, index, item)
        return item is not _END

    def _run(self, run: Run, function: Callable[..., Any], *args: UserValue) -> UserValue:
        """Do what in a task may be interrupted; methods of actors only end between two items."""
        if run.brief.kind == "task":
            return self._interrupts.run(run.id, function, args, {})
        return function(*args)

    def _send(self, run: Run, index: int, item: UserValue) -> None:
        cut = pickled(item)
        value = tuple(self._client.writer.write(cut))
        stream_id, item_id = run.returns[0], self._client.next_id()
        self._link.post(("item", stream_id, index, item_id, value, cut.held))

    def _open(self, run: Run) -> Flow:
        flow = self._link.flows[run.returns[0]] = Flow()
        return flow

    def _close(self, run: Run) -> None:
        del self._link.flows[run.returns[0]]


def _count_while(flow: Flow) -> Iterator[int]:
    index = 0
    while not flow.is_stopped:
        yield index
        index += 1


def _has_room(run: Run, flow: Flow, index: int) -> bool:
    """Return whether the generator may go on after item ``index``, or need not any more."""
    return not run.brief.stream or flow.is_stopped or index + 1 - flow.num_taken < run.brief.stream


def _checked(run: Run, value: UserValue, kind: type) -> UserValue:
    if isinstance(value, AsyncIterable):
        raise TypeError(
            f"{run.brief.name} returned an async generator outside an async actor; write a plain "
            f"generator, or make it a method of a class with async methods"
        )
    if not isinstance(value, kind):
        raise TypeError(
            f"{run.brief.name} returned {type(value).__name__} with num_returns='streaming'; it "
            f"must be a generator function or return an iterable"
        )
    return value


async def _in_loop(items: Iterable[Any]) -> AsyncIterator[Any]:
    """Give the items of a plain iterable, and the loop a turn after each."""
    for item in items:
        yield item
        del item
        await asyncio.sleep(0)
