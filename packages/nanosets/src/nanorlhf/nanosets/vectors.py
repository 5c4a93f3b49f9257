"""One array of numpy, or of a library that numpy understands, as a flat array of ours."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, Bools, Numbers
from .bfloat import BFLOAT16, MARK, Bfloats
from .bits import Bits
from .build_times import times_of_array
from .errors import SchemaError
from .types import NUMBERS, Number


def as_array(values: Any) -> NDArray[Any]:  # noqa: ANN401 - whatever turns into an array
    """Return an array; bfloat16, which numpy lacks, as its bits under their mark."""
    if type(values) is np.ndarray and values.dtype.isbuiltin == 1:
        return values  # the name of a dtype takes numpy 3 us
    name = str(getattr(values, "dtype", ""))
    if name == "torch.bfloat16":
        import torch  # which is loaded: it made the values

        return values.detach().cpu().contiguous().view(torch.int16).numpy().view(MARK)  # type: ignore[no-any-return]
    array = np.asarray(values)
    return np.ascontiguousarray(array).view(MARK) if name == "bfloat16" else array


def is_flat(dtype: np.dtype[Any]) -> bool:
    """Return whether arrays of a numpy dtype are bools, numbers or times."""
    return dtype.kind in "biufM" or dtype == MARK


def flat_array(array: NDArray[Any], field: str) -> Array:
    """Return a 1-d array of bools, numbers or times as one of ours, over the same memory if it can.

    Raises:
        SchemaError: No type of ours holds its elements.
    """
    dtype = _number(array.dtype)
    if dtype is not None:
        return Numbers(dtype, np.ascontiguousarray(array, dtype.numpy))
    if array.dtype == np.bool_:
        return Bools(Bits.pack(array), length=len(array))
    if array.dtype == MARK:
        return Bfloats(BFLOAT16, np.ascontiguousarray(array).view("<u2"))
    if array.dtype.kind == "M":
        return times_of_array(array, field)
    raise SchemaError(field, f"{array.dtype} is no column type; convert to float64")


@lru_cache(maxsize=64)
def _number(dtype: np.dtype[Any]) -> Number | None:
    """Return the type of numbers of a numpy dtype, None for what is no number or a wider one."""
    name = dtype.name  # which takes numpy long
    return Number(name) if dtype.kind in "iuf" and name in NUMBERS else None
