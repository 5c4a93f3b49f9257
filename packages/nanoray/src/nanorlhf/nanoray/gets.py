"""Who gets which objects: the state of every ``get`` under way. No I/O.

A ``get`` ends when all its objects are ready, or with the first that is an error.
"""

from collections.abc import Callable, Sequence

from .errors import ObjectLostError
from .messages import RawValue
from .objects import Entry, Objects
from .value import Value, error_value
from .waits import Answer, Asker


class _Get:
    """One question. Each object that is missing has its ``came`` among the watchers."""

    __slots__ = ("_table", "asker", "entries", "ids", "num_missing")

    def __init__(
        self, table: "Gets", asker: Asker, ids: Sequence[int], entries: list[Entry]
    ) -> None:
        self._table, self.asker, self.ids, self.entries = table, asker, ids, entries
        self.num_missing = 0

    def watch(self) -> None:
        missing = [entry for entry in self.entries if entry.value is None]
        self.num_missing = len(missing)
        for entry in missing:
            entry.watchers.append(self.came)

    def unwatch(self) -> None:
        """Take the question off its objects, or polling one for hours would pile up watchers."""
        for entry in self.entries:
            if self.came in entry.watchers:
                entry.watchers.remove(self.came)

    def came(self, object_id: int, entry: Entry) -> None:
        del object_id
        self.num_missing -= 1
        if entry.is_error or not self.num_missing:
            self._table.go_on(self)


class Gets:
    """Questions for values that cannot be answered yet.

    Args:
        objects: Where the objects appear.
        give: Called as ``give(asker, [(id, value)])`` with all values.
        answer: Called as ``answer(asker, ("error", value))`` if there is an error.
        on_block: Called with a process that begins to wait.
        on_unblock: Called with a process that no longer waits.
    """

    def __init__(
        self,
        objects: Objects,
        give: Callable[[Asker, list[tuple[int, Value]]], None],
        answer: Callable[[Asker, Answer], None],
        *,
        on_block: Callable[[int], None],
        on_unblock: Callable[[int], None],
    ) -> None:
        self._objects, self._give, self._answer = objects, give, answer
        self._on_block, self._on_unblock = on_block, on_unblock
        self._gets: dict[Asker, _Get] = {}

    def ask(self, asker: Asker, ids: Sequence[int]) -> None:
        """Answer as soon as all objects are ready, or one has failed."""
        find = self._objects.get
        entries = [entry for object_id in ids if (entry := find(object_id)) is not None]
        if len(entries) < len(ids):
            lost = next(object_id for object_id in ids if find(object_id) is None)
            error = ObjectLostError(f"object {lost:x} does not exist in this engine (any more)")
            self._answer(asker, ("error", error_value(error)))
            return
        get = _Get(self, asker, ids, entries)
        if not self._end(get):
            self._gets[asker] = get
            get.watch()
            self._on_block(asker[0])

    def go_on(self, get: _Get) -> None:
        """Answer a question if it can be answered now."""
        if self._gets.get(get.asker) is not get:
            return  # an object before this one has failed it
        if self._end(get):
            del self._gets[get.asker]
            self._on_unblock(get.asker[0])
        elif not get.num_missing:
            get.watch()  # one was taken back meanwhile

    def cancel(self, asker: Asker) -> None:
        """Forget a question: its asker ran out of time."""
        get = self._gets.pop(asker, None)
        if get is not None:
            get.unwatch()
            self._on_unblock(asker[0])

    def drop_process(self, process: int) -> None:
        """Forget what a dead process asked."""
        for asker in [asker for asker in self._gets if asker[0] == process]:
            self._gets.pop(asker).unwatch()

    def fail_all(self, error: RawValue) -> None:
        """Answer every question with an error: the engine is over."""
        for asker in list(self._gets):
            del self._gets[asker]
            self._answer(asker, ("error", error))

    def _end(self, get: _Get) -> bool:
        """Answer, with the first error or all values; return False when neither is there yet."""
        values = []
        for entry in get.entries:
            if entry.is_error:
                assert entry.value is not None, "an error is a value"
                self._answer(get.asker, ("error", entry.value))
                return True
            if entry.value is not None:
                values.append(entry.value)
        if len(values) < len(get.ids):
            return False
        self._give(get.asker, list(zip(get.ids, values, strict=True)))
        return True
