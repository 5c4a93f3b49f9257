"""The consumer's side of generators that stream: refs, in the order their values are made."""

import threading
from typing import NoReturn

from .refs import Holds, ObjectRef
from .session import current


class ObjectRefGenerator:
    """The refs of what a remote generator yields, each given as soon as it is made.

    Iterate with ``for`` or ``async for``. When the generator raises, the items before are followed
    by one more ref, whose ``get`` raises the error, as in Ray. Dropping this object frees the
    items not taken and closes the remote generator at its ``yield``.
    """

    def __init__(self, stream_id: int, holds: Holds) -> None:
        self._id, self._holds = stream_id, holds
        self._index = 0
        self._turn = threading.Lock()

    def __iter__(self) -> "ObjectRefGenerator":
        return self

    def __next__(self) -> ObjectRef:
        """Return the next ref, waiting until its value is made."""
        return self.next()

    def next(self, *, timeout: float | None = None) -> ObjectRef:
        """Return the next ref.

        Raises:
            StopIteration: The generator has ended.
            GetTimeoutError: ``timeout`` seconds have passed; ask again.
        """
        self._begin()
        try:
            item = current().next_item(self._id, self._index, timeout=timeout)
            if item is None:
                raise StopIteration
            return self._taken(item)
        finally:
            self._turn.release()

    def __aiter__(self) -> "ObjectRefGenerator":
        return self

    async def __anext__(self) -> ObjectRef:
        """Return the next ref, letting the loop go on until its value is made."""
        import asyncio  # who iterates so has it already, and others need not pay for it

        self._begin()
        try:
            item = await asyncio.wrap_future(current().next_item_future(self._id, self._index))
            if item is None:
                raise StopAsyncIteration
            return self._taken(item)
        finally:
            self._turn.release()

    def completed(self) -> ObjectRef:
        """Return a ref that is ready, as None or as the error, when the generator has ended.

        While it lives the generator is not closed.
        """
        self._check_ours()
        self._holds.add(self._id)
        return ObjectRef(self._id, self._holds)

    def _begin(self) -> None:
        self._check_ours()
        if not self._turn.acquire(blocking=False):
            raise ValueError(f"{self!r} waits for its next item already; one asker at a time")

    def _taken(self, object_id: int) -> ObjectRef:
        self._index += 1
        self._holds.add(object_id)
        return ObjectRef(object_id, self._holds)

    def _check_ours(self) -> None:
        if current().holds is not self._holds:
            raise ValueError(f"{self!r} belongs to an engine that was shut down; call again")

    def __del__(self) -> None:
        self._holds.drop(self._id)

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._id:x})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} cannot be passed to another process: its items belong to who iterates; "
            f"pass the refs that it gives"
        )
