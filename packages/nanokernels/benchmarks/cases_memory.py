"""Norms, rotary embedding and SwiGLU: kernels that are as fast as they move their bytes.

Liger's kernels get contiguous heads, which they need; ours read slices of the fused projection.
"""

import functools
import importlib

import torch
import torch.nn.functional as F
from harness import randn

from nanorlhf.nanokernels import qk_norm_rope, qk_norm_rope_store, rms_norm, rope, rope_table
from nanorlhf.nanokernels import swiglu as our_swiglu

TOKENS, HEADS, KV_HEADS, DIM, EPS = 16384, 16, 8, 128, 1e-6
COPY = {"against": "torch", "of": "copy 1 GiB"}


def run(bench):
    for width in (1024, 4096):
        norm(bench, width)
    sum_norm(bench, 4096)
    queries_and_keys(bench)
    storing(bench)
    rotary(bench)
    swiglu(bench, 3072)
    for direction, norm_share, swiglu_share in (("fwd", 0.90, 0.92), ("bwd", 0.80, 0.85)):
        bench.goal(f"RMSNorm {direction} {TOKENS} x 4096", norm_share, **COPY)
        bench.goal(f"QK-norm + RoPE {direction}", 0.80, **COPY)
        bench.goal(f"QK-norm + RoPE {direction}", 2.0, against="Liger")
        bench.goal(f"SwiGLU {direction} {TOKENS} x 3072", swiglu_share, **COPY)


def liger(module, function):
    """Return a function of Liger's, imported when it is called first."""

    @functools.cache
    def find():
        found = getattr(importlib.import_module(f"liger_kernel.ops.{module}"), function)
        return found.apply

    return lambda *args: find()(*args)


def both_ways(bench, case, impls, make, *, forward_bytes, backward_bytes):
    """Time each implementation forward without autograd, and backward alone.

    Args:
        bench: Takes the rows.
        case: A name with a gap for the direction.
        impls: Functions of the inputs, by who wrote them.
        make: ``make(impl)`` returns the inputs and the gradients of the outputs.
        forward_bytes: That the forward must move.
        backward_bytes: That the backward must move.
    """

    def forward_of(impl, fn):
        inputs, _ = make(impl)

        def call():
            with torch.no_grad():
                return fn(*inputs)

        return call

    def backward_of(impl, fn):
        inputs, grads = make(impl)
        leaves = [x for x in inputs if x.requires_grad]
        y = fn(*inputs)
        return lambda: torch.autograd.grad(y, leaves, grads, retain_graph=True)

    for direction, of, work in (
        ("fwd", forward_of, forward_bytes),
        ("bwd", backward_of, backward_bytes),
    ):
        for impl, fn in impls.items():
            given = functools.partial(of, impl, fn)
            name = case.format(direction)
            bench.time(name, impl, given, work=work, unit="GB/s", set_bytes=work)


def norm(bench, width):
    def make(_impl):
        x, w = randn(TOKENS, width, grad=True), randn(width, grad=True)
        return (x, w), (randn(TOKENS, width),)

    def native(x, w):
        return F.rms_norm(x, w.shape, w, EPS)

    theirs = liger("rms_norm", "LigerRMSNormFunction")
    impls = {
        "nanokernels": lambda x, w: rms_norm(x, w, eps=EPS),
        "torch": native,
        "Liger": lambda x, w: theirs(x, w, EPS, 0.0, "llama", False),
    }
    if width == 4096:  # compiling takes longer than everything else here
        impls["torch.compile"] = torch.compile(native, dynamic=False)
    size = 2 * TOKENS * width
    case = f"RMSNorm {{}} {TOKENS} x {width}"
    both_ways(bench, case, impls, make, forward_bytes=2 * size, backward_bytes=3 * size)


def sum_norm(bench, width):
    def make(_impl):
        x, r = (randn(TOKENS, width, grad=True) for _ in range(2))
        grads = randn(TOKENS, width), randn(TOKENS, width)
        return (x, r, randn(width, grad=True)), grads

    theirs = liger("fused_add_rms_norm", "LigerFusedAddRMSNormFunction")
    impls = {
        "nanokernels": lambda x, r, w: rms_norm(x, w, eps=EPS, residual=r),
        "Liger": lambda x, r, w: theirs(x, r, w, EPS, 0.0, "llama", False),
    }
    size = 2 * TOKENS * width
    case = f"add + RMSNorm {{}} {TOKENS} x {width}"
    both_ways(bench, case, impls, make, forward_bytes=4 * size, backward_bytes=4 * size)


