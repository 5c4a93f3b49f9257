"""How close is close: the measure and the limits that kernels are held to."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LIMITS = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}
"""Largest relative error of an output, against float64 on the same rounded inputs. One rounding to
bfloat16 costs about 1.7e-3; attention rounds its weights as well."""

GRAD_LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 8e-3}
"""The same for gradients, which pass through more roundings."""


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of ``expected``; NaN counts as infinite.

    >>> relative_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
    0.0
    """
    if found.shape != expected.shape:
        raise ValueError(f"found={tuple(found.shape)} and expected={tuple(expected.shape)} differ")
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    error = float((found - expected).norm() / expected.norm().clamp(min=1e-30))
    return error if error == error else float("inf")


def assert_kernel_close(found: Tensor, expected: Tensor, *, grad: bool = False) -> None:
    """Raise ``AssertionError`` unless ``found`` is within its dtype's limit of ``expected``."""
    limit = (GRAD_LIMITS if grad else LIMITS)[found.dtype]
    error = relative_error(found, expected)
    assert error <= limit, f"relative error {error:.2e} is above {limit:.0e} for {found.dtype}"


def check_operator(op: Callable[..., Any], *args: object) -> None:
    """Raise unless an operator is what its registration says, traced and differentiated.

    Checks the schema (what is written, what aliases), the fake against the real result, and that
    forward and backward agree with eager in a traced graph with symbolic shapes.
    """
    with warnings.catch_warnings():
        # opcheck itself looks at the .grad of tensors that have none.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a")
        torch.library.opcheck(op, args)  # type: ignore[arg-type]
