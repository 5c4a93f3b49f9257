"""A transformer layer's worth of kernels: prefill, then one decoding step from the paged cache.

Runs anywhere; on a CUDA machine the same lines run the Triton kernels.
"""

import torch

from nanorlhf.nanokernels import (
    attention,
    linear_logprob,
    paged_attention,
    rms_norm,
    rope,
    rope_table,
    sample,
    store_kv,
    swiglu,
)

HEADS, KV_HEADS, DIM, VOCAB, PAGE = 4, 2, 16, 100, 16
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)


def qkv(x, positions):
    """Queries and keys rotated to their positions, and values, as slices of one projection."""
    fused = (rms_norm(x, norm) @ project).view(len(x), HEADS + 2 * KV_HEADS, DIM)
    table = rope_table(positions, head_dim=DIM, theta=1e6)
    q, k, v = fused.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    return rope(q, *table), rope(k, *table), v


width = HEADS * DIM
norm = torch.ones(width, device=device)
project = torch.randn(width, (HEADS + 2 * KV_HEADS) * DIM, device=device) / width**0.5
gate_up = torch.randn(width, 2 * width, device=device) / width**0.5
vocabulary = torch.randn(VOCAB, width, device=device)
lengths = [20, 7]
cu_seqlens = torch.tensor([0, 20, 27], dtype=torch.int32, device=device)
positions = torch.cat([torch.arange(n, device=device) for n in lengths])
x = torch.randn(27, width, device=device)

# Prefill: attend, and keep keys and values. Sequence 0 owns pages 0 and 1, sequence 1 page 2.
q, k, v = qkv(x, positions)
o = attention(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=20)
cache = torch.zeros(2, 3, KV_HEADS, PAGE, DIM, device=device)
page_table = torch.tensor([[0, 1], [2, 0]], dtype=torch.int32, device=device)
slots = torch.cat([torch.arange(20, device=device), 2 * PAGE + torch.arange(7, device=device)])
store_kv(k, v, *cache, slots)
hidden = swiglu(o.flatten(1) @ gate_up)
scores = linear_logprob(hidden, vocabulary, torch.arange(27, device=device))
logprob, entropy = (x.mean().item() for x in scores)
print(f"prefill: mean log-probability {logprob:.2f}, mean entropy {entropy:.2f}")

# Draw the next token of each sequence from its last hidden state.
one = torch.ones(2, device=device)
drawn = sample(
    hidden[[19, 26]] @ vocabulary.t(),
    temperature_B=0.8 * one,
    top_p_B=0.95 * one,
    seeds_B=torch.tensor([1, 2], device=device),
    steps_B=torch.zeros(2, dtype=torch.int64, device=device),
)
print(f"drawn: tokens {drawn.tokens.tolist()}, log-probabilities {drawn.logprobs.tolist()}")

# Decode: one query a sequence. The same token at the same place in a prefill gives the same row.
q, k, v = qkv(vocabulary[drawn.tokens], torch.tensor(lengths, device=device))
store_kv(k, v, *cache, torch.tensor([PAGE + 4, 2 * PAGE + 7], device=device))
seq_lens = torch.tensor([21, 8], dtype=torch.int32, device=device)
decoded = paged_attention(q, *cache, page_table, seq_lens)
print(f"decode: output norm {decoded.norm():.3f}")
