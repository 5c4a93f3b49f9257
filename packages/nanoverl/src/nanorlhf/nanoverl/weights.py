"""Weights from trainer to rollout, by Hugging Face name, with the version that made them.

On CPUs the tensors travel through the object store's shared memory, written once and read in place
by every rollout. On CUDA devices of one host only a handle of the trainer's own memory travels
(CUDA IPC), and the rollout copies device to device. Either way a transfer is a `Shipment`, and
`unpack` turns it back into the ``(name, tensor)`` stream that an inference engine loads.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor


class Handle(NamedTuple):
    """How another process maps a CUDA tensor of this one: ``rebuild(*args)``."""

    rebuild: Callable[..., Tensor]
    args: tuple[Any, ...]


class Shipment(NamedTuple):
    """The weights of one pipeline stage, as one process hands them to another."""

    tensors: dict[str, Tensor | Handle]


def pack(weights: Iterable[tuple[str, Tensor]]) -> Shipment:
    """Return a shipment of ``weights``.

    CUDA tensors are not copied: they must stay alive and unchanged until the receiver has read
    them. CPU tensors are shipped as they are and copied by the transport.
    """
    tensors: dict[str, Tensor | Handle] = {}
    for name, tensor in weights:
        source = tensor.detach()
        tensors[name] = handle(source) if source.is_cuda else source
    if any(isinstance(tensor, Handle) for tensor in tensors.values()):
        torch.cuda.synchronize()  # the reader has a stream of its own: every write must have ended
    return Shipment(tensors)


def handle(tensor: Tensor) -> Handle:
    """Return what another process needs to map ``tensor``."""
    rebuild, args = reduce_tensor(tensor)  # type: ignore[no-untyped-call]
    return Handle(rebuild, args)


def unpack(*shipments: Shipment) -> Iterator[tuple[str, Tensor]]:
    """Yield ``(name, tensor)`` of all ``shipments``, valid until the sender changes them."""
    for shipment in shipments:
        for name, tensor in shipment.tensors.items():
            yield name, tensor.rebuild(*tensor.args) if isinstance(tensor, Handle) else tensor
