"""Weights from trainer to rollout, by Hugging Face name, with the version that made them.

On CPUs the tensors travel through the object store's shared memory, written once and read in place
by every rollout. On CUDA devices of one host they are copied into one buffer of the trainer's, of
which only a handle travels, once (CUDA IPC): the rollout maps it and copies from there into its own
weights. Either way a transfer is a `Shipment`, and an `Inbox` turns it back into the
``(name, tensor)`` stream that an inference engine loads.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor


class Handle(NamedTuple):
    """How another process maps a CUDA tensor of this one: ``rebuild(*args)``."""

    rebuild: Callable[..., Tensor]
    args: tuple[Any, ...]


class Place(NamedTuple):
    """Where a tensor lies in a flat buffer."""

    start: int
    shape: tuple[int, ...]


class Shipment(NamedTuple):
    """The weights of one pipeline stage, as one process hands them to another."""

    tensors: dict[str, Tensor]
    """Sent as they are."""
    places: dict[str, Place]
    """Sent as parts of the buffer behind ``handle``."""
    handle: Handle | None


class Outbox:
    """The sending end.

    One buffer is shared for good rather than each tensor each time: torch keeps a shared block, and
    a counter for it, until every receiver has let go of it.

    Args:
        processes: The receivers are other processes; without them CUDA tensors go as they are,
            since a process cannot map its own handles.
    """

    def __init__(self, *, processes: bool) -> None:
        self.processes = processes
        self.buffer: Tensor | None = None
        self.handle: Handle | None = None

    def pack(self, weights: Iterable[tuple[str, Tensor]]) -> Shipment:
        """Return a shipment of ``weights``; it holds until the next call."""
        tensors = {name: tensor.detach() for name, tensor in weights}
        cuda = any(tensor.is_cuda for tensor in tensors.values())
        if not (cuda and self.processes):
            return Shipment(tensors, {}, None)
        places, start = {}, 0
        for name, tensor in tensors.items():
            places[name] = Place(start, tuple(tensor.shape))
            start += tensor.numel()
        buffer = self._buffer(start, next(iter(tensors.values())))
        for name, tensor in tensors.items():
            part(buffer, places[name]).copy_(tensor)
        torch.cuda.synchronize()  # the reader has a stream of its own: every write must have ended
        return Shipment({}, places, self.handle)

    def _buffer(self, size: int, like: Tensor) -> Tensor:
        """Return the buffer, made and shared by the first call."""
        if self.buffer is None:
            self.buffer = torch.empty(size, dtype=like.dtype, device=like.device)
            rebuild, args = reduce_tensor(self.buffer)  # type: ignore[no-untyped-call]
            self.handle = Handle(rebuild, args)
        assert len(self.buffer) == size, "the weights of a model do not change their shapes"
        return self.buffer


class Inbox:
    """The receiving end; maps the buffer of each sender once."""

    def __init__(self) -> None:
        self.buffers: dict[bytes, Tensor] = {}

    def unpack(self, *shipments: Shipment) -> Iterator[tuple[str, Tensor]]:
        """Yield ``(name, tensor)`` of all ``shipments``, valid until the sender packs again."""
        for shipment in shipments:
            yield from shipment.tensors.items()
            if shipment.handle is not None:
                buffer = self._map(shipment.handle)
                for name, place in shipment.places.items():
                    yield name, part(buffer, place)

    def _map(self, handle: Handle) -> Tensor:
        key = repr(handle.args).encode()
        if key not in self.buffers:
            self.buffers[key] = handle.rebuild(*handle.args)
        return self.buffers[key]


def part(buffer: Tensor, place: Place) -> Tensor:
    """Return the tensor at ``place``, a view of the flat ``buffer``."""
    return buffer[place.start : place.start + math.prod(place.shape)].view(place.shape)
