"""All parameters of one rank in one buffer; modules and Hugging Face names see views of it.

The optimizer, zeroing, clipping and every reduction then are a few operations on long vectors
instead of a Python loop over parameters::

    data  | norms | qkv 0 | o 0 | gate_up 0 | ... | pad || tied embedding | pad |
          |<------------ region "main" ------------->||<--- region "tied" ---->|
                     cut into buckets, each cut evenly over the data parallel ranks (ZeRO)

Fused parameters cost nothing: q, k and v lie next to each other, so the fused weight is one view
over all three and each Hugging Face tensor is a view of a third of it.

Embeddings tied across pipeline stages form a region of their own, because both stages must then
cut it alike: the same data parallel rank owns the same elements on both, and one reduction
between those two owners keeps both copies bitwise equal.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .mesh import Mesh
from .optimizer import Run
from .spec import ParamSpec

_ALIGN = 64
"""Elements; keeps every parameter and shard on a 128-byte boundary in bfloat16."""
_BUCKET = 1 << 25
"""Elements of a bucket: 128 MiB of float32 gradients."""


class Slot(NamedTuple):
    """Where one tensor of the table lies in the flat buffer."""

    spec: ParamSpec
    start: int
    stop: int
    shape: tuple[int, ...]


class Bucket(NamedTuple):
    """A range of the flat buffer that is reduced at once."""

    start: int
    stop: int
    tied: bool
    """It holds embeddings shared with another pipeline stage."""


class Layout(NamedTuple):
    """The plan of a flat buffer: pure arithmetic, equal on all ranks of a dp group."""

    slots: list[Slot]
    buckets: list[Bucket]
    partial: int
    """Elements at the front whose gradients are partial sums over tp."""
    size: int
    """Elements of the whole buffer."""


def plan_layout(specs: Sequence[ParamSpec], *, dp: int, tp: int, bucket: int = _BUCKET) -> Layout:
    """Return where each tensor of one pipeline stage goes."""
    tied = [spec for spec in specs if len(spec.stages) > 1]
    main = [spec for spec in specs if len(spec.stages) == 1]
    # Elements treated alike stand together, so that a class is one range: partial sums first.
    main.sort(key=lambda spec: (spec.grad == "whole", spec.decay, spec.shard_dim is not None))
    slots: list[Slot] = []
    buckets: list[Bucket] = []
    cursor = 0
    for region in (main, tied):
        begin = cursor
        cursor = _place(region, slots, begin, tp)
        pieces = max(1, round((cursor - begin) / bucket))
        width = _round_up(-(-(cursor - begin) // pieces), dp * _ALIGN)
        for piece in range(pieces if region else 0):
            start = begin + piece * width
            buckets.append(Bucket(start, start + width, region is tied))
        cursor = buckets[-1].stop if buckets else cursor
    partial = max((slot.stop for slot in slots if slot.spec.grad == "partial_tp"), default=0)
    return Layout(slots, buckets, partial, cursor)


def _place(specs: Sequence[ParamSpec], slots: list[Slot], cursor: int, tp: int) -> int:
    """Append the slots of one region from ``cursor`` on and return its end."""
    previous = ""
    for spec in specs:
        if spec.module_name != previous:
            cursor = _round_up(cursor, _ALIGN)
        previous = spec.module_name
        shape = spec.local_shape(tp)
        stop = cursor + torch.Size(shape).numel()
        slots.append(Slot(spec, cursor, stop, shape))
        cursor = stop
    return cursor


def _round_up(value: int, multiple: int) -> int:
    """Return the next multiple at or above ``value``."""
    return -(-value // multiple) * multiple


class FlatParameters:
    """The parameters of one rank and, once `allocate_grad` ran, their gradients.

    Attributes:
        data: [size] in the model's dtype.
        grad: [size] in float32 (float64 for float64 models), or None without an optimizer.
    """

    def __init__(
        self,
        specs: Sequence[ParamSpec],
        mesh: Mesh,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.mesh = mesh
        mine = [spec for spec in specs if mesh.pp_rank in spec.stages]
        self.layout = plan_layout(mine, dp=mesh.dp, tp=mesh.tp)
        self.slots = {slot.spec.name: slot for slot in self.layout.slots}
        self.data = torch.zeros(self.layout.size, dtype=dtype, device=device)
        self.grad: Tensor | None = None
        self._parameters: dict[str, nn.Parameter] = {}

    def parameter(self, name: str) -> nn.Parameter:
        """Return the module parameter ``name``, a view of `data`; always the same object."""
        if name not in self._parameters:
            self._parameters[name] = nn.Parameter(self._module_view(self.data, name))
        return self._parameters[name]

    def _module_view(self, buffer: Tensor, name: str) -> Tensor:
        """Return the rows of every tensor fused into parameter ``name``."""
        slots = [slot for slot in self.layout.slots if slot.spec.module_name == name]
        flat = buffer[slots[0].start : slots[-1].stop]
        return flat.view(sum(slot.shape[0] for slot in slots), *slots[0].shape[1:])

    def view(self, buffer: Tensor, name: str) -> Tensor:
        """Return this rank's slice of the Hugging Face tensor ``name`` in a [size] buffer."""
        slot = self.slots[name]
        return buffer[slot.start : slot.stop].view(slot.shape)

    def owned(self) -> Iterator[Slot]:
        """Yield the slots this stage answers for: a tied tensor belongs to its first stage."""
        for slot in self.layout.slots:
            if slot.spec.stages[0] == self.mesh.pp_rank:
                yield slot

    def allocate_grad(self) -> Tensor:
        """Make gradients accumulate into one flat buffer, and return it.

        Parameters of at least float32 get ``.grad`` views of it. For bfloat16 parameters the
        gradient of each backward is added to the float32 buffer at once and freed.
        """
        if self.grad is None:
            self.grad = torch.zeros(
                self.data.shape, dtype=master_dtype(self.data.dtype), device=self.data.device
            )
            for name, parameter in self._parameters.items():
                target = self._module_view(self.grad, name)
                if self.grad.dtype == self.data.dtype:
                    parameter.grad = target
                else:
                    _accumulate_wide(parameter, target)
        return self.grad

    def runs(self, slot: Slot) -> Run:
        """Return the slot's range with how the optimizer treats it."""
        spec = slot.spec
        replica = spec.shard_dim is None and self.mesh.tp_rank > 0
        copy = spec.stages[0] != self.mesh.pp_rank
        return Run(slot.start, slot.stop, spec.decay, not replica and not copy)


def master_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of gradients, master weights and optimizer state."""
    return torch.promote_types(dtype, torch.float32)


def _accumulate_wide(parameter: nn.Parameter, target: Tensor) -> None:
    """Add each gradient of ``parameter`` to ``target`` in its wider dtype."""

    def add(leaf: Tensor) -> None:
        if leaf.grad is not None:
            target.add_(leaf.grad)
            leaf.grad = None

    parameter.register_post_accumulate_grad_hook(add)  # type: ignore[no-untyped-call]
