"""Which implementation runs: Triton for CUDA tensors, PyTorch for the rest, or the one asked for.

Every op with a Triton kernel takes ``impl``. ``"auto"`` looks at the tensor's device, ``"triton"``
and ``"reference"`` force one side, and nothing falls back silently: a request that cannot be served
is an error that says what to change.

This is the one module that knows whether Triton is installed (it is not on macOS). Kernels are
written with :func:`jit` and ``tl`` from here, so a module of kernels imports everywhere; only a
launch needs Triton.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None
    # Kernel signatures are evaluated when their module is imported; their bodies never are.
    tl = SimpleNamespace(constexpr=object, tensor=object)

__all__ = [
    "Impl",
    "accumulator",
    "allow_scratch",
    "cdiv",
    "descriptor",
    "is_interpreting",
    "jit",
    "jit_varying",
    "launch",
    "next_power_of_2",
    "tl",
    "use_triton",
]

Impl = Literal["auto", "triton", "reference"]

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Read once, as Triton does when a kernel is decorated. torch.compile traces a constant; to mark the
# function that reads it as constant would import torch._dynamo, which takes as long as torch.
_INTERPRETING = triton is not None and bool(triton.knobs.runtime.interpret)


class Kernel(Protocol):
    """A compiled-on-first-launch kernel: ``kernel[grid](*arguments, **constants)``.

    Called without a grid only from inside another kernel.
    """

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]: ...

    def __call__(self, *args: object) -> Any: ...  # noqa: ANN401 - what a kernel returns is Triton's


def jit(fn: Callable[..., object]) -> Kernel:
    """Return ``fn`` as a Triton kernel, or as it is where Triton is not installed."""
    kernel: Kernel = fn if triton is None else triton.jit(fn)  # type: ignore[assignment]
    return kernel


def jit_varying(*names: str) -> Callable[[Callable[..., object]], Kernel]:
    """Return :func:`jit` for kernels whose arguments ``names`` change from call to call.

    Triton compiles a variant for each integer that is 1 or a multiple of 16; not for these.
    """

    def decorate(fn: Callable[..., object]) -> Kernel:
        made = fn if triton is None else triton.jit(fn, do_not_specialize=list(names))
        kernel: Kernel = made  # type: ignore[assignment]
        return kernel

    return decorate


def is_interpreting() -> bool:
    """Return whether kernels are interpreted (``TRITON_INTERPRET=1``), on CPU tensors."""
    return _INTERPRETING


def use_triton(impl: Impl, x: Tensor) -> bool:
    """Return whether an op on ``x`` runs its Triton kernel.

    Raises:
        ValueError: ``impl`` is unknown, or the tensor's device or dtype has no kernel.
        RuntimeError: Triton is asked for and not installed.
    """
    if impl not in ("auto", "triton", "reference"):
        raise ValueError(f"impl={impl!r} is unknown; use 'auto', 'triton' or 'reference'")
    if impl == "reference" or (impl == "auto" and not x.is_cuda):
        return False
    if triton is None:
        raise RuntimeError(
            f"impl={impl!r} on a {x.device.type} tensor needs Triton, which is not installed; "
            "install triton>=3.6 or use impl='reference'"
        )
    if not x.is_cuda and not is_interpreting():
        raise ValueError(
            f"impl='triton' got a {x.device.type} tensor and kernels run on CUDA; use impl='auto', "
            "or set TRITON_INTERPRET=1 before importing nanorlhf.nanokernels"
        )
    if x.dtype not in KERNEL_DTYPES:
        raise ValueError(
            f"dtype={x.dtype} has no Triton kernel; use float32, float16 or bfloat16, "
            "or impl='reference'"
        )
    return True


def launch(
    kernel: Kernel, grid: tuple[int, ...], x: Tensor, *args: object, **constants: object
) -> None:
    """Run ``kernel`` on ``grid`` programs, on the device of its first argument."""
    # Triton launches on the current device, which need not be the tensor's.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        # Said aloud because Triton 3.10 turns it off by default.
        kernel[grid](x, *args, enable_fp_fusion=True, **constants)


def descriptor(x: Tensor, shape: list[int], strides: list[int], block: list[int]) -> object:
    """Return a tensor descriptor of the memory that ``x`` begins, made on the host.

    Shape and strides (in elements) may be others than ``x``'s own; what a kernel reads outside of
    them is 0. The base and all strides but the last, which is 1, are multiples of 16 bytes.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(x, shape, strides, block)


def allow_scratch(x: Tensor) -> None:
    """Let the next launches on ``x``'s device build tensor descriptors, which need scratch memory.

    Triton keeps its allocator per thread, and a backward runs in a thread of its own.
    """

    def allocate(size: int, _alignment: int, _stream: int | None) -> Tensor:
        return torch.empty(size, dtype=torch.int8, device=x.device)

    triton.set_allocator(allocate)


def cdiv(numerator: int, denominator: int) -> int:
    """Return the quotient rounded up.

    >>> cdiv(9, 4)
    3
    """
    return -(-numerator // denominator)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is at least ``n``.

    >>> next_power_of_2(48)
    64
    """
    return 1 << max(n - 1, 0).bit_length()


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype references compute in: float32, or float64 for float64 input."""
    return torch.float64 if dtype == torch.float64 else torch.float32
