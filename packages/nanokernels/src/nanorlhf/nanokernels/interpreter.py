"""Repairs of Triton's interpreter (``TRITON_INTERPRET=1``): bfloat16, and loop bounds.

Triton's interpreter holds bfloat16 as the bits in a uint16 and computes on them as if they were
integers, so sums and products are silently garbage, and float32 is truncated where a GPU rounds to
nearest even. Here a bfloat16 block is held as the float32 numbers it stands for, every result of
type bfloat16 is rounded once, and only memory sees the 16 bits::

    memory  uint16 --load: bits_to_float--> float32 --store: float_to_bits--> uint16
                              result of any op: round to bfloat16

Triton 3.6 also takes a loop's bounds in a way that NumPy 2.4 refuses.

For tests: :func:`repair_interpreter` changes Triton's interpreter for the whole process. Works with
Triton 3.6 to 3.9. Atomics are left as they are; no kernel here uses one.
"""

from collections.abc import Callable
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import triton.language as tl
import triton.runtime.interpreter as stock

Floats = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint16]
Array = npt.NDArray[Any]


class Handle(Protocol):
    """A block of the interpreter: its numbers and its Triton type."""

    data: Array
    dtype: Any


def float_to_bits(x: npt.ArrayLike) -> Bits:
    """Return float32 numbers as bfloat16 bits, rounded to nearest even; NaN stays NaN."""
    values = np.ascontiguousarray(x, dtype=np.float32)
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def bits_to_float(bits: npt.ArrayLike) -> Floats:
    """Return bfloat16 bits as the float32 numbers they stand for."""
    wide = np.ascontiguousarray(bits, dtype=np.uint16).astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32)


def _is_bfloat16(dtype: tl.dtype) -> bool:
    return not isinstance(dtype, tl.pointer_type) and getattr(dtype, "scalar", dtype) == tl.bfloat16


def _patch_types() -> None:
    """Hold bfloat16 as float32, rounded whenever a block of it is made."""
    numpy_type, size_is_valid = stock._get_np_dtype, stock._validate_np_data_size

    def numpy_type_or_float32(dtype: tl.dtype) -> np.dtype[Any]:
        if _is_bfloat16(dtype):
            return np.dtype(np.float32)
        return cast("np.dtype[Any]", numpy_type(dtype))

    def size_is_valid_or_bfloat16(data: Array, dtype: tl.dtype) -> bool:
        return _is_bfloat16(dtype) or bool(size_is_valid(data, dtype))

    def round_when_made(self: Handle) -> None:
        if _is_bfloat16(self.dtype):
            shape = np.shape(self.data)
            self.data = bits_to_float(float_to_bits(self.data)).reshape(shape)
        elif not size_is_valid(self.data, self.dtype):
            raise ValueError(f"{self.data.dtype} does not fit Triton type {self.dtype}")

    stock._get_np_dtype = numpy_type_or_float32
    stock._validate_np_data_size = size_is_valid_or_bfloat16
    stock.TensorHandle.__post_init__ = round_when_made


def _patch_memory(builder: type, handle: Callable[..., Handle]) -> None:
    """Turn bits into numbers on loads and back on stores."""
    stock_load = builder.create_masked_load  # type: ignore[attr-defined]
    stock_store = builder.create_masked_store  # type: ignore[attr-defined]
    memory = stock._interpreter

    def load(
        self: object,
        ptrs: Handle,
        mask: Handle,
        other: Handle | None,
        *rest: object,
        **hints: object,
    ) -> Handle:
        if ptrs.get_element_ty() != tl.bfloat16:  # type: ignore[attr-defined]
            return cast("Handle", stock_load(self, ptrs, mask, other, *rest, **hints))
        shape = ptrs.data.shape
        fill = np.zeros(shape, np.uint16)
        if other is not None:
            fill = float_to_bits(np.broadcast_to(other.data, shape))
        bits = memory.load(ptrs.data, mask.data, fill, np.dtype(np.uint16))
        return handle(bits_to_float(bits).reshape(shape), tl.bfloat16)

    def store(
        self: object, ptrs: Handle, value: Handle, mask: Handle, *rest: object, **hints: object
    ) -> object:
        if not _is_bfloat16(value.dtype):
            return stock_store(self, ptrs, value, mask, *rest, **hints)
        return memory.store(ptrs.data, float_to_bits(value.data), mask.data)

    builder.create_masked_load = load  # type: ignore[attr-defined]
    builder.create_masked_store = store  # type: ignore[attr-defined]


def _patch_casts(builder: type, handle: Callable[..., Handle]) -> None:
    """Convert by value, not by bits; bitcasts alone see the bits."""
    stock_cast = builder.cast_impl  # type: ignore[attr-defined]
    stock_float_cast = builder.create_fp_to_fp  # type: ignore[attr-defined]
    stock_bitcast = builder.create_bitcast  # type: ignore[attr-defined]

    def by_value(src: Handle, dtype: tl.dtype) -> Handle:
        return handle(np.asarray(src.data).astype(stock._get_np_dtype(dtype.scalar)), dtype.scalar)

    def convert(self: object, src: Handle, dtype: tl.dtype) -> Handle:
        if _is_bfloat16(src.dtype) or _is_bfloat16(dtype):
            return by_value(src, dtype)
        return cast("Handle", stock_cast(self, src, dtype))

    def convert_float(self: object, src: Handle, dtype: tl.dtype, rounding: object) -> Handle:
        if _is_bfloat16(src.dtype) or _is_bfloat16(dtype):
            return by_value(src, dtype)
        return cast("Handle", stock_float_cast(self, src, dtype, rounding))

    def bitcast(self: object, src: Handle, dtype: tl.dtype) -> Handle:
        if _is_bfloat16(src.dtype):
            bits = float_to_bits(src.data).view(stock._get_np_dtype(dtype))
            return handle(bits, dtype.scalar)
        if _is_bfloat16(dtype):
            return handle(bits_to_float(src.data.view(np.uint16)), tl.bfloat16)
        return cast("Handle", stock_bitcast(self, src, dtype))

    def constant(self: object, value: float) -> Handle:
        return handle(np.array([value], np.float32), tl.bfloat16)

    builder.cast_impl = convert  # type: ignore[attr-defined]
    builder.create_fp_to_fp = convert_float  # type: ignore[attr-defined]
    builder.create_bitcast = bitcast  # type: ignore[attr-defined]
    builder.get_bf16 = constant  # type: ignore[attr-defined]


def _patch_loop_bounds() -> None:
    """Let one-element arrays be loop bounds, as Triton 3.9 does."""
    stock_patch = stock._patch_lang_tensor

    def patch(tensor: type, scope: stock._LangPatchScope) -> None:
        stock_patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    stock._patch_lang_tensor = patch


def repair_interpreter() -> None:
    """Make the interpreter compute as a GPU does; calling it twice is harmless."""
    builder = stock.InterpreterBuilder
    if getattr(builder, "is_repaired", False):
        return
    _patch_types()
    _patch_memory(builder, stock.TensorHandle)
    _patch_casts(builder, stock.TensorHandle)
    _patch_loop_bounds()
    builder.is_repaired = True
