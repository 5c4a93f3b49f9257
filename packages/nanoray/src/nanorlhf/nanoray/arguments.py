"""Arguments on their way to a call.

A ref at the top level is not pickled: its id is one of the call's *deps*, and the position or
keyword where its value goes is the *slot* beside it. What is left is pickled together, and a call
that is given nothing else travels without a pickle.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .messages import RawValue, Run
from .refs import HoldLog, ObjectRef, ids_of
from .store import Writer
from .value import pickled, small
from .views import Reader


class Packed(NamedTuple):
    """What a call is given, as in ``Particulars``."""

    args: RawValue | None
    args_id: int
    deps: tuple[int, ...]
    slots: tuple[int | str, ...]
    held: tuple[int, ...]


NOTHING = Packed(None, 0, (), (), ())
"""No arguments."""


class Packer:
    """Packs the arguments of the calls that one process makes.

    Args:
        writer: Places what is large.
        holds: The log that this engine's refs are counted in.
        next_id: Returns a number that no process of this engine has used.
    """

    def __init__(self, writer: Writer, holds: HoldLog, next_id: Callable[[], int]) -> None:
        self._writer, self._holds, self._next_id = writer, holds, next_id

    def pack(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Packed:
        """Return the arguments as they travel.

        Raises:
            SerializationError: An argument cannot be sent to another process.
            StoreFullError: They find no room in the store.
            ValueError: A ref is of an engine that was shut down.
        """
        ids = ids_of(args, self._holds)
        if ids and len(ids) == len(args) and not kwargs:
            return Packed(None, 0, tuple(ids), tuple(range(len(ids))), ())
        slots: list[int | str] = [i for i, value in enumerate(args) if type(value) is ObjectRef]
        slots += [key for key, value in kwargs.items() if type(value) is ObjectRef]
        if not slots:
            return self._pickle(args, kwargs, (), ())
        refs = [args[slot] if isinstance(slot, int) else kwargs[slot] for slot in slots]
        deps = tuple([self._id_of(ref) for ref in refs])
        if len(slots) == len(args) + len(kwargs):
            return Packed(None, 0, deps, tuple(slots), ())
        args = tuple(None if type(value) is ObjectRef else value for value in args)
        kwargs = {k: None if type(value) is ObjectRef else value for k, value in kwargs.items()}
        return self._pickle(args, kwargs, deps, tuple(slots))

    def _pickle(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        deps: tuple[int, ...],
        slots: tuple[int | str, ...],
    ) -> Packed:
        stream = small((args, kwargs))
        if stream is not None:
            return Packed(stream, 0, deps, slots, ())
        cut = pickled((args, kwargs))
        value = self._writer.write(cut)
        args_id = self._next_id() if value.block is not None else 0
        return Packed(value.raw, args_id, deps, slots, cut.held)

    def _id_of(self, ref: ObjectRef) -> int:
        if not ref.belongs_to(self._holds):
            raise ValueError(f"{ref!r} belongs to an engine that was shut down; make it again")
        return ref.id


def unpacked(run: Run, reader: Reader) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a call, the values of its refs in their slots.

    Raises:
        ObjectLostError: One was moved to disk and did not come back as it was.
        MemoryError: This process may not map the arena that one lies in.
    """
    if run.args is None and type(run.slots[-1]) is int:  # nothing but refs by position, in order
        return [reader.load(object_id, raw) for object_id, raw in run.deps], {}
    if run.args is not None:
        positional, kwargs = reader.load(run.args_id, run.args)
        args = list(positional)
    else:
        args, kwargs = [None for slot in run.slots if isinstance(slot, int)], {}
    for slot, (object_id, raw) in zip(run.slots, run.deps, strict=True):
        value = reader.load(object_id, raw)
        if isinstance(slot, int):
            args[slot] = value
        else:
            kwargs[slot] = value
    return args, kwargs
