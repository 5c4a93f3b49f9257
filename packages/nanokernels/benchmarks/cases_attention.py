"""Causal attention with grouped KV heads, dense and packed: against cuDNN, FlashAttention and Flex.

16,384 tokens, 16 query and 8 KV heads of 128. FLOPs are those of the pairs that the mask leaves:
4 D a pair and query head forward, 2.5 times as many backward.
"""

import inspect

import torch
import torch.nn.functional as F
from harness import backward, randn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanorlhf.nanokernels import attention

TOKENS, HEADS, KV_HEADS, DIM = 16384, 16, 8, 128
LENGTHS = (1024, 4096, 16384)
FORWARD_GOALS = {1024: 0.75, 4096: 0.85, 16384: 0.92}
BACKWARD_GOALS = {1024: 0.90, 4096: 0.85, 16384: 0.80}
BACKENDS = {
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
}
FLEX_LENGTH = 4096
SET_BYTES = 2 * TOKENS * DIM * (2 * HEADS + 2 * KV_HEADS)


def flops(lengths):
    """Return the FLOPs of a forward over sequences."""
    return sum(2 * HEADS * DIM * n * n for n in lengths)


def ragged_lengths():
    """Return 32 lengths of 64 to 2,048 tokens, the same in every run."""
    return torch.randint(64, 2049, (32,), generator=torch.Generator().manual_seed(0)).tolist()


def inputs(*leading, grad=False):
    return [randn(*leading, heads, DIM, grad=grad) for heads in (HEADS, KV_HEADS, KV_HEADS)]


def sdpa(backend):
    """Return one backend of PyTorch's attention, on [B, S, H, D]."""

    def call(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(backend):
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return o.transpose(1, 2)

    return call


def flex():
    """Return compiled FlexAttention, on [B, S, H, D] of one length."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(lambda _b, _h, i, j: i >= j, None, None, FLEX_LENGTH, FLEX_LENGTH)
    compiled = torch.compile(flex_attention)

    def call(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return compiled(q, k, v, block_mask=mask, enable_gqa=True).transpose(1, 2)

    return call


def packed(fn, lengths):
    """Return ``fn(q, k, v, cu_seqlens, longest)`` as a function of the packed tensors alone."""
    ends = torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32)
    return lambda q, k, v: fn(q, k, v, ends, max(lengths))


def ours(q, k, v, ends, longest):
    return attention(q, k, v, cu_seqlens=ends, max_seqlen=longest)


def torch_varlen(q, k, v, ends, longest):
    from torch.nn.attention.varlen import varlen_attn

    # Later releases want grouped heads said aloud.
    said = "enable_gqa" in inspect.signature(varlen_attn).parameters
    options = {"enable_gqa": True} if said else {}
    return varlen_attn(q, k, v, ends, ends, longest, longest, window_size=(-1, 0), **options)


def time_both(bench, case, impl, fn, leading, work, *, set_bytes=SET_BYTES):
    """Time the forward and the backward of ``fn(q, k, v)``."""

    def forward():
        tensors = inputs(*leading)
        return lambda: fn(*tensors)

    def gradient():
        return backward(fn, inputs(*leading, grad=True), randn(*leading, HEADS, DIM))

    bench.time(f"{case} fwd", impl, forward, work=work, unit="TFLOP/s", set_bytes=set_bytes)
    bench.time(
        f"{case} bwd", impl, gradient, work=2.5 * work, unit="TFLOP/s", set_bytes=2 * set_bytes
    )


def run(bench):
    for length in LENGTHS:
        case, leading = f"attention S={length}", (TOKENS // length, length)
        work = flops([length] * leading[0])
        time_both(bench, case, "nanokernels", attention, leading, work)
        for impl, backend in BACKENDS.items():
            time_both(bench, case, impl, sdpa(backend), leading, work)
        if length == FLEX_LENGTH:
            time_both(bench, case, "FlexAttention", flex(), leading, work)
        bench.goal(f"{case} fwd", FORWARD_GOALS[length], against="SDPA cuDNN")
        bench.goal(f"{case} bwd", BACKWARD_GOALS[length], against="SDPA cuDNN")

    # Packed sequences of one length are the dense batch's work, found by cu_seqlens.
    even = [1024] * (TOKENS // 1024)
    case = "attention packed 16 x 1024"
    time_both(bench, case, "nanokernels", packed(ours, even), (TOKENS,), flops(even))
    for direction in ("fwd", "bwd"):
        dense = f"attention S=1024 {direction}"
        bench.goal(f"{case} {direction}", 0.92, against="nanokernels", of=dense)

    lengths = ragged_lengths()
    case, leading = "attention packed 32 x 64-2048", (sum(lengths),)
    for impl, fn in (("nanokernels", ours), ("torch varlen_attn", torch_varlen)):
        time_both(bench, case, impl, packed(fn, lengths), leading, flops(lengths))
    for direction in ("fwd", "bwd"):
        bench.goal(f"{case} {direction}", 1.1, against="torch varlen_attn")
