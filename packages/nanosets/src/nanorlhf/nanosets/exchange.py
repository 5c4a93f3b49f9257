"""How a column passes to other libraries: Arrow's capsules, DLPack and torch, without a copy."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .arrays import Array
from .arrow import Capsules, export_array, export_schema, export_stream
from .tensors import CPU, as_dlpack, as_torch
from .types import DType

if TYPE_CHECKING:
    from torch import Tensor

MAX_ROWS = 1 << 20
"""Rows of one exported array at most; a chunk of a file has fewer."""


class Exchange(ABC):
    """What a column has by being a sequence of arrays."""

    dtype: DType

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def block(self, start: int, stop: int) -> Array:
        """Return some rows as a compact array."""

    @abstractmethod
    def blocks(self, max_rows: int) -> Iterator[Array]:
        """Yield all rows as compact arrays."""

    def torch(self) -> "Tensor":
        """Return a column of numbers, tensors or lists of one size as a torch tensor.

        It lies over the memory of the column if that is one chunk with all rows in use; do not
        write to it. bfloat16 comes out as bfloat16.

        Raises:
            SchemaError: The column holds something else, or a null.
        """
        return as_torch(self.block(0, len(self)))

    def __dlpack__(self, **options: Any) -> Any:  # noqa: ANN401 - a PyCapsule
        """Return the same for any library that knows DLPack, as for ``numpy.from_dlpack``."""
        return as_dlpack(self.block(0, len(self)), **options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return that the memory is the host's."""
        return CPU, 0

    def __arrow_c_schema__(self) -> Any:  # noqa: ANN401 - a PyCapsule
        """Return the type for another Arrow library."""
        return export_schema(self.dtype)

    def __arrow_c_array__(self, requested_schema: object = None) -> Capsules:
        """Return the values as one array, as for ``pyarrow.array``; a copy of several chunks."""
        del requested_schema  # a wish, which the consumer fulfils itself
        return export_array(self.block(0, len(self)))

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:  # noqa: ANN401
        """Return the values chunk by chunk as they lie, as for ``pyarrow.chunked_array``."""
        del requested_schema
        return export_stream(self.dtype, self.blocks(MAX_ROWS))
