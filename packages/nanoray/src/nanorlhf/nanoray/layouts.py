"""What plain arrays in shared memory look like, remembered by the object they are the value of.

An object never changes, so an array that was unpickled once is made again without its pickle, in
half the time. Nothing here keeps memory: a layout is a shape, a type and a place.
"""

from typing import Any, Literal, NamedTuple

import numpy as np

from .arrays import Array
from .refs import UserValue

_KEPT = 256
"""Objects that are known at a time; any other is unpickled again."""


class Layout(NamedTuple):
    """How an array lies in the block of its object."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    """Bytes from the beginning of the block."""
    order: Literal["C", "F"]

    def array(self, block: memoryview) -> Array:
        """Return the array over the bytes of its block, read-only if they are."""
        return np.ndarray(self.shape, self.dtype, block, self.start, order=self.order)


class Layouts:
    """The layouts of the objects that were read last. Thread-safe.

    >>> layouts, block = Layouts(), np.arange(64, dtype=np.uint8)
    >>> value = np.ndarray((2, 2), np.uint16, block.data.toreadonly(), 32)
    >>> layouts.note(7, value, block)
    >>> layouts.get(7).array(block.data).tolist() == value.tolist(), layouts.get(8)
    (True, None)
    """

    def __init__(self) -> None:
        self._layouts: dict[int, Layout] = {}
        self.get = self._layouts.get
        """Return the layout of an object, or None when it is not known."""

    def note(self, object_id: int, value: UserValue, block: Array) -> None:
        """Remember a value, if it is nothing but a read-only array over the bytes of ``block``."""
        if type(value) is not np.ndarray or value.flags.writeable or value.dtype.isbuiltin != 1:
            return  # other types may be changed in place, as by giving fields new names
        start = _address(value) - _address(block)
        is_dense = value.flags.c_contiguous or value.flags.f_contiguous
        if is_dense and 0 <= start <= block.nbytes - value.nbytes:
            order: Literal["C", "F"] = "C" if value.flags.c_contiguous else "F"
            if len(self._layouts) >= _KEPT:
                self._layouts.pop(next(iter(self._layouts), 0), None)
            self._layouts[object_id] = Layout(value.shape, value.dtype, start, order)


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
