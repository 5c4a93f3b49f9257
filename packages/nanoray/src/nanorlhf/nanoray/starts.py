"""Starting calls: what is prepared once, and what each call adds.

Most of a call is the same each time: the code, the options, where it may run. That is checked and
encoded when a function or a method is called for the first time in a process.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .arguments import NOTHING, Packer
from .messages import Spec
from .options import num_refs
from .session import call_id
from .specs import encoded


class Post(Protocol):
    """Sends messages to the engine."""

    def __call__(self, *messages: tuple[Any, ...]) -> None:
        """Send them, in order."""
        ...


class Caller:
    """Makes the messages of all calls of one process.

    Args:
        post: Sends to the engine.
        packer: Packs arguments.
        next_id: Returns a number that no process of this engine has used.
    """

    def __init__(self, post: Post, packer: Packer, next_id: Callable[[], int]) -> None:
        self._post, self._packer, self._next_id = post, packer, next_id
        self.only_call = 0
        """The call that runs here when there is just one, for threads that user code starts."""

    @property
    def current_call(self) -> int:
        """The call whose code asks; 0 in the driver."""
        return call_id.get() or self.only_call

    def describe(
        self,
        spec: Spec,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        returns: tuple[int, ...] = (),
    ) -> tuple[Any, ...]:
        """Return a single call as the engine wants it: its spec and its ``Particulars``."""
        packed = self._packer.pack(args, kwargs) if args or kwargs else NOTHING
        return encoded(spec), self._next_id(), *packed, returns, self.current_call

    def prepare(
        self, spec: Spec, num_returns: int | str | None
    ) -> "Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[int, ...]]":
        """Return what starts a call with arguments, and returns the ids of its results."""
        data, count = encoded(spec), num_refs(num_returns)
        post, pack, next_id = self._post, self._packer.pack, self._next_id
        current_call = call_id.get

        def start(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
            returns = (next_id(),) if count == 1 else tuple([next_id() for _ in range(count)])
            packed = pack(args, kwargs) if args or kwargs else NOTHING
            parent = current_call() or self.only_call
            post(("call", data, next_id(), *packed, returns, parent))
            return returns

        return start
