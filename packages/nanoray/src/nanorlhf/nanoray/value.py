"""Values: what an object is while it travels, and how it becomes one.

A value is pickled with protocol 5. Its large buffers (numpy arrays, CPU torch tensors) stay out
of the pickle stream, so that they are copied once, into shared memory, and never on reading.
Torch is known here only once the program itself has imported it.
"""

import io
import pickle
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import cloudpickle  # type: ignore[import-untyped]
import numpy as np

from .errors import NanoRayError, SerializationError
from .refs import ObjectRef, UserValue

INLINE_BYTES = 64 * 1024
"""Values up to this size travel inside messages; larger ones through shared memory."""

_PLAIN = frozenset({type(None), bool, int, float, str, bytes})


class Block(NamedTuple):
    """Where a large value lies: bytes ``[offset, offset + size)`` of an arena."""

    arena: int
    offset: int
    size: int


class Pickled(NamedTuple):
    """A value cut into its stream and its buffers.

    ``is_cow[i]`` says that reader ``i`` may write to its own copy of buffer i (torch tensors have
    no read-only flag). ``held`` are the ids of the refs and actor handles inside.
    """

    stream: bytes
    buffers: list[memoryview]
    is_cow: tuple[bool, ...]
    held: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the stream and all buffers."""
        return len(self.stream) + sum(buffer.nbytes for buffer in self.buffers)


class Value(NamedTuple):
    """A value as messages carry it.

    Inline: ``stream`` and ``parts`` are bytes and ``block`` is None. In shared memory: ``stream``
    is None and ``parts`` are ``(offset in the block, size)``, the stream being the first.
    """

    stream: bytes | None
    parts: tuple[Any, ...]
    is_cow: tuple[bool, ...]
    block: tuple[int, int, int] | None


def inline(pickled: Pickled) -> Value:
    """Return the value with everything inside."""
    parts = tuple(bytes(buffer) for buffer in pickled.buffers)
    return Value(pickled.stream, parts, pickled.is_cow, None)


def pickled(value: object) -> Pickled:
    """Cut ``value`` into stream and buffers.

    Raises:
        SerializationError: The value, or something inside it, cannot be pickled.
    """
    if type(value) in _PLAIN:
        return Pickled(pickle.dumps(value, 5), [], (), ())
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    pickler = _Pickler(file, buffers.append)
    _dump(pickler, value)
    is_cow = tuple(any(buffer is cow for cow in pickler.cow) for buffer in buffers)
    views = [buffer.raw() for buffer in buffers]
    return Pickled(file.getvalue(), views, is_cow, tuple(pickler.held))


def pickled_code(code: object) -> Pickled:
    """Pickle a function or class with everything in one stream."""
    file = io.BytesIO()
    pickler = _Pickler(file, None)
    _dump(pickler, code)
    return Pickled(file.getvalue(), [], (), tuple(pickler.held))


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


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle (for what lives in ``__main__`` and closures) with refs and tensors added."""

    def __init__(
        self, file: io.BytesIO, buffer_callback: Callable[[pickle.PickleBuffer], None] | None
    ) -> None:
        super().__init__(file, 5, buffer_callback)
        self.held: list[int] = []
        self.cow: list[pickle.PickleBuffer] = []

    def reducer_override(self, obj: UserValue) -> UserValue:
        kind = type(obj)
        if kind is ObjectRef:
            self.held.append(obj.id)
            return _load_ref, (obj.id,)
        if kind is np.ndarray:
            return _reduce_array(obj)
        torch = sys.modules.get("torch")
        if torch is not None and kind is getattr(torch, "Tensor", None):
            return self._reduce_tensor(obj, torch)
        travel = getattr(kind, "__nanoray_travel__", None)
        if travel is not None:
            self.held.append(obj.id)
            return travel(obj)
        return super().reducer_override(obj)

    def _reduce_tensor(self, tensor: UserValue, torch: UserValue) -> UserValue:
        """Send a CPU tensor as one flat buffer of its bytes; views come apart from their base."""
        if tensor.device.type != "cpu":
            raise SerializationError(
                f"a tensor on device={tensor.device} cannot travel by value; send tensor.cpu(), "
                f"or its CUDA IPC handle"
            )
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.numel() == 0:
            return NotImplemented
        flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        buffer = pickle.PickleBuffer(flat.view(torch.uint8).numpy())
        self.cow.append(buffer)
        dtype = str(tensor.dtype).removeprefix("torch.")
        return _load_tensor, (buffer, dtype, tuple(tensor.shape), tensor.requires_grad)


def _reduce_array(array: np.ndarray[Any, Any]) -> UserValue:
    """Send any plain array as one buffer, a strided one after a copy."""
    if array.dtype.hasobject:
        return NotImplemented
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = np.ascontiguousarray(array)
    return array.__reduce_ex__(5)


def _load_tensor(
    buffer: memoryview, dtype: str, shape: tuple[int, ...], requires_grad: bool
) -> UserValue:
    import torch  # only readers of tensors pay for torch

    flat = torch.from_numpy(np.frombuffer(buffer, np.uint8))
    tensor = flat.view(getattr(torch, dtype)).reshape(shape)
    return tensor.requires_grad_() if requires_grad else tensor


def _load_ref(object_id: int) -> ObjectRef:
    from .session import current  # a cycle otherwise: sessions make values

    holds = current().holds
    holds.add(object_id)
    return ObjectRef(object_id, holds)


def error_value(error: BaseException) -> Value:
    """Return an error as a value; always inline, so that many objects may share it."""
    return inline(pickled(error))
