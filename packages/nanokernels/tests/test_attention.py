"""The forward of attention; the file is long because each mask meets each layout and device."""

import math

import pytest
import torch

from nanorlhf.nanokernels import attention
from nanorlhf.nanokernels.attention.forward import launch_forward
from nanorlhf.nanokernels.attention.order import longest_first
from nanorlhf.nanokernels.attention.packed import Packed
from nanorlhf.nanokernels.testing import assert_kernel_close, check_operator

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SMALL = {"block_m": 16, "block_n": 16, "num_warps": 4, "num_stages": 1}
WIDE = SMALL | {"block_n": 32}
TALL = SMALL | {"block_m": 32}


def attention_by_definition(q, k, v, lengths, key_lengths, scale, *, causal=True, window=None):
    """One query of one head at a time: a softmax over the keys it sees; 0 if it sees none."""
    o, lse = torch.zeros_like(q), q.new_full(q.shape[:2], -math.inf)
    group = q.shape[1] // k.shape[1]
    first, first_key = 0, 0
    for n, m in zip(lengths, key_lengths, strict=True):
        for i in range(n):
            end = max(i + m - n + 1, 0) if causal else m
            begin = 0 if window is None else max(end - window, 0)
            seen = slice(first_key + begin, first_key + end)
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
    return q, k, v


def run(q, k, v, queries, keys=None, **options):
    more = (
        {} if keys is None else {"cu_seqlens_k": keys.cu_seqlens, "max_seqlen_k": keys.max_seqlen}
    )
    at = {"cu_seqlens": queries.cu_seqlens, "max_seqlen": queries.max_seqlen}
    return attention(q, k, v, return_lse=True, **at, **more, **options)


def launched(q, k, v, queries, keys, config, **options):
    """The kernel with small tiles, so that a short sequence crosses many of their edges."""
    at = {"queries": queries, "keys": keys, "scale": q.shape[-1] ** -0.5}
    o, lse = launch_forward(q, k, v, config=config, **at, **options)
    return o, lse.t()


def assert_all_close(found, exact):
    seen = exact[1].isfinite()
    assert torch.equal(found[1].isfinite(), seen)
    assert (found[1][~seen] == -math.inf).all()
    assert_kernel_close(found[0], exact[0])
    assert_kernel_close(found[1][seen], exact[1][seen])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 2}])
def test_reference_matches_its_definition_on_ragged_sequences(kv_heads, options):
    lengths = [3, 1, 6]
    q, k, v = draw(lengths, lengths, 4, kv_heads, 5, torch.float64)
    found = run(q, k, v, packed(lengths), scale=0.3, **options)
    expected = attention_by_definition(q, k, v, lengths, lengths, 0.3, **options)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("key_lengths", [[7, 5, 4], [1, 2, 4]])
@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 3}])
def test_reference_aligns_longer_and_shorter_keys_at_the_bottom_right(key_lengths, options):
    lengths = [3, 1, 4]
    q, k, v = draw(lengths, key_lengths, 2, 1, 4, torch.float64)
    found = run(q, k, v, packed(lengths), packed(key_lengths), **options)
    expected = attention_by_definition(q, k, v, lengths, key_lengths, 0.5, **options)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 2}])
@pytest.mark.parametrize("keys", [4, 6])
def test_reference_takes_a_dense_batch_of_any_strides(options, keys):
    q = torch.randn(2, 4, 4, 3, dtype=torch.float64).transpose(1, 2)
    k, v = torch.randn(2, 2, 1, keys, 3, dtype=torch.float64).transpose(2, 3)
    o, lse = attention(q, k, v, scale=0.5, return_lse=True, **options)
    flat = (x.flatten(0, 1) for x in (q, k, v))
    expected = attention_by_definition(*flat, [4, 4], [keys, keys], 0.5, **options)
    torch.testing.assert_close((o.flatten(0, 1), lse.flatten(0, 1)), expected)


