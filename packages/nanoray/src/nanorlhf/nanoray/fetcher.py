"""Makes copies of other machines' blocks in this machine's own arenas."""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple

from .address import Address
from .errors import NanoRayError
from .pull import Puller
from .store import Writer
from .value import Block

log = logging.getLogger(__name__)

_NUM_THREADS = 4

Report = Callable[[int, Block | None, str], None]
"""``report(number, block, reason)``: the copy, or None and why there is none."""


class _Order(NamedTuple):
    number: int
    source: Address
    block: Block


class Fetcher:
    """A few threads that pull; each order ends with one report, made in one of them.

    Args:
        writer: Has room for copies; whoever owns it also frees them.
        puller: Reaches the other machines.
        report: Told of the end of each order.
    """

    def __init__(self, writer: Writer, puller: Puller, report: Report) -> None:
        self._writer, self._puller, self._report = writer, puller, report
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()
        for number in range(_NUM_THREADS):
            name = f"nanoray-fetch-{number}"
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def fetch(self, number: int, source: Address, block: Block) -> None:
        """Copy a block of another machine."""
        self._orders.put(_Order(number, source, block))

    def forget(self, source: Address) -> None:
        """Fail what is being copied from a machine that is gone."""
        self._puller.forget(source)

    def close(self) -> None:
        """Let the threads end, without waiting for pulls under way; nothing more is reported."""
        self._report = lambda number, block, reason: None
        for _ in range(_NUM_THREADS):
            self._orders.put(None)
        self._puller.close()

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            try:
                block = self._copy(order)
            except (NanoRayError, OSError, MemoryError) as error:
                self._report(order.number, None, f"{type(error).__name__}: {error}")
            else:
                self._report(order.number, block, "")

    def _copy(self, order: _Order) -> Block:
        block, target = self._writer.reserve(order.block.size)
        try:
            with target:
                self._puller.pull(order.source, order.block.arena, order.block.offset, target)
        except BaseException:
            self._writer.free(block.arena, block.offset)
            raise
        return block
