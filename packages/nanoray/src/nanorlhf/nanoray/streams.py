"""The engine's table of generators that stream: items made and not yet taken. No I/O.

A stream is an object: held by its consumer, owed by its call, complete when the generator has
ended. Item ``i`` stays here until item ``i + 1`` is asked for, so that a consumer that gave up
waiting, or never saw an answer, asks again and loses nothing. A call that is run again makes its
first items again, which are dropped.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .arenas import Arenas
from .messages import RawValue
from .objects import Entry, Objects
from .value import Value
from .waits import Answer, Asker
from .wire import Message

_NOBODY = -1


@dataclass(slots=True, eq=False)
class _Stream:
    bound: int
    """Items that may wait to be taken; 0 is any number."""
    first: int = 0
    """The index of the first item kept."""
    items: deque[int] = field(default_factory=deque)
    num_taken: int = 0
    producer: int = _NOBODY
    is_resting: bool = False
    """The producer waits for room."""
    waiting: dict[Asker, int] = field(default_factory=dict)

    @property
    def num_made(self) -> int:
        return self.first + len(self.items)


class Streams:
    """All generators of one engine that somebody may still take from.

    Args:
        objects: Where items and streams are objects.
        arenas: Where large items lie.
        answer: Called as ``answer(asker, payload)`` once for each question not cancelled.
        send: Sends to a producer.
        on_block: Called with a process that begins to wait: a consumer, or a producer at rest.
        on_unblock: Called with a process that no longer waits.
    """

    def __init__(
        self,
        objects: Objects,
        arenas: Arenas,
        *,
        answer: Callable[[Asker, Answer], None],
        send: Callable[[int, Message], None],
        on_block: Callable[[int], None],
        on_unblock: Callable[[int], None],
    ) -> None:
        self._objects, self._arenas = objects, arenas
        self._answer, self._send = answer, send
        self._on_block, self._on_unblock = on_block, on_unblock
        self._streams: dict[int, _Stream] = {}
        self._asked: dict[Asker, int] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, stream_id: int, bound: int) -> None:
        """Add the stream of a call that was accepted."""
        self._streams[stream_id] = _Stream(bound)
        entry = self._objects.get(stream_id)
        if entry is not None and entry.value is None:
            entry.watchers.append(self._ended)

    def add(
        self, producer: int, stream_id: int, index: int, item: tuple[int, RawValue, Sequence[int]]
    ) -> None:
        """Take an item from a generator."""
        item_id, raw, held = item
        value = Value.of(raw)
        self._arenas.retain(value)
        stream = self._streams.get(stream_id)
        if stream is None or self._is_over(stream_id):
            self._objects.complete(item_id, value)  # no such object: it is freed
            self._send(producer, ("stopped", stream_id))
            return
        if index < stream.num_made:
            self._objects.complete(item_id, value)
        else:
            self._objects.adopt(item_id, value, contains=held)
            stream.items.append(item_id)
        self._note_producer(stream, stream_id, producer, index)
        self._serve(stream, stream_id)

    def ask(self, asker: Asker, stream_id: int, index: int) -> None:
        """Answer with the id of an item when it is made, of the error, or None at the end."""
        stream = self._streams.get(stream_id)
        assert stream is not None, "whoever asks for an item holds the stream"
        while stream.first < index and stream.items:
            self._objects.unpin(stream.items.popleft())
            stream.first += 1
        if not self._reply(stream, stream_id, asker, index):
            stream.waiting[asker] = index
            self._asked[asker] = stream_id
            self._on_block(asker[0])

    def cancel(self, asker: Asker) -> None:
        """Forget a question."""
        stream = self._streams.get(self._asked.pop(asker, 0))
        if stream is not None and stream.waiting.pop(asker, None) is not None:
            self._on_unblock(asker[0])

    def drop(self, stream_id: int) -> None:
        """Nobody can take from the stream any more: free its items and stop its producer."""
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return
        for item_id in stream.items:
            self._objects.unpin(item_id)
        if stream.producer != _NOBODY:
            self._send(stream.producer, ("stopped", stream_id))
        self._wake(stream)

    def drop_process(self, process: int) -> None:
        """Forget what a dead process asked."""
        for stream in self._streams.values():
            for asker in [asker for asker in stream.waiting if asker[0] == process]:
                del stream.waiting[asker], self._asked[asker]
            if stream.producer == process:
                stream.producer, stream.is_resting = _NOBODY, False

    def _is_over(self, stream_id: int) -> bool:
        entry = self._objects.get(stream_id)
        return entry is None or entry.value is not None

    def _note_producer(self, stream: _Stream, stream_id: int, producer: int, index: int) -> None:
        """Know who makes the items, and whether it rests now, for its CPU is free meanwhile."""
        if stream.producer != producer:
            stream.producer = producer
            if stream.num_taken:
                self._send(producer, ("taken", stream_id, stream.num_taken))
        if stream.bound and index + 1 - stream.num_taken >= stream.bound:
            stream.is_resting = True
            self._on_block(producer)

    def _ended(self, stream_id: int, entry: Entry) -> None:
        del entry
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._wake(stream)
            stream.producer = _NOBODY
            self._serve(stream, stream_id)

    def _serve(self, stream: _Stream, stream_id: int) -> None:
        """Answer those who wait and can be answered."""
        for asker, index in list(stream.waiting.items()):
            if self._reply(stream, stream_id, asker, index):
                del stream.waiting[asker], self._asked[asker]
                self._on_unblock(asker[0])

    def _reply(self, stream: _Stream, stream_id: int, asker: Asker, index: int) -> bool:
        """Answer a question if it can be answered."""
        if index < stream.num_made:
            self._answer(asker, ("plain", stream.items[index - stream.first]))
            self._take(stream, stream_id, index + 1)
        elif self._is_over(stream_id):
            entry = self._objects.get(stream_id)
            is_error = entry is not None and entry.is_error and index == stream.num_made
            self._answer(asker, ("plain", stream_id if is_error else None))
        else:
            return False
        return True

    def _take(self, stream: _Stream, stream_id: int, num_taken: int) -> None:
        stream.num_taken = max(stream.num_taken, num_taken)
        if stream.bound and stream.producer != _NOBODY:
            self._send(stream.producer, ("taken", stream_id, stream.num_taken))
            self._wake(stream)

    def _wake(self, stream: _Stream) -> None:
        """The producer goes on."""
        if stream.is_resting:
            stream.is_resting = False
            self._on_unblock(stream.producer)
