"""Numbers as tensors of other libraries, over the same memory.

A column of numbers, of tensors, or of lists of one size is one dense array, which numpy passes on
by DLPack without a copy. bfloat16, which numpy lacks, becomes torch's.

The memory is that of a dataset, often a file mapped for reading. DLPack says so, numpy and jax heed
it, but torch has no read-only tensors: **a write to such a tensor ends the process, or changes the
dataset**. Call ``clone()`` on a tensor before writing to it.
"""

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from .arrays import Array, Numbers
from .errors import SchemaError
from .fixed import FixedLists, shape_of
from .types import Number

if TYPE_CHECKING:
    from torch import Tensor

CPU = 1
"""``kDLCPU``."""


def stored(array: Array) -> NDArray[Any]:
    """Return a compact array of numbers, or of fixed numbers of them, as one array, a view.

    Numbers are [B], tensors [B, *shape], lists of n [B, n], as they are stored: bfloat16 is the
    uint16 of its bits.

    Raises:
        SchemaError: It holds something else, or a null.
    """
    shape: tuple[int, ...] = (array.length,)
    found, has_nulls = array, array.valid is not None
    while isinstance(found, FixedLists):
        shape += shape_of(found.dtype)
        found = found.child
        has_nulls |= found.valid is not None
    if not isinstance(found, Numbers) or not isinstance(found.dtype, Number):
        raise SchemaError("", f"{array.dtype} has no tensor form; select a column of numbers")
    if has_nulls:
        raise SchemaError("", f"a value of this {array.dtype} column is null; filter or fill it")
    return found.values[: found.length].reshape(shape)


def as_torch(array: Array) -> "Tensor":
    """Return a compact array as a torch tensor over the same memory; do not write to it.

    Raises:
        SchemaError: As ``stored``.
    """
    import torch

    values: Tensor = torch.utils.dlpack.from_dlpack(stored(array))
    return values.view(torch.bfloat16) if _is_bfloat16(array) else values


def as_dlpack(array: Array, **options: Any) -> Any:  # noqa: ANN401 - a PyCapsule
    """Return a compact array as a DLPack capsule over the same memory.

    Args:
        array: As for ``stored``.
        options: What the consumer passed to ``__dlpack__``.

    Raises:
        BufferError: The consumer asks for what is not there, such as memory to write to.
        SchemaError: As ``stored``; or the numbers are bfloat16, which numpy cannot name.
    """
    if _is_bfloat16(array):
        raise SchemaError("", "DLPack goes by numpy, which has no bfloat16; use torch() instead")
    return stored(array).__dlpack__(**options)


def _is_bfloat16(array: Array) -> bool:
    while isinstance(array, FixedLists):
        array = array.child
    return isinstance(array.dtype, Number) and array.dtype.is_bfloat16