def test_reference_gives_zeros_and_finite_gradients_to_queries_that_see_no_key():
    lengths, key_lengths = [4, 2], [1, 2]
    q, k, v = (x.requires_grad_() for x in draw(lengths, key_lengths, 1, 1, 4, torch.float64))
    o, _ = run(q, k, v, packed(lengths), packed(key_lengths))
    assert o[:3].abs().sum() == 0
    assert all(x.isfinite().all() for x in torch.autograd.grad(o.sum(), (q, k, v)))


def test_reference_needs_no_padding_for_equal_lengths_and_stands_loose_bounds():
    lengths = [4, 4]
    q, k, v = draw(lengths, lengths, 2, 2, 4, torch.float64)
    at = packed(lengths)
    tight = run(q, k, v, at)
    torch.testing.assert_close(run(q, k, v, at._replace(max_seqlen=9)), tight)


def test_reference_stands_empty_sequences():
    q, k, v = draw([3], [3], 1, 1, 4, torch.float64)
    cu_seqlens = torch.tensor([0, 0, 3, 3], dtype=torch.int32)
    expected = attention_by_definition(q, k, v, [0, 3, 0], [0, 3, 0], 0.5)
    torch.testing.assert_close(run(q, k, v, Packed(cu_seqlens, 3)), expected)


@pytest.mark.parametrize("key_lengths", [None, [3, 4]])
@pytest.mark.parametrize("options", [{}, {"window": 2}])
def test_reference_passes_gradcheck(key_lengths, options):
    lengths = [1, 4]
    q, k, v = draw(lengths, key_lengths or lengths, 2, 1, 3, torch.float64)
    at, keys = packed(lengths), None if key_lengths is None else packed(key_lengths)
    inputs = tuple(x.requires_grad_() for x in (q, k, v))
    assert torch.autograd.gradcheck(lambda *x: run(*x, at, keys, **options)[0], inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(2, 2, 16), (2, 1, 32), (4, 1, 64)])
def test_the_kernel_matches_the_reference_on_ragged_sequences(
    kernel_device, dtype, heads, kv_heads, dim
):
    lengths = [1, 33, 16]
    at = packed(lengths, kernel_device)
    q, k, v = draw(lengths, lengths, heads, kv_heads, dim, dtype, kernel_device)
    found = launched(q, k, v, at, at, SMALL)
    assert found[0].dtype == dtype
    assert_all_close(found, run(q.double(), k.double(), v.double(), at, impl="reference"))


@pytest.mark.parametrize("config", [WIDE, TALL])
@pytest.mark.parametrize("key_lengths", [[5, 50, 21], [3, 20, 40]])
@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 1}, {"window": 18}])
def test_the_kernel_aligns_longer_and_shorter_keys_as_the_reference(
    kernel_device, config, key_lengths, options
):
    lengths = [3, 33, 7]
    queries, keys = packed(lengths, kernel_device), packed(key_lengths, kernel_device)
    q, k, v = draw(lengths, key_lengths, 2, 1, 16, torch.float32, kernel_device)
    found = launched(q, k, v, queries, keys, config, **options)
    exact = run(q.double(), k.double(), v.double(), queries, keys, impl="reference", **options)
    assert_all_close(found, exact)


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 9}])
@pytest.mark.parametrize("key_length", [37, 50, 20])
def test_the_kernel_takes_dense_batches_of_any_strides(kernel_device, options, key_length):
    q = torch.randn(2, 2, 37, 16, device=kernel_device).transpose(1, 2)
    k, v = torch.randn(2, 2, 1, key_length, 16, device=kernel_device).transpose(2, 3)
    o, lse = launch_forward(q, k, v, queries=None, keys=None, scale=0.25, config=TALL, **options)
    exact = attention(
        q.double(), k.double(), v.double(), return_lse=True, impl="reference", **options
    )
    assert_all_close((o, lse.view(2, 2, 37).movedim(0, -1)), exact)