def separate(q, k, qw, kw, cos, sin):
    """The definition, in ops that torch.compile fuses."""

    def turn(x, w):
        low, high = F.rms_norm(x.float(), w.shape, w.float(), EPS).chunk(2, dim=-1)
        c, s = cos[:, None], sin[:, None]
        return torch.cat((low * c - high * s, high * c + low * s), dim=-1).to(x.dtype)

    return turn(q, qw), turn(k, kw)


def queries_and_keys(bench):
    def make(impl):
        cos, sin = rope_table(torch.arange(TOKENS, device="cuda"), head_dim=DIM, theta=1e6)
        weights = randn(DIM, grad=True), randn(DIM, grad=True)
        grads = randn(TOKENS, HEADS, DIM), randn(TOKENS, KV_HEADS, DIM)
        if impl == "Liger":
            q, k = (randn(TOKENS, h, DIM, grad=True) for h in (HEADS, KV_HEADS))
            # Its table is the width of a head, and in the heads' dtype as in transformers.
            wide = (torch.cat((t, t), dim=-1).bfloat16() for t in (cos, sin))
            return (q, k, *weights, *wide), grads
        fused = randn(TOKENS, HEADS + 2 * KV_HEADS, DIM)
        q, k = fused[:, :HEADS], fused[:, HEADS : HEADS + KV_HEADS]
        return (q.requires_grad_(), k.requires_grad_(), *weights, cos, sin), grads

    norm_liger = liger("rms_norm", "LigerRMSNormFunction")
    rope_liger = liger("rope", "LigerRopeFunction")

    def theirs(q, k, qw, kw, cos, sin):
        q, k = (norm_liger(x, w, EPS, 0.0, "llama", False) for x, w in ((q, qw), (k, kw)))
        # [1, H, T, D] as a view of [1, T, H, D], as transformers has it.
        q, k = rope_liger(q[None].transpose(1, 2), k[None].transpose(1, 2), cos, sin)[:2]
        return q.transpose(1, 2)[0], k.transpose(1, 2)[0]

    impls = {
        "nanokernels": lambda *inputs: qk_norm_rope(*inputs, eps=EPS),
        "torch.compile": torch.compile(separate, dynamic=False),
        "Liger": theirs,
    }
    size, angles = 2 * TOKENS * (HEADS + KV_HEADS) * DIM, 4 * TOKENS * DIM
    moved = {"forward_bytes": 2 * size + angles, "backward_bytes": 3 * size + angles}
    both_ways(bench, "QK-norm + RoPE {}", impls, make, **moved)


def storing(bench):
    def make():
        fused = randn(TOKENS, HEADS + 2 * KV_HEADS, DIM)
        q, k, v = fused.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
        table = rope_table(torch.arange(TOKENS, device="cuda"), head_dim=DIM, theta=1e6)
        slots = torch.randperm(TOKENS, device="cuda")
        pages = [randn(TOKENS // 16, KV_HEADS, 16, DIM) for _ in range(2)]
        weights = randn(DIM), randn(DIM)
        return lambda: qk_norm_rope_store(q, k, v, *weights, *table, *pages, slots, eps=EPS)

    work = 4 * TOKENS * (HEADS + 2 * KV_HEADS) * DIM + 4 * TOKENS * DIM
    case = "QK-norm + RoPE + store"
    bench.time(case, "nanokernels", make, work=work, unit="GB/s", set_bytes=work)


def rotary(bench):
    def make():
        x = randn(TOKENS, HEADS, DIM)
        table = rope_table(torch.arange(TOKENS, device="cuda"), head_dim=DIM, theta=1e6)
        return lambda: rope(x, *table)

    work = 4 * TOKENS * HEADS * DIM + 4 * TOKENS * DIM
    case = f"RoPE {TOKENS} x {HEADS}"
    bench.time(case, "nanokernels", make, work=work, unit="GB/s", set_bytes=work)


def swiglu(bench, width):
    def make(_impl):
        return (randn(TOKENS, 2 * width, grad=True),), (randn(TOKENS, width),)

    def native(x):
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    theirs = liger("swiglu", "LigerFusedGateUpSiLUMulFunction")
    impls = {
        "nanokernels": our_swiglu,
        "torch.compile": torch.compile(native, dynamic=False),
        "Liger": theirs,
    }
    size = 2 * TOKENS * width
    case = f"SwiGLU {{}} {TOKENS} x {width}"
    both_ways(bench, case, impls, make, forward_bytes=3 * size, backward_bytes=5 * size)
