"""Makes a kernel's launcher an operator of PyTorch: traced by torch.compile, differentiated.

An op is its launcher under a name in ``torch.ops.nanokernels``, and besides it

- a *fake*: what shape and dtype comes out, for tracing without data;
- a *backward*: another such op, and what it needs of the forward. Both directions then stand in a
  compiled graph as they are.

Launchers take and return plain tensors and numbers, never alias an input with an output, never wait
for the device, and allocate with ``torch.empty``: so a CUDA graph can hold them too. They are
registered for CPU tensors as well, where kernels run in Triton's interpreter.
"""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["register"]

NAMESPACE = "nanokernels"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]

Function = Callable[..., Any]


def register(
    schema: str,
    launcher: Function,
    *,
    fake: Function,
    backward: Function | None = None,
    save: Function | None = None,
) -> Function:
    """Return ``launcher`` as an operator.

    Args:
        schema: Name and types, such as ``"rope(Tensor x, Tensor cos) -> Tensor"``; ``Tensor(a!)``
            marks what is written in place.
        launcher: Runs the kernel; takes the arguments of the schema.
        fake: Returns empty tensors like the launcher's, from tensors without data.
        backward: ``backward(ctx, *output_grads)`` returns a gradient, or None, for each argument;
            it calls operators only. None for an op without a gradient.
        save: ``save(ctx, inputs, output)`` keeps what ``backward`` needs on ``ctx``.

    Raises:
        RuntimeError: The name is taken.
    """
    name = f"{NAMESPACE}::{schema.partition('(')[0]}"
    # custom_op would do the same at four times the cost of a call (15 against 4 us on a CPU).
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    for device in ("CUDA", "CPU"):
        _LIBRARY.impl(name, launcher, device)  # type: ignore[no-untyped-call]
    torch.library.register_fake(name, fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(name, backward, setup_context=save, lib=_LIBRARY)
    op: Function = getattr(getattr(torch.ops, NAMESPACE), name.partition("::")[2]).default
    return op