@pytest.mark.parametrize(("dim", "dtype"), [(16, torch.float32), (128, torch.bfloat16)])
def test_the_public_function_runs_the_kernel_with_its_table(kernel_device, dim, dtype):
    lengths = [20, 5]
    at = packed(lengths, kernel_device)
    q, k, v = draw(lengths, lengths, 2, 1, dim, dtype, kernel_device)
    exact = run(q.double(), k.double(), v.double(), at, impl="reference")
    assert_all_close(run(q, k, v, at, impl="triton"), exact)
    dense = (x[:20].unflatten(0, (2, 10)) for x in (q, k, v))
    exact = attention(*(x[:20].unflatten(0, (2, 10)).double() for x in (q, k, v)), return_lse=True)
    assert_all_close(attention(*dense, return_lse=True, impl="triton"), exact)


def test_slices_of_a_fused_projection_are_attended_in_place(kernel_device):
    at = packed([18, 2], kernel_device)
    fused = torch.randn(20, 4, 16, device=kernel_device)
    q, k, v = fused[:, :2], fused[:, 2:3], fused[:, 3:]
    found = launched(q, k, v, at, at, SMALL)
    assert_all_close(found, run(q.double(), k.double(), v.double(), at, impl="reference"))


def test_a_sequence_does_not_depend_on_its_neighbours(kernel_device):
    at, alone = packed([5, 19, 6], kernel_device), packed([19], kernel_device)
    q, k, v = draw([5, 19, 6], [5, 19, 6], 2, 1, 16, torch.float32, kernel_device)
    k[24:] = v[24:] = k[:5] = v[:5] = math.nan
    together = launched(q, k, v, at, at, SMALL)[0]
    apart = launched(q[5:24], k[5:24], v[5:24], alone, alone, SMALL)[0]
    assert torch.equal(together[5:24], apart)


def test_more_sequences_than_a_step_of_the_search_are_found(kernel_device):
    lengths = [1, 0, 2] * 45
    at = packed(lengths, kernel_device)
    q, k, v = draw(lengths, lengths, 1, 1, 16, torch.float32, kernel_device)
    found = launched(q, k, v, at, at, SMALL)
    assert_all_close(found, run(q.double(), k.double(), v.double(), at, impl="reference"))


