import math

import pytest
import torch

from nanorlhf.nanokernels import attention
from nanorlhf.nanokernels.attention.backward import launch_backward
from nanorlhf.nanokernels.attention.forward import launch_forward
from nanorlhf.nanokernels.attention.packed import Packed, Tile
from nanorlhf.nanokernels.testing import assert_kernel_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SMALL = Tile(block_m=16, block_n=16, num_warps=4, num_stages=1)
WIDE = Tile(block_m=16, block_n=32, num_warps=4, num_stages=1)
TALL = Tile(block_m=32, block_n=16, num_warps=4, num_stages=1)


def attention_by_definition(q, k, v, lengths, key_lengths, scale):
    """One query of one head at a time: a softmax over the keys it sees; 0 if it sees none."""
    o, lse = torch.zeros_like(q), q.new_full(q.shape[:2], -math.inf)
    group = q.shape[1] // k.shape[1]
    first, first_key = 0, 0
    for n, m in zip(lengths, key_lengths, strict=True):
        for i in range(n):
            seen = slice(first_key, first_key + max(i + m - n + 1, 0))
            for h in range(q.shape[1]):
                scores = k[seen, h // group] @ q[first + i, h] * scale
                if len(scores):
                    lse[first + i, h] = scores.logsumexp(0)
                    o[first + i, h] = scores.softmax(0) @ v[seen, h // group]
        first, first_key = first + n, first_key + m
    return o, lse


def packed(lengths, device="cpu"):
    ends = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    return Packed(ends, max(lengths))


def draw(lengths, key_lengths, heads, kv_heads, dim, dtype, device="cpu"):
    q = torch.randn(sum(lengths), heads, dim, device=device).to(dtype)
    k, v = torch.randn(2, sum(key_lengths), kv_heads, dim, device=device).to(dtype).unbind()
    return q, k, v, torch.randn_like(q)


def with_grads(q, k, v, grad, queries, keys, impl):
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    more = (
        {} if keys is None else {"cu_seqlens_k": keys.cu_seqlens, "max_seqlen_k": keys.max_seqlen}
    )
    o, lse = attention(
        q,
        k,
        v,
        cu_seqlens=queries.cu_seqlens,
        max_seqlen=queries.max_seqlen,
        return_lse=True,
        impl=impl,
        **more,
    )
    return o.detach(), lse, *torch.autograd.grad(o, (q, k, v), grad)


def launched(q, k, v, grad, queries, keys, forward, dq, dkdv):
    """Both passes with small tiles, so that a short sequence crosses many of their edges."""
    at = {"queries": queries, "keys": keys, "scale": q.shape[2] ** -0.5}
    o, lse = launch_forward(q, k, v, tile=forward, **at)
    grads = launch_backward(q, k, v, o, lse, grad, dq_tile=dq, dkdv_tile=dkdv, **at)
    return o, lse.t(), *grads


def assert_all_close(found, exact):
    seen = exact[1].isfinite()
    assert torch.equal(found[1].isfinite(), seen)
    assert_kernel_close(found[0], exact[0])
    assert_kernel_close(found[1][seen], exact[1][seen])
    for grad, expected in zip(found[2:], exact[2:], strict=True):
        assert_kernel_close(grad, expected, grad=True)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_reference_matches_its_definition_on_ragged_sequences(kv_heads):
    lengths = [3, 1, 6]
    q, k, v, _ = draw(lengths, lengths, 4, kv_heads, 5, torch.float64)
    at = packed(lengths)
    o, lse = attention(
        q, k, v, cu_seqlens=at.cu_seqlens, max_seqlen=at.max_seqlen, scale=0.3, return_lse=True
    )
    expected = attention_by_definition(q, k, v, lengths, lengths, 0.3)
    torch.testing.assert_close(o, expected[0])
    torch.testing.assert_close(lse, expected[1])


def test_reference_aligns_longer_keys_at_the_bottom_right():
    lengths, key_lengths = [3, 1, 4], [7, 5, 4]
    q, k, v, grad = draw(lengths, key_lengths, 2, 1, 4, torch.float64)
    found = with_grads(q, k, v, grad, packed(lengths), packed(key_lengths), "reference")
    expected = attention_by_definition(q, k, v, lengths, key_lengths, 0.5)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


def test_reference_gives_zero_to_a_query_that_sees_no_key():
    lengths, key_lengths = [4, 2], [1, 2]
    q, k, v, grad = draw(lengths, key_lengths, 1, 1, 4, torch.float64)
    found = with_grads(q, k, v, grad, packed(lengths), packed(key_lengths), "reference")
    torch.testing.assert_close(
        found[0], attention_by_definition(q, k, v, lengths, key_lengths, 0.5)[0]
    )
    assert found[0][:3].abs().sum() == 0
    assert all(x.isfinite().all() for x in found[2:])


def test_reference_needs_no_padding_for_equal_lengths_and_stands_loose_bounds():
    lengths = [4, 4]
    q, k, v, _ = draw(lengths, lengths, 2, 2, 4, torch.float64)
    cu_seqlens = packed(lengths).cu_seqlens
    tight = attention(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=4)
    torch.testing.assert_close(attention(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=9), tight)


def test_reference_stands_empty_sequences():
    q, k, v, _ = draw([3], [3], 1, 1, 4, torch.float64)
    cu_seqlens = torch.tensor([0, 0, 3, 3], dtype=torch.int32)
    torch.testing.assert_close(
        attention(q, k, v, cu_seqlens=cu_seqlens, max_seqlen=3),
        attention_by_definition(q, k, v, [0, 3, 0], [0, 3, 0], 0.5)[0],
    )


@pytest.mark.parametrize("key_lengths", [None, [3, 4]])
def test_reference_passes_gradcheck(key_lengths):
    lengths = [1, 4]
    q, k, v, _ = draw(lengths, key_lengths or lengths, 2, 1, 3, torch.float64)
    at, keys = packed(lengths), None if key_lengths is None else packed(key_lengths)
    more = (
        {} if keys is None else {"cu_seqlens_k": keys.cu_seqlens, "max_seqlen_k": keys.max_seqlen}
    )

    def run(q, k, v):
        return attention(q, k, v, cu_seqlens=at.cu_seqlens, max_seqlen=at.max_seqlen, **more)

    assert torch.autograd.gradcheck(run, tuple(x.requires_grad_() for x in (q, k, v)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(2, 2, 16), (2, 1, 32), (4, 1, 64)])
def test_kernels_match_the_reference_on_ragged_sequences(
    kernel_device, dtype, heads, kv_heads, dim
):
    lengths = [1, 33, 16]
    at = packed(lengths, kernel_device)
    q, k, v, grad = draw(lengths, lengths, heads, kv_heads, dim, dtype, kernel_device)
    found = launched(q, k, v, grad, at, at, SMALL, SMALL, SMALL)
    exact = with_grads(*(x.double() for x in (q, k, v, grad)), at, None, "reference")
    assert found[0].dtype == found[2].dtype == dtype
    assert_all_close(found, exact)


@pytest.mark.parametrize("tiles", [(WIDE, TALL, TALL), (TALL, WIDE, WIDE)])
@pytest.mark.parametrize("key_lengths", [[5, 50, 21], [3, 20, 40]])
def test_kernels_align_longer_and_shorter_keys_as_the_reference(kernel_device, tiles, key_lengths):
    lengths = [3, 33, 7]
    queries, keys = packed(lengths, kernel_device), packed(key_lengths, kernel_device)
    q, k, v, grad = draw(lengths, key_lengths, 2, 1, 16, torch.float32, kernel_device)
    found = launched(q, k, v, grad, queries, keys, *tiles)
    exact = with_grads(*(x.double() for x in (q, k, v, grad)), queries, keys, "reference")
    assert_all_close(found, exact)


@pytest.mark.parametrize(("dim", "dtype"), [(16, torch.float32), (128, torch.bfloat16)])
def test_the_public_function_runs_the_kernels_with_their_table(kernel_device, dim, dtype):
    lengths = [20, 5]
    at = packed(lengths, kernel_device)
    q, k, v, grad = draw(lengths, lengths, 2, 1, dim, dtype, kernel_device)
    found = with_grads(q, k, v, grad, at, None, "triton")
    exact = with_grads(*(x.double() for x in (q, k, v, grad)), at, None, "reference")
    assert_all_close(found, exact)


def test_slices_of_a_fused_projection_are_attended_in_place(kernel_device):
    lengths = [18, 2]
    at = packed(lengths, kernel_device)
    fused = torch.randn(20, 4, 16, device=kernel_device)
    q, k, v = fused[:, :2], fused[:, 2:3], fused[:, 3:]
    grad = torch.randn(20, 2, 16, device=kernel_device)
    found = launched(q, k, v, grad, at, at, SMALL, SMALL, SMALL)
    exact = with_grads(*(x.double() for x in (q, k, v, grad)), at, None, "reference")
    assert_all_close(found, exact)


def test_a_sequence_does_not_depend_on_its_neighbours(kernel_device):
    at, alone = packed([5, 19], kernel_device), packed([19], kernel_device)
    q, k, v, _ = draw([5, 19], [5, 19], 2, 1, 16, torch.float32, kernel_device)
    run = {"scale": 0.25, "tile": SMALL}
    together = launch_forward(q, k, v, queries=at, keys=at, **run).o_THD
    apart = launch_forward(q[5:], k[5:], v[5:], queries=alone, keys=alone, **run).o_THD
    assert torch.equal(together[5:], apart)


def test_no_tokens_give_no_tokens(kernel_device):
    x = torch.empty(0, 1, 16, device=kernel_device, requires_grad=True)
    cu_seqlens = torch.zeros(2, dtype=torch.int32, device=kernel_device)
    for impl in ("reference", "triton"):
        o = attention(x, x, x, cu_seqlens=cu_seqlens, max_seqlen=1, impl=impl)
        assert o.shape == torch.autograd.grad(o.sum(), x)[0].shape == (0, 1, 16)


def test_bad_shapes_are_errors_that_say_the_fix(kernel_device):
    x, at = torch.ones(4, 2, 16, device=kernel_device), packed([4], kernel_device)
    common = {"cu_seqlens": at.cu_seqlens, "max_seqlen": 4}
    with pytest.raises(ValueError, match="H=3 query heads do not divide among K=2"):
        attention(torch.ones(4, 3, 16, device=kernel_device), x, x, **common)
    with pytest.raises(ValueError, match=r"T=4 and S=3 differ; pass cu_seqlens_k"):
        attention(x, x[:3], x[:3], **common)
    with pytest.raises(ValueError, match=r"cu_seqlens=torch\.int64\(2,\) must be int32"):
        attention(x, x, x, cu_seqlens=at.cu_seqlens.long(), max_seqlen=4)
    with pytest.raises(ValueError, match="max_seqlen_k=None beside cu_seqlens_k"):
        attention(x, x, x, cu_seqlens_k=at.cu_seqlens, **common)
    odd = torch.ones(4, 1, 24, device=kernel_device)
    with pytest.raises(ValueError, match="D=24 has no Triton kernel"):
        attention(odd, odd, odd, impl="triton", **common)


REAL = [
    ([4096], 16, 8, 128),
    ([1, 17, 1000, 2048, 300], 16, 8, 128),
    ([511, 64, 1025], 4, 4, 64),
    ([200, 333], 8, 2, 32),
    ([25] * 130, 4, 2, 16),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("lengths", "heads", "kv_heads", "dim"), REAL)
def test_kernels_match_the_reference_at_real_shapes(lengths, heads, kv_heads, dim, dtype):
    at = packed(lengths, "cuda")
    q, k, v, grad = draw(lengths, lengths, heads, kv_heads, dim, dtype, "cuda")
    found = with_grads(q, k, v, grad, at, None, "triton")
    exact = with_grads(*(x.double() for x in (q, k, v, grad)), at, None, "reference")
    assert_all_close(found, exact)
    again = with_grads(q, k, v, grad, at, None, "triton")
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [16, 32, 64, 128])
def test_kernels_match_the_reference_over_a_cached_prefix(dim):
    lengths, key_lengths = [1, 130, 512, 7], [900, 1154, 512, 3]
    queries, keys = packed(lengths, "cuda"), packed(key_lengths, "cuda")
    q, k, v, grad = draw(lengths, key_lengths, 8, 4, dim, torch.bfloat16, "cuda")
    found = with_grads(q, k, v, grad, queries, keys, "triton")
    exact = with_grads(*(x.double() for x in (q, k, v, grad)), queries, keys, "reference")
    assert_all_close(found, exact)
