"""Decode and prefill attention over a paged cache, 16 query and 8 KV heads of 128.

The page table is as wide as the longest sequence, and once as wide as 65,536 tokens, as a CUDA
graph that serves every length needs it.
"""

import torch
import torch.nn.functional as F
from harness import randn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanorlhf.nanokernels import paged_attention

HEADS, KV_HEADS, DIM = 16, 8, 128
WIDE_TOKENS = 65_536
COPY = {"against": "torch", "of": "copy 1 GiB"}


def run(bench):
    ragged = torch.randint(100, 2049, (256,), generator=torch.Generator().manual_seed(0))
    lengths = {
        "256 x 640": torch.full((256,), 640),
        "256 ragged 100-2048": ragged,
        "64 x 640": torch.full((64,), 640),
        "8 x 8192": torch.full((8,), 8192),
        "1 x 640": torch.full((1,), 640),
    }
    for name, lens in lengths.items():
        decode(bench, f"decode {name}", lens, page=128)
    decode(bench, "decode 256 x 640, pages of 16", lengths["256 x 640"], page=16)
    for name in ("256 x 640", "64 x 640"):
        case = f"decode {name}, table of {WIDE_TOKENS}"
        decode(bench, case, lengths[name], page=128, width=WIDE_TOKENS // 128)
    for name in ("256 x 640", "8 x 8192", "1 x 640"):
        contiguous(bench, f"decode {name}", lengths[name])
    prefill(bench, sequences=4, length=4096, page=128)
    bench.goal("decode 256 x 640", 0.88, **COPY)
    bench.goal("decode 256 ragged 100-2048", 0.90, **COPY)
    bench.goal("decode 64 x 640", 0.70, **COPY)
    bench.goal("decode 8 x 8192", 0.80, **COPY)


def cache(lens, page):
    """Return pages that hold sequences of these lengths, shuffled, and their table."""
    width = -(-int(lens.max()) // page)
    table = torch.randperm(len(lens) * width, device="cuda").int().view(-1, width)
    return *randn(2, table.numel(), KV_HEADS, page, DIM), table, lens.to("cuda", torch.int32)


def decode(bench, case, lens, *, page, width=0):
    def make():
        k, v, table, seq_lens = cache(lens, page)
        table = F.pad(table, (0, max(0, width - table.shape[1])))
        q = randn(len(lens), HEADS, DIM)
        return lambda: paged_attention(q, k, v, table, seq_lens)

    size = int(lens.sum()) * KV_HEADS * DIM * 4
    bench.time(case, "nanokernels", make, work=size, unit="GB/s", set_bytes=size)


def contiguous(bench, case, lens):
    """PyTorch's flash attention on a cache without pages, all of one length."""

    def make():
        q = randn(len(lens), HEADS, 1, DIM)
        k, v = randn(2, len(lens), KV_HEADS, int(lens[0]), DIM)

        def call():
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

        return call

    size = int(lens.sum()) * KV_HEADS * DIM * 4
    bench.time(case, "SDPA flash", make, work=size, unit="GB/s", set_bytes=size)


def prefill(bench, *, sequences, length, page):
    """Whole prompts whose keys lie on pages already."""
    lens = torch.full((sequences,), length)

    def make():
        k, v, table, seq_lens = cache(lens, page)
        q = randn(sequences * length, HEADS, DIM)
        rows = torch.arange(sequences + 1, device="cuda", dtype=torch.int32) * length
        return lambda: paged_attention(q, k, v, table, seq_lens, cu_seqlens=rows, max_seqlen=length)

    work = 2 * sequences * length * length * HEADS * DIM
    size = sequences * length * (2 * HEADS + 2 * KV_HEADS) * DIM * 2
    case = f"paged prefill {sequences} x {length}"
    bench.time(case, "nanokernels", make, work=work, unit="TFLOP/s", set_bytes=size)
