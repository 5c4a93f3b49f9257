"""bfloat16, which numpy lacks: the upper half of a float32."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Numbers
from .bits import Chunk
from .gather import Ints
from .types import Number

BFLOAT16 = Number("bfloat16")
MARK = np.dtype([("bfloat16", "<u2")])
"""Numpy dtype under which bits of bfloat16 travel until they are in an array."""


class Bfloats(Numbers):
    """Bits of bfloat16; rows of lists come out as float32 arrays, an exact copy."""

    __slots__ = ()

    def python(self, values: NDArray[Any]) -> list[Any]:
        """Return floats."""
        found: list[Any] = widened(values).tolist()
        return found

    def as_numpy(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return float32, a copy."""
        return widened(values)

    def item(self, chunk: int, local: int) -> float | None:
        """Return a float or None."""
        if self.is_null(chunk, local):
            return None
        at = self.starts[chunk] + local
        return float(widened(self.values[at : at + 1])[0])

    def run(self, chunk: int, start: int, stop: int) -> Any:  # noqa: ANN401 - array or list
        """Return a range as float32; a list when one of it is null."""
        found = super().run(chunk, start, stop)
        return widened(found) if isinstance(found, np.ndarray) else found

    def runs(self, chunk: Chunk, starts: Ints, stops: Ints) -> list[Any]:
        """Return ranges as float32; a list for one with a null in it."""
        if self.valid is not None:
            return super().runs(chunk, starts, stops)
        flat = widened(self.spans(chunk, starts, stops).values)  # type: ignore[attr-defined]
        edges = np.cumsum(stops - starts).tolist()
        return [flat[a:b] for a, b in zip([0, *edges], edges, strict=False)]


def widened(bits: NDArray[Any]) -> NDArray[np.float32]:
    """Return the float32 of the same value as each uint16 of bfloat16 bits.

    >>> widened(np.array([0x3FC0], np.uint16)).tolist()
    [1.5]
    """
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrowed(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Return the bits of the nearest bfloat16 of each float, ties to even, as torch rounds.

    >>> [hex(b) for b in narrowed(np.array([1.5, 1.00390625, float("inf")], np.float32))]
    ['0x3fc0', '0x3f80', '0x7f80']
    """
    with np.errstate(all="ignore"):  # what overflows is infinite, and the caller's to judge
        single = values.astype(np.float32)
    if values.dtype.itemsize > 4:
        single = _to_odd(values, single)
    bits = single.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    # Rounding may carry a NaN's bits over to zero; a NaN stays one, with its sign.
    nan = np.isnan(single)
    rounded[nan] = ((bits[nan] >> 16) | 0x40).astype(np.uint16)
    return rounded


def _to_odd(exact: NDArray[Any], single: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to odd instead of to nearest: rounding twice to nearest may err, after this not."""
    with np.errstate(all="ignore"):
        toward = np.where(exact > single, np.float32(np.inf), np.float32(-np.inf))
        # What overflowed came from a finite value: the largest float32 is the odd one below it.
        other = np.nextafter(single, toward)
    even = single.view(np.uint32) & 1 == 0
    inexact = np.isfinite(exact) & (single != exact)
    return np.where(inexact & even, other, single)
