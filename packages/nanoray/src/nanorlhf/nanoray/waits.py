"""Who waits for which objects: the state of every ``wait`` under way. No I/O."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .errors import ObjectLostError
from .messages import RawValue
from .objects import Entry, Objects, Watcher
from .value import error_value

Asker = tuple[int, int]
"""The process that asks and its number for the question."""

Answer = tuple[Any, ...]

_NUM_SHOWN = 5


class _Wait(NamedTuple):
    ids: Sequence[int]
    missing: set[int]
    num_ready: int
    watched: list[tuple[Entry, Watcher]]
    is_local: bool
    """Whether an object counts once it is on the asker's machine, and not when it is anywhere."""


class Waits:
    """Questions that cannot be answered yet.

    Args:
        objects: Where the objects appear.
        answer: Called as ``answer(asker, payload)`` once for each question not cancelled.
        on_block: Called with a process that begins to wait.
        on_unblock: Called with a process that no longer waits.
        is_away: Returns whether a ready object is not on the machine of a process.
        bring: Brings such an object there, and calls its last argument when that has ended.
    """

    def __init__(
        self,
        objects: Objects,
        answer: Callable[[Asker, Answer], None],
        *,
        on_block: Callable[[int], None],
        on_unblock: Callable[[int], None],
        is_away: Callable[[int, int], bool],
        bring: Callable[[int, int, Callable[[], None]], None],
    ) -> None:
        self._objects, self._answer = objects, answer
        self._on_block, self._on_unblock = on_block, on_unblock
        self._is_away, self._bring = is_away, bring
        self._waits: dict[Asker, _Wait] = {}

    def ask(
        self,
        asker: Asker,
        ids: Sequence[int],
        *,
        num_ready: int,
        is_local: bool,
    ) -> None:
        """Answer as soon as ``num_ready`` of the ids are ready.

        With ``is_local`` an object counts once it is on the asker's machine, and is brought there.
        """
        lost = [object_id for object_id in ids if self._objects.get(object_id) is None]
        if lost:
            error = ObjectLostError(f"object {lost[0]:x} does not exist in this engine (any more)")
            self._answer(asker, ("error", error_value(error)))
            return
        missing = {object_id for object_id in ids if self._entry(object_id).value is None}
        away = {i for i in ids if is_local and i not in missing and self._is_away(asker[0], i)}
        wait = _Wait(ids, missing | away, num_ready, [], is_local)
        answer = self._answer_of(wait)
        if answer is not None:
            self._answer(asker, answer)
            return
        self._waits[asker] = wait
        watcher = self._watcher(asker)
        for object_id in missing:
            entry = self._entry(object_id)
            entry.watchers.append(watcher)
            wait.watched.append((entry, watcher))
        self._on_block(asker[0])
        for object_id in away:
            self._fetch(asker, object_id)

    def cancel(self, asker: Asker) -> None:
        """Forget a question: its asker ran out of time."""
        wait = self._waits.pop(asker, None)
        if wait is not None:
            _unwatch(wait)
            self._on_unblock(asker[0])

    def drop_process(self, process: int) -> None:
        """Forget what a dead process asked."""
        for asker in [asker for asker in self._waits if asker[0] == process]:
            _unwatch(self._waits.pop(asker))

    def fail_all(self, error: RawValue) -> None:
        """Answer every question with an error: the engine is over."""
        for asker in list(self._waits):
            del self._waits[asker]
            self._answer(asker, ("error", error))

    def _watcher(self, asker: Asker) -> Watcher:
        def ready(object_id: int, entry: Entry) -> None:
            del entry
            wait = self._waits.get(asker)
            if wait is not None and wait.is_local and self._is_away(asker[0], object_id):
                self._fetch(asker, object_id)
            else:
                self._came(asker, object_id)

        return ready

    def _fetch(self, asker: Asker, object_id: int) -> None:
        self._bring(asker[0], object_id, lambda: self._came(asker, object_id))

    def _came(self, asker: Asker, object_id: int) -> None:
        """One more counts: answer if it was the last."""
        wait = self._waits.get(asker)
        if wait is None:
            return
        wait.missing.discard(object_id)
        answer = self._answer_of(wait)
        if answer is not None:
            del self._waits[asker]
            self._on_unblock(asker[0])
            self._answer(asker, answer)

    def _answer_of(self, wait: _Wait) -> Answer | None:
        """Return the answer if it can be given now."""
        ready = [object_id for object_id in wait.ids if object_id not in wait.missing]
        return ("ready", ready) if len(ready) >= wait.num_ready else None

    def _entry(self, object_id: int) -> Entry:
        entry = self._objects.get(object_id)
        assert entry is not None, "whoever waits for an object holds it"
        return entry


def describe_wait(reasons: Sequence[str]) -> str:
    """Return what a get waits for, in a line.

    >>> describe_wait(["f() runs", "g() waits for its arguments or its turn"])
    '2 calls: f() runs; g() waits for its arguments or its turn'
    """
    more = " ..." if len(reasons) > _NUM_SHOWN else ""
    return f"{len(reasons)} calls: {'; '.join(reasons[:_NUM_SHOWN])}{more}"


def _unwatch(wait: _Wait) -> None:
    """Take the question off its objects, or polling one for hours would pile up watchers."""
    for entry, watcher in wait.watched:
        if watcher in entry.watchers:
            entry.watchers.remove(watcher)
