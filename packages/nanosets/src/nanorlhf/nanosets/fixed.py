"""Lists of one size, and tensors: element ``l`` is the child's ``l * size .. (l + 1) * size``.

There are no offsets, and a null takes as much room as a value.
"""

from collections.abc import Iterator
from typing import Any, cast

from numpy.typing import NDArray

from .arrays import Array, Bools, Buffer, Numbers
from .bits import Bits, Chunk
from .errors import SchemaError
from .gather import Ints
from .nested import Bounds
from .types import FixedList, Tensor


class FixedLists(Array):
    """Lists of ``dtype.size`` elements of ``child``."""

    __slots__ = ("child",)

    dtype: FixedList | Tensor

    def __init__(
        self, dtype: FixedList | Tensor, child: Array, *, length: int, valid: Bits | None = None
    ) -> None:
        super().__init__(dtype, length, valid)
        self.child = child

    def bounds(self, chunk: Chunk, local: Ints) -> Bounds:
        """Return the child's range of each of B positions, empty for a null."""
        size = self.dtype.size
        starts = local * size
        mask = self.mask(chunk, local)
        return Bounds(starts, starts + size if mask is None else starts + size * mask)

    def take(self, chunk: Chunk, local: Ints) -> "FixedLists":
        """Return a copy of the elements at B positions."""
        size = self.dtype.size
        child = self.child.spans(chunk, local * size, local * size + size)
        valid = Bits.unless_all(self.mask(chunk, local))
        return type(self)(self.dtype, child, length=len(local), valid=valid)

    def window(self, chunk: int, start: int, stop: int) -> "FixedLists":
        """Return a view of a range."""
        size = self.dtype.size
        child = self.child.window(chunk, start * size, stop * size)
        valid = self._valid_window(chunk, start)
        return type(self)(self.dtype, child, length=stop - start, valid=valid)

    def item(self, chunk: int, local: int) -> Any:  # noqa: ANN401 - array, list or None
        """Return an array of numbers (a view), a list of anything else, or None."""
        if self.is_null(chunk, local):
            return None
        size = self.dtype.size
        return self.child.run(chunk, local * size, local * size + size)

    def rows(self, chunk: Chunk, local: Ints) -> list[Any]:
        """Return arrays of numbers (views), lists of anything else, and None."""
        starts, stops = self.bounds(chunk, local)
        return self._with_nulls(self.child.runs(chunk, starts, stops), chunk, local)

    def buffers(self) -> Iterator[Buffer]:
        """Yield validity and the child's buffers."""
        yield self._valid_buffer()
        yield from self.child.buffers()

    @property
    def nbytes(self) -> int:
        """Bytes in a file."""
        return self._valid_bytes + self.child.nbytes

    def dense(self) -> NDArray[Any]:
        """Return all elements of a compact array as one numpy array [B, size] or [B, *shape].

        A view where numpy has the item's type. What lies under a null is arbitrary.

        Raises:
            SchemaError: The items are neither numbers nor bools, or one of them is null.
        """
        child = self.child
        if not isinstance(child, Numbers | Bools) or child.valid is not None:
            rule = f"a {self.dtype} is no array of numbers without nulls; read its rows instead"
            raise SchemaError("", rule)
        if isinstance(child, Bools):
            flat = child.flat()
        else:
            flat = child.as_numpy(child.values[: child.length])
        return flat.reshape(self.length, *shape_of(self.dtype))


class Tensors(FixedLists):
    """Numpy arrays of one shape.

    Raises:
        SchemaError: An element of the child is null.
    """

    __slots__ = ()

    dtype: Tensor

    def __init__(
        self, dtype: FixedList | Tensor, child: Array, *, length: int, valid: Bits | None = None
    ) -> None:
        if child.valid is not None:
            raise SchemaError(
                "", f"an element of a {dtype} is null; ask for fixed_list, or fill it"
            )
        super().__init__(dtype, child, length=length, valid=valid)

    def item(self, chunk: int, local: int) -> NDArray[Any] | None:
        """Return an array (a view where numpy has the type) or None."""
        found = super().item(chunk, local)
        return None if found is None else cast(NDArray[Any], found).reshape(self.dtype.shape)

    def rows(self, chunk: Chunk, local: Ints) -> list[Any]:
        """Return arrays and None."""
        size, shape = self.dtype.size, self.dtype.shape
        starts = local * size
        found = [run.reshape(shape) for run in self.child.runs(chunk, starts, starts + size)]
        return self._with_nulls(found, chunk, local)


def shape_of(dtype: FixedList | Tensor) -> tuple[int, ...]:
    """Return the shape of one value."""
    return dtype.shape if isinstance(dtype, Tensor) else (dtype.size,)


def fixed_lists(size: int, child: Array, *, length: int, valid: Bits | None = None) -> FixedLists:
    """Return compact lists of ``size`` elements over ``child``.

    >>> from .build import build
    >>> found = fixed_lists(2, build([1, 2, 3, 4]), length=2)
    >>> [row.tolist() for row in found.pylist()]
    [[1, 2], [3, 4]]
    """
    assert child.length == size * length, "a child holds size elements for each row"
    return FixedLists(FixedList(child.dtype, size), child, length=length, valid=valid)
