"""Launches every kernel on small awkward shapes, forward and backward, for compute-sanitizer.

    python packages/nanokernels/benchmarks/sanitize.py        # compiles, so that the tool need not
    compute-sanitizer --tool memcheck python packages/nanokernels/benchmarks/sanitize.py
    compute-sanitizer --tool racecheck python packages/nanokernels/benchmarks/sanitize.py

Hardly a size is a multiple of a block, and every tensor is an allocation of its own, so that a read
past its end is one past the allocation's. Prints a line a case and fails on a result that is not
finite; what the results should be is the tests' question. Without a GPU it runs in Triton's
interpreter, ``TRITON_INTERPRET=1``, in half a minute.
"""

import os
import sys

# Before torch starts: its cache would give neighbours one allocation.
os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"

import torch

from nanorlhf import nanokernels as nk
from nanorlhf.nanokernels.dispatch import is_interpreting

HALF, FULL = torch.bfloat16, torch.float32
DEVICE = "cpu" if is_interpreting() else "cuda"
IMPL = "triton"


def randn(*shape, dtype=HALF):
    return torch.randn(*shape, dtype=dtype, device=DEVICE).requires_grad_()


def ints(values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype, device=DEVICE)


def targets(count, vocab):
    """Targets with the first and the last column among them, and one ignored."""
    return ints([0, vocab - 1, -100, *range(1, count - 2)], torch.int64)


def differentiate(outputs, *inputs):
    """Run the backward of everything that has one, and return outputs and gradients."""
    outputs = [y for y in outputs if y.is_floating_point()]
    total = sum(y.float().square().sum() for y in outputs)
    return *outputs, *torch.autograd.grad(total, inputs)


def attention(dim, dtype, *, window=None):
    lengths = [0, 1, 70, 37, 131]
    cu_seqlens = ints(lengths).cumsum(0, dtype=torch.int32)
    q, k, v = (randn(sum(lengths), heads, dim, dtype=dtype) for heads in (4, 2, 2))
    packed = nk.attention(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=131, window=window, impl=IMPL)
    return differentiate([packed], q, k, v)


def dense_attention(dim, dtype, *, causal):
    q, k, v = (randn(2, 67, heads, dim, dtype=dtype) for heads in (4, 1, 1))
    o, lse = nk.attention(q, k, v, causal=causal, return_lse=True, impl=IMPL)
    return lse, *differentiate([o], q, k, v)


