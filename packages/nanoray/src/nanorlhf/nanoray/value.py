"""Values: what an object is while it travels, and how it becomes one.

A value is pickled with protocol 5. Its buffers (numpy arrays, CPU torch tensors, Arrow columns)
stay out of the pickle stream, so that they are copied once, into shared memory, and never on
reading. The stream is a list of chunks: a long ``bytes`` in it is one, and is not copied either
until it is written.
"""

import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import cloudpickle  # type: ignore[import-untyped]

from .arrays import Cutter
from .errors import NanoRayError, SerializationError
from .messages import RawValue
from .refs import ObjectRef, UserValue

INLINE_BYTES = 64 * 1024
"""Values up to this size travel inside messages; larger ones through shared memory."""

_PLAIN = frozenset({type(None), bool, int, float, str})
_CONTAINERS = frozenset({tuple, list, dict})
_FEW = 16
_NONE = pickle.dumps(None, 5)


class Block(NamedTuple):
    """Where a large value lies: bytes ``[offset, offset + size)`` of an arena."""

    arena: int
    offset: int
    size: int


class Pickled(NamedTuple):
    """A value cut into its stream and its buffers.

    The stream is the chunks, one after the other. ``is_cow[i]`` says that a reader may write to
    its own copy of buffer i (torch tensors have no read-only flag). ``held`` are the ids of the
    refs and actor handles inside.
    """

    chunks: list[bytes | bytearray]
    buffers: list[memoryview]
    is_cow: tuple[bool, ...]
    held: tuple[int, ...]

    @property
    def stream(self) -> bytes:
        """The stream in one piece, a copy if it is in several."""
        return b"".join(self.chunks)

    @property
    def stream_size(self) -> int:
        """Bytes of the stream."""
        return sum(map(len, self.chunks))

    @property
    def size(self) -> int:
        """Bytes of the stream and all buffers."""
        return self.stream_size + sum(buffer.nbytes for buffer in self.buffers)


class Value(NamedTuple):
    """A value as messages carry it.

    Inline: ``stream`` and ``parts`` are bytes and ``block`` is None. In shared memory: ``stream``
    is None and ``parts`` are ``(offset in the block, size)``, the stream being the first.
    """

    stream: bytes | None
    parts: tuple[Any, ...]
    is_cow: tuple[bool, ...]
    block: tuple[int, int, int] | None
    checksum: int | None = None
    """Of the block's bytes, once they have been moved to a file."""

    @classmethod
    def of(cls, raw: RawValue) -> "Value":
        """Return the value that came in a message."""
        return cls(raw, (), (), None) if isinstance(raw, bytes) else cls(*raw)

    @property
    def raw(self) -> RawValue:
        """The value as messages carry it."""
        stream = self.stream
        return tuple(self) if stream is None or self.parts else stream


def inline(pickled: Pickled) -> Value:
    """Return the value with everything inside."""
    parts = tuple(bytes(buffer) for buffer in pickled.buffers)
    return Value(pickled.stream, parts, pickled.is_cow, None)


def pickled(value: object) -> Pickled:
    """Cut ``value`` into stream and buffers.

    Raises:
        SerializationError: The value, or something inside it, cannot be pickled.
    """
    if _is_plain(value):
        return Pickled([pickle.dumps(value, 5)], [], (), ())
    buffers: list[pickle.PickleBuffer] = []
    pickler = _Pickler(buffers.append)
    _dump(pickler, value)
    cow = {id(buffer) for buffer in pickler.cutter.cow}
    is_cow = tuple(id(buffer) in cow for buffer in buffers)
    views = [buffer.raw() for buffer in buffers]
    return Pickled(pickler.chunks, views, is_cow, tuple(pickler.held))


def small(value: object) -> bytes | None:
    """Return the pickle of a value that is nothing but a few numbers and strings, else None.

    >>> pickle.loads(small([1, "two"])), small(object())
    ([1, 'two'], None)
    """
    if value is None:
        return _NONE
    if not _is_plain(value):
        return None
    data = pickle.dumps(value, 5)
    return data if len(data) <= INLINE_BYTES else None


def _is_plain(value: UserValue, depth: int = 3) -> bool:
    """Return whether pickle alone does as well: most arguments and results are a few numbers."""
    kind = type(value)
    if kind is bytes:
        return len(value) <= INLINE_BYTES  # longer ones are spared a copy as a chunk
    if kind not in _CONTAINERS:
        return kind in _PLAIN
    if not depth or len(value) > _FEW:
        return False
    items = (*value, *value.values()) if kind is dict else value
    return all(_is_plain(item, depth - 1) for item in items)


def pickled_code(code: object) -> Pickled:
    """Pickle a function or class with everything in one stream."""
    pickler = _Pickler(None)
    _dump(pickler, code)
    return Pickled([b"".join(pickler.chunks)], [], (), tuple(pickler.held))


def _dump(pickler: "_Pickler", value: object) -> None:
    try:
        pickler.dump(value)
    except NanoRayError:
        raise
    except Exception as error:
        raise SerializationError(
            f"{type(value).__name__} cannot be sent to another process: "
            f"{type(error).__name__}: {error}; pass data, refs or actor handles instead, and open "
            f"files, locks and sockets in the process that uses them"
        ) from error


class _Chunks:
    """A file that keeps what is written to it as it is; pickle hands long bytes over whole."""

    def __init__(self) -> None:
        self.chunks: list[bytes | bytearray] = []
        self.write = self.chunks.append


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle (for what lives in ``__main__`` and closures) with refs and tensors added."""

    def __init__(self, buffer_callback: Callable[[pickle.PickleBuffer], None] | None) -> None:
        file = _Chunks()
        super().__init__(file, 5, buffer_callback)
        self.chunks = file.chunks
        self.held: list[int] = []
        self.cutter = Cutter()

    def reducer_override(self, obj: UserValue) -> UserValue:
        kind = type(obj)
        if kind is ObjectRef:
            self.held.append(obj.id)
            return _load_ref, (obj.id,)
        parts = self.cutter.cut(obj)
        if parts is not None:
            return parts
        travel = getattr(kind, "__nanoray_travel__", None)
        if travel is not None:
            self.held.append(obj.id)
            return travel(obj)
        return super().reducer_override(obj)


def _load_ref(object_id: int) -> ObjectRef:
    from .session import current  # a cycle otherwise: sessions make values

    holds = current().holds
    holds.add(object_id)
    return ObjectRef(object_id, holds)


def error_value(error: BaseException) -> Value:
    """Return an error as a value; always inline, so that many objects may share it."""
    return inline(pickled(error))
