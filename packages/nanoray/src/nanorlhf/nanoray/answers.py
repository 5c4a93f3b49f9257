"""Answers on their way: values leave only once they are on the machine of who asked. No I/O."""

from collections.abc import Callable, Sequence
from typing import Protocol

from .arenas import Arenas
from .machines import Machines
from .messages import DRIVER
from .objects import Objects
from .transfers import Transfers
from .value import Value
from .waits import Answer, Asker
from .wire import Message


class Post(Protocol):
    """How answers leave."""

    def send(self, process: int, message: Message) -> None:
        """Send to a process; no harm when it is gone."""
        ...

    def answer(self, req: int, payload: Answer) -> None:
        """Answer a question of the driver whose process this is."""
        ...


class Answers:
    """Gives answers; a process that is gone, or no longer waits, gets none.

    Args:
        objects: The object table.
        arenas: The table of shared memory.
        transfers: Brings values to the machines they are asked from.
        machines: Knows where each process is.
        post: Sends.
    """

    def __init__(
        self, objects: Objects, arenas: Arenas, transfers: Transfers, machines: Machines, post: Post
    ) -> None:
        self._objects, self._arenas, self._transfers = objects, arenas, transfers
        self._machines, self._post = machines, post
        self._coming: set[Asker] = set()
        """Questions whose values are on their way to the asker's machine."""

    def give(self, asker: Asker, payload: Answer) -> None:
        """Answer a question."""
        if payload[0] == "error":
            self._reply(asker, ("error", tuple(payload[1])))
        else:
            self._reply(asker, payload)

    def cancel(self, asker: Asker) -> None:
        """Forget a question: its asker ran out of time."""
        self._coming.discard(asker)

    def drop_process(self, process: int) -> None:
        """Forget what a dead process asked."""
        self._coming = {asker for asker in self._coming if asker[0] != process}

    def is_away(self, process: int, object_id: int) -> bool:
        """Return whether a ready object is not on the machine of a process."""
        return self._transfers.are_away(self._machines.of(process), [object_id])

    def bring(self, process: int, object_id: int, then: Callable[[], None]) -> None:
        """Bring a ready object to the machine of a process; ``then`` is called if it fails, too."""
        self._transfers.localize(self._machines.of(process), [object_id], lambda _: then())

    def give_values(self, asker: Asker, values: Sequence[tuple[int, Value]]) -> None:
        """Answer with values of the object table, once they are on the asker's machine."""
        if self._machines.is_one:
            self._reply_values(asker, values)
            return
        machine = self._machines.of(asker[0])
        ids = [object_id for object_id, _ in values]
        if not self._transfers.are_away(machine, ids):
            self._reply_local(asker, machine, ids)
            return
        self._coming.add(asker)
        for object_id in ids:
            self._objects.pin(object_id)

        def arrived(error: Value | None) -> None:
            if asker in self._coming:
                self._coming.discard(asker)
                if error is None:
                    self._reply_local(asker, machine, ids)
                else:
                    self._reply(asker, ("error", tuple(error)))
            for object_id in ids:
                self._objects.unpin(object_id)

        self._transfers.localize(machine, ids, arrived)

    def _reply_local(self, asker: Asker, machine: int, ids: Sequence[int]) -> None:
        """Answer with values that are on the machine, unless one was lost meanwhile."""
        values: list[tuple[int, Value]] = []
        for object_id in ids:
            entry = self._objects.get(object_id)
            assert entry is not None, "it is pinned"
            assert entry.value is not None, "it was ready"
            if entry.is_error:
                self._reply(asker, ("error", tuple(entry.value)))
                return
            value = self._transfers.on(machine, object_id, entry.value)
            assert value is not None, "it has been brought here"
            values.append((object_id, value))
        self._reply_values(asker, values)

    def _reply_values(self, asker: Asker, values: Sequence[tuple[int, Value]]) -> None:
        for object_id, value in values:
            if value.block is not None:
                self._lend(asker[0], object_id, value)
        self._reply(asker, ("values", [(object_id, value.raw) for object_id, value in values]))

    def _lend(self, process: int, object_id: int, value: Value) -> None:
        """Keep a value where it is until the process has loaded it (``Reader.end_loan``)."""
        self._arenas.ship(process, value)
        self._objects.hold(process, -object_id, 1)
        self._objects.touch(object_id)

    def _reply(self, asker: Asker, payload: Answer) -> None:
        process, req = asker
        if process == DRIVER:
            self._post.answer(req, payload)
        else:
            self._post.send(process, ("reply", req, payload))
