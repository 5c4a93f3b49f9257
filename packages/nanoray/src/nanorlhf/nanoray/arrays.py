"""How arrays and tensors are cut into buffers, and how they are made of buffers again.

Torch is known here only once the program itself has imported it.
"""

import pickle
import sys
from typing import Any, Literal

import numpy as np

from .errors import SerializationError
from .refs import UserValue

Array = np.ndarray[Any, Any]


class Cutter:
    """Cuts the arrays and tensors of one value, which may share memory.

    A tensor that covers its storage takes it along, in any order of strides; tensors that come
    after it and lie in the same storage stay views of it. Any other view is copied, so that a
    slice never carries the whole it was cut from.
    """

    def __init__(self) -> None:
        self.cow: list[pickle.PickleBuffer] = []
        """Buffers that a reader may write to, in a copy of its own."""
        self._storages: dict[int, tuple[UserValue, _Memory]] = {}
        """Where a storage lies -> the storage, kept lest its place be given to another."""

    def cut(self, obj: UserValue) -> UserValue:
        """Return how to rebuild ``obj`` (as ``__reduce__`` does), or None: leave it to pickle.

        Raises:
            SerializationError: It is a tensor that is not in this machine's memory.
        """
        kind = type(obj)
        if isinstance(obj, np.ndarray):
            return _reduce_array(obj, kind)
        if kind is _Memory:
            buffer = pickle.PickleBuffer(obj.data)
            self.cow.append(buffer)
            return _load_memory, (buffer,)
        torch = sys.modules.get("torch")
        if torch is not None and kind is getattr(torch, "Tensor", None):
            return self._reduce_tensor(obj, torch)
        return None

    def _reduce_tensor(self, tensor: UserValue, torch: UserValue) -> UserValue:
        if tensor.device.type not in ("cpu", "meta"):
            raise SerializationError(
                f"a tensor on device={tensor.device} cannot travel by value; send tensor.cpu(), "
                f"or its CUDA IPC handle"
            )
        is_dense = tensor.layout is torch.strided and not tensor.is_quantized
        if tensor.device.type == "meta" or not is_dense or tensor.numel() == 0:
            return None  # torch cuts them itself, into dense tensors or into the stream
        plain = tensor.detach().resolve_conj().resolve_neg()
        if plain.untyped_storage().data_ptr() not in self._storages:
            storage_bytes = plain.untyped_storage().nbytes()
            if storage_bytes > plain.numel() * plain.element_size():
                plain = plain.clone(memory_format=torch.contiguous_format)
        memory = self._memory(plain.untyped_storage(), torch)
        dtype = str(plain.dtype).removeprefix("torch.")
        layout = (dtype, plain.storage_offset(), tuple(plain.shape), plain.stride())
        return _load_tensor, (memory, layout, tensor.requires_grad, vars(tensor) or None)

    def _memory(self, storage: UserValue, torch: UserValue) -> "_Memory":
        address = storage.data_ptr()
        if address not in self._storages:
            flat = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._storages[address] = (storage, _Memory(flat.numpy()))
        return self._storages[address][1]


class _Memory:
    """The bytes of a storage: one object a storage, so that pickle shares it among tensors."""

    def __init__(self, data: Array) -> None:
        self.data = data


def _reduce_array(array: Array, kind: type) -> UserValue:
    """Send any array of plain values as one buffer, a strided one after a copy."""
    if array.dtype.hasobject:
        return None
    if kind is not np.ndarray:
        own = any(getattr(kind, name) is not getattr(np.ndarray, name) for name in _PROTOCOL)
        return None if own else (_load_subclass, (array.view(np.ndarray), kind))
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = np.ascontiguousarray(array)
    if array.dtype.kind in "mM" and array.size:  # Python has no buffers of times
        return _load_times, (array.view(np.int64), array.dtype.str)
    if array.dtype.kind in "biufc":
        order = "C" if array.flags.c_contiguous else "F"
        return _load_array, (pickle.PickleBuffer(array.data), array.dtype.str, array.shape, order)
    return array.__reduce_ex__(5)


_PROTOCOL = ("__reduce__", "__reduce_ex__", "__setstate__")
"""A subclass that defines one of these knows better how it travels."""


def _load_subclass(array: Array, kind: type) -> Array:
    return array.view(kind)


def _load_array(
    buffer: memoryview, dtype: str, shape: tuple[int, ...], order: Literal["C", "F"]
) -> Array:
    """Do what numpy's own function does, in a third of the time."""
    return np.ndarray(shape, dtype, buffer, order=order)


def _load_times(array: Array, dtype: str) -> Array:
    return array.view(dtype)


def _load_memory(buffer: memoryview) -> UserValue:
    import torch  # only readers of tensors pay for torch

    return torch.from_numpy(np.frombuffer(buffer, np.uint8)).untyped_storage()


def _load_tensor(
    memory: UserValue,
    layout: tuple[str, int, tuple[int, ...], tuple[int, ...]],
    requires_grad: bool,
    attributes: dict[str, Any] | None,
) -> UserValue:
    import torch

    dtype, offset, shape, stride = layout
    tensor = torch.empty(0, dtype=getattr(torch, dtype)).set_(memory, offset, shape, stride)
    if attributes:
        vars(tensor).update(attributes)
    return tensor.requires_grad_() if requires_grad else tensor
