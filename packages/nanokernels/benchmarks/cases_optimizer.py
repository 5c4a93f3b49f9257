"""AdamW on flat buffers and the norm of all gradients, at the size of a Qwen3-0.6B."""

import torch
from harness import randn

from nanorlhf.nanokernels import adamw_, clip_scale, global_norm

SIZE = 596_049_920
BYTES = 28 * SIZE
"""Both forms move as much: float32 throughout, or float32 state with bfloat16 weights and
gradients."""
OPTIONS = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def run(bench):
    for case, makes in (
        ("AdamW fp32 0.6B", {"nanokernels": ours_fp32, "torch fused": torch_fp32}),
        ("AdamW bf16 + master 0.6B", {"nanokernels": ours_mixed, "torch fused": torch_mixed}),
    ):
        for impl, make in makes.items():
            bench.time(case, impl, make, work=BYTES, unit="GB/s", set_bytes=BYTES)
        bench.goal(case, 1.0, against="torch fused")
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        case, size = f"global norm {name} 0.6B", SIZE * dtype.itemsize
        for impl, fn in (
            ("nanokernels", lambda x: global_norm([x])),
            ("torch", lambda x: torch.linalg.vector_norm(x, dtype=torch.float32)),
        ):

            def make(fn=fn, dtype=dtype):
                x = randn(SIZE, dtype=dtype)
                return lambda: fn(x)

            bench.time(case, impl, make, work=size, unit="GB/s", set_bytes=size)


def state(dtype=torch.float32):
    """Return parameters and gradients in ``dtype`` and zero moments."""
    moments = torch.zeros(2, SIZE, device="cuda")
    return randn(SIZE, dtype=dtype), randn(SIZE, dtype=dtype), *moments


def ours_fp32():
    buffers = state()
    scale = clip_scale(global_norm([buffers[1]]), max_norm=1.0)
    return lambda: adamw_(*buffers, **OPTIONS, step=10, grad_scale=scale)


def ours_mixed():
    buffers = state(torch.bfloat16)
    master, scale = buffers[0].float(), clip_scale(global_norm([buffers[1]]), max_norm=1.0)
    return lambda: adamw_(*buffers, master=master, **OPTIONS, step=10, grad_scale=scale)


def torch_fp32():
    weights = torch.nn.Parameter(randn(SIZE, dtype=torch.float32))
    weights.grad = randn(SIZE, dtype=torch.float32)
    return torch.optim.AdamW([weights], fused=True, capturable=True, **OPTIONS).step


def torch_mixed():
    """Gradients are cast for it and weights copied from the master: it wants one dtype."""
    params, grads = randn(SIZE), randn(SIZE)
    weights = torch.nn.Parameter(params.float())
    weights.grad = torch.empty_like(weights)
    optimizer = torch.optim.AdamW([weights], fused=True, capturable=True, **OPTIONS)

    def call():
        weights.grad.copy_(grads)
        optimizer.step()
        params.copy_(weights.detach())

    return call
