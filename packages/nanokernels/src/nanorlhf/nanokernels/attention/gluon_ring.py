"""What kernels with specialised warps share: a ring of blocks from who loads to who computes.

A slot of the ring has two barriers. The loader waits until the slot is empty, which it is once all
who compute have said so, and the memory accelerator says that it is full. A barrier counts phases:
to wait for parity 0 is to wait for the end of phases 0, 2, 4, .., so round r of the ring is full
with parity ``r & 1``, and was emptied with the other one::

    loader      wait empty   load ---------+                       wait empty   load ..
    computing                              wait full   use   arrive at empty
"""

from collections.abc import Callable
from typing import Any

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from nanorlhf.nanokernels.attention.backward_plan import COLUMNS
from nanorlhf.nanokernels.attention.packed import Geometry

_COLUMNS = gl.constexpr(COLUMNS)
TYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}

# gluon.jit, with a type.
jit: Callable[[Callable[..., object]], Any] = gluon.jit
jit_varying: Callable[..., Callable[[Callable[..., object]], Any]] = gluon.jit
# Triton 3.6 has the longer names, later ones the shorter.
load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
store = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global


def describe(x: torch.Tensor, geometry: Geometry) -> TensorDescriptor:
    """Return a descriptor of a 16-bit tensor, in the layout that the tensor cores read."""
    layout = gl.NVMMASharedLayout.get_default_for(geometry.block, TYPES[x.dtype])
    return TensorDescriptor(x, geometry.shape, geometry.strides, geometry.block, layout)


@jit
def barriers(
    COUNT: gl.constexpr,
    ARRIVALS: gl.constexpr,
) -> gl.tensor:
    """Return barriers whose phases end with so many arrivals; a fence must follow."""
    made = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for index in gl.static_range(COUNT):
        mbarrier.init(made.index(index), count=ARRIVALS)
    return made


@jit
def fill(
    rows: gl.tensor,
    at: gl.tensor,
    ring: gl.tensor,
    full: gl.tensor,
    empty: gl.tensor,
    step: gl.tensor,
    SLOTS: gl.constexpr,
) -> None:
    """Load a block into the ring's slot number ``step`` once its last one has been used."""
    slot = step % SLOTS
    mbarrier.wait(empty.index(slot), ((step // SLOTS) & 1) ^ 1)
    mbarrier.expect(full.index(slot), rows.block_type.nbytes)
    load(rows, at, full.index(slot), ring.index(slot))


@jit
def pass_by(
    count: gl.tensor,
    step: gl.tensor,
    full: gl.tensor,
    empty: gl.tensor,
    SLOTS: gl.constexpr,
) -> gl.tensor:
    """Give back blocks that only others need, and return the step after them.

    Not before they are there: an arrival too early would count for the slot's last round.
    """
    for _ in range(count):
        mbarrier.wait(full.index(step % SLOTS), (step // SLOTS) & 1)
        mbarrier.arrive(empty.index(step % SLOTS))
        step += 1
    return step


@jit
def work_of(
    plan_ptr: gl.tensor,
    turn: gl.tensor,
) -> gl.tensor:
    """Return where this program's work of a round is written (:mod:`.backward_plan`)."""
    return plan_ptr + (turn * gl.num_programs(0) + gl.program_id(0)) * _COLUMNS


@jit
def place_of(
    end: gl.tensor,
    length: gl.tensor,
    row: gl.tensor,
    head: gl.tensor,
    D: gl.constexpr,
) -> gl.tuple:
    """Return where a row of a sequence lies in a ragged descriptor (:func:`.packed.ragged`)."""
    return [1 << 30, end, (1 << 30) - length + row, head * D]
