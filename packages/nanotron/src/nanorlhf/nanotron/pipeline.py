"""Run one stage's operations of a pipeline schedule.

Shapes never travel: every stage was handed the same microbatches, so it knows that its neighbour
sends [T, C]. Sends are asynchronous; receives wait. Forward and backward messages use a process
group each, so each edge is a FIFO, whose order `schedule.simulate` proves equal at both ends.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from .backward import run_backward
from .mesh import Mesh
from .schedule import Op

Forward = Callable[[int, Tensor | None], Tensor]
"""(microbatch, input or None on the first stage) -> hidden states, or the loss on the last."""


class Wire:
    """Messages to and from the neighbouring stages.

    Args:
        mesh: This rank's place.
        hidden_size: Width of a message; its length is the microbatch's token count.
        dtype: Of messages.
        device: Of messages.
    """

    def __init__(
        self, mesh: Mesh, *, hidden_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.mesh, self.hidden_size = mesh, hidden_size
        self.dtype, self.device = dtype, device
        self._sending: list[tuple[dist.Work, Tensor]] = []

    def receive(self, kind: Literal["F", "B"], tokens: int) -> Tensor | None:
        """Return the next message [tokens, C] of a direction; None where the pipeline begins."""
        source = self._neighbour(kind, upstream=True)
        if source is None:
            return None
        buffer = torch.empty(tokens, self.hidden_size, dtype=self.dtype, device=self.device)
        dist.recv(buffer, source, group=self._group(kind))
        return buffer

    def send(self, kind: Literal["F", "B"], message: Tensor) -> None:
        """Start sending to the next stage of a direction; nothing happens at the end."""
        target = self._neighbour(kind, upstream=False)
        if target is None:
            return
        message = message.detach().contiguous()
        work = dist.isend(message, target, group=self._group(kind))
        assert work is not None, "both ends are members of the group"
        # Held until it left: the buffer must not be reused while it is read.
        self._sending = [entry for entry in self._sending if not entry[0].is_completed()]
        self._sending.append((work, message))

    def flush(self) -> None:
        """Wait until everything was sent."""
        for work, _ in self._sending:
            work.wait()
        self._sending.clear()

    def _neighbour(self, kind: Literal["F", "B"], *, upstream: bool) -> int | None:
        """Return the rank that a direction comes from or goes to; None past the ends."""
        step = 1 if (kind == "F") != upstream else -1
        stage = self.mesh.pp_rank + step
        return self.mesh.stage_rank(stage) if 0 <= stage < self.mesh.pp else None

    def _group(self, kind: Literal["F", "B"]) -> dist.ProcessGroup | None:
        """Return the process group of a direction."""
        return self.mesh.forward_wire if kind == "F" else self.mesh.backward_wire


def run_stage(
    ops: Sequence[Op], forward: Forward, wire: Wire, *, sizes: Sequence[int], training: bool
) -> None:
    """Run this stage's operations in order.

    Args:
        ops: Operations of this stage.
        forward: Computes a microbatch; keeps outputs of the last stage itself.
        wire: Neighbours.
        sizes: Token count of each microbatch.
        training: Keep graphs for the backward operations.
    """
    held: dict[int, tuple[Tensor | None, Tensor]] = {}
    for op in ops:
        i = op.microbatch
        message = wire.receive(op.kind, sizes[i])
        if op.kind == "F":
            if message is not None:
                message.requires_grad_(training)
            output = forward(i, message)
            wire.send("F", output)
            if training:
                held[i] = (message, output)
        else:
            wire.send("B", _backward(*held.pop(i), message))
    wire.flush()


def _backward(source: Tensor | None, output: Tensor, grad: Tensor | None) -> Tensor:
    """Run one backward and return the gradient of the stage's input (empty on the first)."""
    if output.requires_grad:
        run_backward(output, grad)
    if source is None:
        return output.new_empty(0)
    # A microbatch without masked tokens has a constant loss; the stages before still wait for it.
    return torch.zeros_like(source) if source.grad is None else source.grad