def order_by_definition(lengths, key_lengths, block):
    """All tiles, sorted by how far along its keys each stands, then by sequence."""
    tiles = [
        (max(m - n, 0) // block + i, sequence, i)
        for sequence, (n, m) in enumerate(zip(lengths, key_lengths, strict=True))
        for i in range(-(-n // block))
    ]
    return [[sequence, i] for level, sequence, i in sorted(tiles, key=lambda t: (-t[0], t[1]))]


@pytest.mark.parametrize("key_lengths", [[5, 33, 0, 16, 64], [25, 33, 4, 90, 80]])
def test_tiles_are_ordered_longest_first(kernel_device, key_lengths):
    lengths = [5, 33, 0, 16, 64]
    queries, keys = packed(lengths, kernel_device), packed(key_lengths, kernel_device)
    q = torch.empty(sum(lengths), 1, 1, device=kernel_device)
    order = longest_first(q, queries, keys, 16)
    expected = order_by_definition(lengths, key_lengths, 16)
    assert order[-1] == len(expected)
    assert order[: 2 * len(expected)].view(-1, 2).tolist() == expected


def test_more_sequences_than_a_step_counts_are_ordered(kernel_device):
    lengths = [1, 0, 20] * 45
    at = packed(lengths, kernel_device)
    order = longest_first(torch.empty(sum(lengths), 1, 1, device=kernel_device), at, at, 16)
    expected = order_by_definition(lengths, lengths, 16)
    assert order[: 2 * len(expected)].view(-1, 2).tolist() == expected


@pytest.mark.parametrize("dense", [False, True])
def test_the_operator_keeps_its_word(kernel_device, dense):
    q, k, v = draw([20], [20], 2, 1, 16, torch.float32, kernel_device)
    at = packed([12, 8], kernel_device)
    where = (None, None, 20, 20) if dense else (*(at.cu_seqlens,) * 2, *(at.max_seqlen,) * 2)
    inputs = (x[None].clone() if dense else x for x in (q, k, v))
    inputs = [x.requires_grad_() for x in inputs]
    op = torch.ops.nanokernels.attention.default
    check_operator(op, *inputs, *where, 0.25, True, None)


def test_it_compiles_into_one_graph(kernel_device):
    at = packed([12, 8], kernel_device)
    inputs = [x.requires_grad_() for x in draw([20], [20], 2, 1, 16, torch.float32, kernel_device)]

    def step(q, k, v, impl):
        return run(q * 2, k, v, at, impl=impl)[0] * 2

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*inputs, "triton").sum(), inputs)
    expected = torch.autograd.grad(step(*inputs, "reference").sum(), inputs)
    torch.testing.assert_close(found, expected)


def test_nothing_gives_nothing_and_no_keys_give_zeros(kernel_device):
    x = torch.empty(0, 1, 16, device=kernel_device, requires_grad=True)
    none = torch.zeros(2, dtype=torch.int32, device=kernel_device)
    for impl in ("reference", "triton"):
        o, lse = run(x, x, x, Packed(none, 1), impl=impl)
        assert lse.shape == (0, 1)
        assert o.shape == torch.autograd.grad(o.sum(), x)[0].shape == (0, 1, 16)
    q = torch.ones(2, 1, 16, device=kernel_device)
    o, lse = run(q, x, x, packed([2], kernel_device), Packed(none, 0), impl="triton")
    assert o.abs().sum() == 0
    assert (lse == -math.inf).all()


def test_bad_arguments_are_errors_that_say_the_fix(kernel_device):
    x, at = torch.ones(4, 2, 16, device=kernel_device), packed([4], kernel_device)
    common = {"cu_seqlens": at.cu_seqlens, "max_seqlen": 4}
    with pytest.raises(ValueError, match="H=3 query heads do not divide among K=2"):
        attention(torch.ones(4, 3, 16, device=kernel_device), x, x, **common)
    with pytest.raises(ValueError, match=r"T=4 and Tk=3 differ; pass cu_seqlens_k"):
        attention(x, x[:3], x[:3], **common)
    with pytest.raises(ValueError, match=r"cu_seqlens=torch\.int64\(2,\) must be int32"):
        attention(x, x, x, cu_seqlens=at.cu_seqlens.long(), max_seqlen=4)
    with pytest.raises(ValueError, match="max_seqlen_k=None beside cu_seqlens_k"):
        attention(x, x, x, cu_seqlens_k=at.cu_seqlens, **common)
    with pytest.raises(ValueError, match=r"do not fit; pass \[B, S, H, D\].* without cu_seqlens"):
        attention(x, x, x)
    with pytest.raises(ValueError, match="max_seqlen=4 without cu_seqlens"):
        attention(x, x, x, max_seqlen=4)
    with pytest.raises(ValueError, match="window=0 with causal=True; pass 1 or more"):
        attention(x, x, x, window=0, **common)
    with pytest.raises(ValueError, match=r"scale=0\.0 must be above 0"):
        attention(x, x, x, scale=0.0, **common)
    odd = torch.ones(4, 1, 24, device=kernel_device)
    with pytest.raises(ValueError, match="D=24 has no Triton kernel"):
        attention(odd, odd, odd, impl="triton", **common)


RAGGED = [1, 17, 1000, 2048, 300]
REAL = [
    ([4096], 16, 8, 128, torch.bfloat16, {}),
    (RAGGED, 16, 8, 128, torch.bfloat16, {}),
    (RAGGED, 16, 8, 128, torch.bfloat16, {"causal": False}),
    (RAGGED, 16, 8, 128, torch.bfloat16, {"window": 100}),
    ([511, 64, 1025], 4, 4, 64, torch.float16, {}),
    ([200, 333], 8, 2, 32, torch.bfloat16, {"window": 100}),
    ([129, 300], 4, 2, 256, torch.bfloat16, {}),
    ([200, 333], 4, 2, 128, torch.float32, {}),
    ([25] * 130, 4, 2, 16, torch.bfloat16, {}),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("lengths", "heads", "kv_heads", "dim", "dtype", "options"), REAL)
def test_the_kernels_match_the_reference_at_real_shapes(
    lengths, heads, kv_heads, dim, dtype, options
):
    at = packed(lengths, "cuda")
    q, k, v = draw(lengths, lengths, heads, kv_heads, dim, dtype, "cuda")
    found = run(q, k, v, at, impl="triton", **options)
    exact = run(q.double(), k.double(), v.double(), at, impl="reference", **options)
    assert_all_close(found, exact)
    again = run(q, k, v, at, impl="triton", **options)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("key_lengths", [[900, 1154, 512, 40], [1, 30, 512, 3]])
def test_the_kernels_match_the_reference_over_longer_and_shorter_keys(key_lengths):
    lengths = [1, 130, 512, 7]
    queries, keys = packed(lengths, "cuda"), packed(key_lengths, "cuda")
    q, k, v = draw(lengths, key_lengths, 16, 8, 128, torch.bfloat16, "cuda")
    found = run(q, k, v, queries, keys, impl="triton")
    exact = run(q.double(), k.double(), v.double(), queries, keys, impl="reference")
    assert_all_close(found, exact)


@pytest.mark.gpu
def test_the_kernels_take_dense_batches_of_any_strides_at_real_shapes():
    q, k, v = (
        torch.randn(3, heads, 300, 128, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        for heads in (16, 8, 8)
    )
    found = attention(q, k, v, return_lse=True)
    exact = attention(*(x.double() for x in (q, k, v)), return_lse=True, impl="reference")
    assert_all_close(found, exact)


@pytest.mark.gpu
def test_a_sequence_does_not_depend_on_its_neighbours_at_real_shapes():
    at, alone = packed([300, 700, 129], "cuda"), packed([700], "cuda")
    q, k, v = draw([1129], [1129], 16, 8, 128, torch.bfloat16, "cuda")
    k[1000:] = v[1000:] = k[:300] = v[:300] = math.nan
    mine = (x[300:1000] for x in (q, k, v))
    assert torch.equal(run(q, k, v, at)[0][300:1000], run(*mine, alone)[0])


@pytest.mark.gpu
def test_offsets_past_31_bits_are_reached():
    fused = torch.empty(70_000, 256, 128, dtype=torch.bfloat16, device="cuda")
    last = fused[-1000:].normal_()
    heads = (slice(16), slice(16, 24), slice(24, 32))
    ends = torch.tensor([0, 69_000, 70_000], dtype=torch.int32, device="cuda")
    found = run(*(fused[:, s] for s in heads), Packed(ends, 69_000), impl="triton")[0][-1000:]
    alone = (last[:, s].double() for s in heads)
    assert_kernel_close(found, run(*alone, packed([1000], "cuda"), impl="reference")[0])


@pytest.mark.gpu
def test_gradients_past_31_bits_are_reached():
    fused = torch.empty(70_000, 256, 128, dtype=torch.bfloat16, device="cuda")
    fused[-1000:].normal_()
    fused[:-1000].zero_()
    lengths = [1000] * 70
    parts = [fused[:, s] for s in (slice(16), slice(16, 24), slice(24, 32), slice(32, 48))]
    q, k, v = (x.detach().requires_grad_() for x in parts[:3])
    found = torch.autograd.grad(run(q, k, v, packed(lengths, "cuda"))[0], (q, k, v), parts[3])
    q, k, v = (x[-1000:].detach().double().requires_grad_() for x in parts[:3])
    o = run(q, k, v, packed([1000], "cuda"), impl="reference")[0]
    expected = torch.autograd.grad(o, (q, k, v), parts[3][-1000:].double())
    for grad, exact in zip(found, expected, strict=True):
        assert_kernel_close(grad[-1000:], exact, grad=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dense", [False, True])
def test_a_cuda_graph_holds_it(dense):
    at = packed([300, 212], "cuda")
    where = {} if dense else {"cu_seqlens": at.cu_seqlens, "max_seqlen": 300}
    inputs = [torch.randn(512, h, 128, device="cuda", dtype=torch.bfloat16) for h in (16, 8, 8)]
    inputs = [x[None] if dense else x for x in inputs]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        attention(*inputs, **where)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        o = attention(*inputs, **where)
    for x in inputs:
        x.normal_()
    graph.replay()
    torch.testing.assert_close(o, attention(*inputs, **where), rtol=0, atol=0)