def cache(page, dim, dtype):
    """Pages of which sequences of 0, 1, 17 and 50 tokens use some, and their table."""
    pages = [randn(12, 2, page, dim, dtype=dtype).detach() for _ in range(2)]
    width = -(-50 // page)
    table = ints([[(5 * row + i) % 12 for i in range(width)] for row in range(4)])
    return *pages, table, ints([0, 1, 17, 50])


def decode(page, dim, dtype):
    q = randn(4, 6, dim, dtype=dtype).detach()
    return [nk.paged_attention(q, *cache(page, dim, dtype), impl=IMPL)]


def prefill(page, dim, dtype):
    q = randn(1 + 9 + 33, 6, dim, dtype=dtype).detach()
    rows = {"cu_seqlens": ints([0, 0, 1, 10, 43]), "max_seqlen": 33}
    return [nk.paged_attention(q, *cache(page, dim, dtype), **rows, impl=IMPL)]


def store(dim):
    k_pages, v_pages, *_ = cache(16, dim, HALF)
    k, v = (randn(5, 2, dim).detach() for _ in range(2))
    slots = ints([0, 191, -1, 17, 30], torch.int64)
    nk.store_kv(k, v, k_pages, v_pages, slots, impl=IMPL)
    return k_pages, v_pages


def norm(width, *, residual):
    x, w, r = randn(7, 3, width + 8), randn(width), randn(7, 3, width)
    found = nk.rms_norm(x[..., :width], w, residual=r if residual else None, impl=IMPL)
    inputs = (x, w, r) if residual else (x, w)
    return differentiate(found if residual else [found], *inputs)


def heads(dim):
    fused, qw, kw = randn(7, 8, dim), randn(dim), randn(dim)
    angles = nk.rope_table(torch.arange(7, device=DEVICE), head_dim=dim, theta=1e4)
    found = nk.qk_norm_rope(fused[:, :5], fused[:, 5:], qw, kw, *angles, impl=IMPL)
    return differentiate(found, fused, qw, kw)


def heads_to_pages(dim):
    k_pages, v_pages, *_ = cache(16, dim, HALF)
    q, k, v = randn(5, 9, dim).detach().split([5, 2, 2], dim=1)
    weights = randn(2, dim).detach()
    angles = nk.rope_table(torch.arange(5, device=DEVICE), head_dim=dim, theta=1e4)
    slots = ints([0, 191, -1, 17, 30], torch.int64)
    q = nk.qk_norm_rope_store(q, k, v, *weights, *angles, k_pages, v_pages, slots, impl=IMPL)
    return q, k_pages, v_pages


def rotary(dim):
    x = randn(7, 3, dim)
    angles = nk.rope_table(torch.arange(7, device=DEVICE), head_dim=dim, theta=1e4)
    return differentiate([nk.rope(x, *angles, impl=IMPL)], x)


def gated(width):
    x, gate, up = randn(7, 2 * width), randn(7, width), randn(7, width)
    both = nk.swiglu(x, impl=IMPL), nk.silu_mul(gate, up, impl=IMPL)
    return differentiate(both, x, gate, up)


def logits(vocab, dtype):
    z, y = randn(9, vocab, dtype=dtype), targets(9, vocab)
    loss = nk.cross_entropy(z, y, impl=IMPL)
    known = nk.token_logprobs(z, y.clamp(min=0), temperature=0.7, impl=IMPL)
    over = nk.cross_entropy(z * 1.0, y, in_place=True, impl=IMPL)
    return differentiate([loss, *known, over], z)


def hidden(vocab, dtype):
    h, w, y = randn(37, 72, dtype=dtype), randn(vocab, 72, dtype=dtype), targets(37, vocab)
    loss = nk.linear_cross_entropy(h, w, y, chunk_tokens=16, impl=IMPL)
    known = nk.linear_logprob(h, w, y.clamp(min=0), chunk_tokens=16, impl=IMPL)
    return differentiate([loss, *known], h, w)


def product(rows, dtype):
    a, b = randn(rows, 72, dtype=dtype), randn(104, 72, dtype=dtype)
    return differentiate([nk.matmul(a, b.t(), impl=IMPL)], a, b)


def draw(vocab, dtype):
    rows = {"temperature_B": [0.0, 1.0, 0.7, 0.7], "top_p_B": [1.0, 1.0, 0.9, 1.0]}
    rows |= {"min_p_B": [0.0, 0.0, 0.0, 0.1]}
    limits = {name: torch.tensor(row, device=DEVICE) for name, row in rows.items()}
    limits["top_k_B"] = ints([0, 0, 50, 0])
    seeds = {"seeds_B": ints([1, 2, 3, 4]), "steps_B": ints([0, 1, 2, 3])}
    return nk.sample(randn(4, vocab, dtype=dtype).detach(), **limits, **seeds, impl=IMPL)[1:]


def step(size, dtype):
    p, g = (randn(size, dtype=dtype).detach() for _ in range(2))
    m, v, master = (torch.zeros(size, device=DEVICE) for _ in range(3))
    total = nk.global_norm([g, g[:13]], impl=IMPL)
    scale = nk.clip_scale(total, max_norm=1.0)
    given = {"master": master} if dtype is HALF else {}
    nk.adamw_(p, g, m, v, lr=1e-3, step=1, grad_scale=scale, **given, impl=IMPL)
    return p, m, v, total


CASES = {
    "attention, D = 128": lambda: attention(128, HALF),
    "attention, D = 128, window": lambda: attention(128, HALF, window=20),
    "attention, D = 64": lambda: attention(64, HALF),
    "attention, D = 16, float32": lambda: attention(16, FULL),
    "dense attention, D = 128": lambda: dense_attention(128, HALF, causal=True),
    "dense attention, D = 32, not causal": lambda: dense_attention(32, HALF, causal=False),
    "decode, pages of 16": lambda: decode(16, 128, HALF),
    "decode, pages of 48, float32": lambda: decode(48, 64, FULL),
    "prefill, pages of 16": lambda: prefill(16, 128, HALF),
    "prefill, pages of 128": lambda: prefill(128, 64, HALF),
    "store": lambda: store(128),
    "RMSNorm of 1000": lambda: norm(1000, residual=False),
    "RMSNorm of 4096": lambda: norm(4096, residual=False),
    "add + RMSNorm of 1000": lambda: norm(1000, residual=True),
    "QK-norm + RoPE, D = 128": lambda: heads(128),
    "QK-norm + RoPE, D = 80": lambda: heads(80),
    "QK-norm + RoPE + store": lambda: heads_to_pages(128),
    "RoPE, D = 80": lambda: rotary(80),
    "SwiGLU": lambda: gated(1003),
    "logits": lambda: logits(1003, HALF),
    "logits, float32": lambda: logits(5001, FULL),
    "linear losses": lambda: hidden(1003, HALF),
    "linear losses, float32": lambda: hidden(203, FULL),
    "matmul, 3 rows": lambda: product(3, HALF),
    "matmul, 300 rows": lambda: product(300, HALF),
    "matmul, float32": lambda: product(37, FULL),
    "sampling": lambda: draw(5003, HALF),
    "sampling, float32": lambda: draw(5003, FULL),
    "AdamW": lambda: step(1003, FULL),
    "AdamW, masters": lambda: step(1003, HALF),
}


def main():
    if is_interpreting():
        from nanorlhf.nanokernels.interpreter import repair_interpreter

        repair_interpreter()
        torch.set_num_threads(1)  # tensors are small
    torch.manual_seed(0)
    wrong = 0
    for name, run in CASES.items():
        finite = all(bool(x.isfinite().all()) for x in run())
        wrong += not finite
        print(f"{name}: {'ran' if finite else 'NOT FINITE'}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
