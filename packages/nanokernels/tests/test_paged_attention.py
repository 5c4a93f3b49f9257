import pytest
import torch

from nanorlhf.nanokernels import attention, gather_kv, paged_attention, store_kv
from nanorlhf.nanokernels.attention import paged
from nanorlhf.nanokernels.attention.paged import _launch
from nanorlhf.nanokernels.testing import assert_kernel_close, check_operator

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SMALL = {"split": 32, "block": 16, "num_warps": 4, "num_stages": 1, "chunk": 2, "combine_warps": 1}


class Cache:
    """A cache of ragged sequences on shuffled pages, filled by the reference."""

    def __init__(self, seq_lens, kv_heads, dim, page_size, dtype, device="cpu"):
        self.seq_lens = torch.tensor(seq_lens, dtype=torch.int32, device=device)
        width = max(-(-max(seq_lens) // page_size), 1) + 1
        pages = torch.randperm(len(seq_lens) * width, device=device)
        self.page_table = pages.view(len(seq_lens), width).to(torch.int32)
        shape = (len(pages), kv_heads, page_size, dim)
        self.k_pages = torch.zeros(shape, dtype=dtype, device=device)
        self.v_pages = torch.zeros(shape, dtype=dtype, device=device)
        self.total = sum(seq_lens)
        self.k = torch.randn(self.total, kv_heads, dim, device=device).to(dtype)
        self.v = torch.randn(self.total, kv_heads, dim, device=device).to(dtype)
        slots = [
            int(self.page_table[row, i // page_size]) * page_size + i % page_size
            for row, length in enumerate(seq_lens)
            for i in range(length)
        ]
        self.slots = torch.tensor(slots, device=device)
        store_kv(self.k, self.v, self.k_pages, self.v_pages, self.slots, impl="reference")

    def where(self):
        return self.page_table, self.seq_lens


def decode_by_definition(q, cache, scale):
    """Packed attention of one query a sequence, over the keys as they were stored."""
    o = torch.zeros_like(q, dtype=torch.float64)
    group, first = q.shape[1] // cache.k.shape[1], 0
    for row, length in enumerate(cache.seq_lens.tolist()):
        keys = slice(first, first + length)
        for h in range(q.shape[1] if length else 0):
            k, v = (x[keys, h // group].double() for x in (cache.k, cache.v))
            o[row, h] = (k @ q[row, h].double() * scale).softmax(0) @ v
        first += length
    return o


def test_a_slot_is_a_page_and_an_offset():
    k = torch.randn(3, 2, 4)
    k_pages, v_pages = torch.zeros(2, 3, 2, 16, 4).unbind()
    store_kv(k, 2 * k, k_pages, v_pages, torch.tensor([17, -1, 40]))
    expected = torch.zeros(3, 2, 16, 4)
    expected[1, :, 1], expected[2, :, 8] = k[0], k[2]
    torch.testing.assert_close(k_pages, expected)
    torch.testing.assert_close(v_pages, 2 * expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_store_kernel_writes_what_the_reference_writes(kernel_device, dtype):
    fused = torch.randn(5, 6, 24, device=kernel_device).to(dtype)
    k, v = fused[:, :3], fused[:, 3:]
    slots = torch.tensor([33, -1, 0, 70, 15], device=kernel_device)
    found = torch.zeros(2, 4, 3, 20, 24, device=kernel_device, dtype=dtype)
    expected = torch.zeros_like(found)
    store_kv(k, v, found[0], found[1], slots, impl="triton")
    store_kv(k, v, expected[0], expected[1], slots, impl="reference")
    assert torch.equal(found, expected)


def test_gathering_returns_what_was_stored():
    cache = Cache([3, 0, 40, 1], 2, 4, 16, torch.float32)
    packed = gather_kv(cache.k_pages, cache.v_pages, *cache.where(), total=cache.total)
    assert torch.equal(packed.k_SKD, cache.k)
    assert torch.equal(packed.v_SKD, cache.v)


@pytest.mark.parametrize("page_size", [16, 19])
def test_reference_matches_its_definition(page_size):
    cache = Cache([1, 0, 35, 16], 2, 8, page_size, torch.float64)
    q = torch.randn(4, 6, 8, dtype=torch.float64)
    o = paged_attention(q, cache.k_pages, cache.v_pages, *cache.where(), scale=0.4)
    torch.testing.assert_close(o, decode_by_definition(q, cache, 0.4))


def test_decoding_equals_the_last_row_of_a_prefill():
    lengths = [5, 33]
    cache = Cache(lengths, 2, 16, 16, torch.float32)
    cu_seqlens = torch.tensor([0, 5, 38], dtype=torch.int32)
    q = torch.randn(38, 4, 16)
    prefill = attention(q, cache.k, cache.v, cu_seqlens=cu_seqlens, max_seqlen=33)
    decode = paged_attention(q[[4, 37]], cache.k_pages, cache.v_pages, *cache.where())
    torch.testing.assert_close(decode, prefill[[4, 37]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "page_size"), [(2, 2, 16, 16), (4, 1, 32, 24), (2, 1, 64, 17)]
)
def test_kernel_matches_the_definition(kernel_device, dtype, heads, kv_heads, dim, page_size):
    cache = Cache([1, 0, 32, 75], kv_heads, dim, page_size, dtype, kernel_device)
    q = torch.randn(4, heads, dim, device=kernel_device).to(dtype)
    found = _launch(q, cache.k_pages, cache.v_pages, *cache.where(), dim**-0.5, SMALL)
    assert found.dtype == dtype
    assert_kernel_close(found, decode_by_definition(q, cache, dim**-0.5))


def test_the_public_function_runs_the_kernel_with_its_table(kernel_device):
    cache = Cache([3, 700], 1, 128, 64, torch.bfloat16, kernel_device)
    q = torch.randn(2, 2, 128, device=kernel_device).to(torch.bfloat16)
    found = paged_attention(q, cache.k_pages, cache.v_pages, *cache.where(), impl="triton")
    assert_kernel_close(found, decode_by_definition(q, cache, 128**-0.5))


def test_a_row_depends_on_neither_its_batch_nor_the_width_of_the_table(kernel_device):
    cache = Cache([9, 30, 20], 1, 16, 16, torch.float32, kernel_device)
    q = torch.randn(3, 2, 16, device=kernel_device)

    def run(rows, width):
        table = cache.page_table[rows, :width].contiguous()
        pages = cache.k_pages, cache.v_pages
        lens = cache.seq_lens[rows]
        return _launch(q[rows], *pages, table, lens, 0.25, SMALL)

    together = run(slice(0, 3), 3)
    assert torch.equal(together[1:2], run(slice(1, 2), 3))
    assert torch.equal(together[1:2], run(slice(1, 2), 2)), "one split, so no second pass"


def prefill_by_definition(q, cache, cu_seqlens, scale):
    """Each sequence's last tokens over the keys up to their own, one query at a time."""
    o = torch.zeros_like(q, dtype=torch.float64)
    group, first = q.shape[1] // cache.k.shape[1], 0
    for row, length in enumerate(cache.seq_lens.tolist()):
        start, end = cu_seqlens[row : row + 2].tolist()
        for i in range(start, end):
            seen = slice(first, first + max(length - (end - 1 - i), 0))
            for h in range(q.shape[1] if seen.stop > first else 0):
                k, v = (x[seen, h // group].double() for x in (cache.k, cache.v))
                o[i, h] = (k @ q[i, h].double() * scale).softmax(0) @ v
        first += length
    return o


def prefill(cache, counts, heads, dtype, **options):
    """Queries of ``counts`` tokens a sequence, and what attention makes of them."""
    device, dim = cache.k.device, cache.k.shape[2]
    ends = torch.tensor([0, *counts], device=device).cumsum(0).to(torch.int32)
    q = torch.randn(sum(counts), heads, dim, device=device).to(dtype)
    rows = {"cu_seqlens": ends, "max_seqlen": max(counts)}
    pages = cache.k_pages, cache.v_pages
    return q, ends, paged_attention(q, *pages, *cache.where(), **rows, **options)


@pytest.mark.parametrize("page_size", [16, 19])
def test_reference_of_a_prefill_matches_its_definition(page_size):
    cache = Cache([1, 0, 35, 16, 4], 2, 8, page_size, torch.float64)
    q, ends, o = prefill(cache, [1, 0, 20, 16, 6], 6, torch.float64, scale=0.4)
    torch.testing.assert_close(o, prefill_by_definition(q, cache, ends, 0.4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "page_size"), [(2, 2, 16, 32), (4, 1, 24, 16), (2, 1, 64, 64)]
)
def test_the_prefill_kernel_matches_the_definition(
    kernel_device, dtype, heads, kv_heads, dim, page_size
):
    cache = Cache([70, 0, 33, 130, 3], kv_heads, dim, page_size, dtype, kernel_device)
    q, ends, o = prefill(cache, [5, 0, 33, 40, 4], heads, dtype, impl="triton")
    assert o.dtype == dtype
    assert_kernel_close(o, prefill_by_definition(q, cache, ends, dim**-0.5))


def test_a_prefill_in_chunks_is_the_prefill_as_a_whole(kernel_device):
    cache = Cache([90], 1, 16, 32, torch.float32, kernel_device)
    q, _, whole = prefill(cache, [90], 2, torch.float32, impl="triton")
    pages = cache.k_pages, cache.v_pages
    for first, end in ((0, 7), (7, 64), (64, 90)):
        ends, lens = (
            torch.tensor(x, dtype=torch.int32, device=kernel_device)
            for x in ([0, end - first], [end])
        )
        rows = {"cu_seqlens": ends, "max_seqlen": end - first, "impl": "triton"}
        chunk = paged_attention(q[first:end], *pages, cache.page_table, lens, **rows)
        torch.testing.assert_close(chunk, whole[first:end], rtol=1e-6, atol=1e-6)


def test_keys_behind_the_end_of_a_sequence_change_nothing(kernel_device):
    cache = Cache([20, 40], 1, 16, 32, torch.float32, kernel_device)
    q, ends, expected = prefill(cache, [2, 9], 2, torch.float32, impl="triton")
    decoded = paged_attention(q[:2], cache.k_pages, cache.v_pages, *cache.where(), impl="triton")
    for pages in (cache.k_pages, cache.v_pages):
        unused = torch.ones(pages.shape[0] * pages.shape[2], dtype=torch.bool, device=pages.device)
        unused[cache.slots] = False
        pages.masked_fill_(unused.view(pages.shape[0], 1, -1, 1), torch.nan)
    rows = {"cu_seqlens": ends, "max_seqlen": 9, "impl": "triton"}
    found = paged_attention(q, cache.k_pages, cache.v_pages, *cache.where(), **rows)
    assert torch.equal(found, expected)
    found = paged_attention(q[:2], cache.k_pages, cache.v_pages, *cache.where(), impl="triton")
    assert torch.equal(found, decoded)


@pytest.mark.parametrize(("dim", "dtype"), [(20, torch.bfloat16), (80, torch.float32)])
def test_head_dims_between_powers_of_two_are_padded(kernel_device, dim, dtype):
    cache = Cache([40, 3], 1, dim, 16, dtype, kernel_device)
    q, ends, o = prefill(cache, [2, 1], 2, dtype, impl="triton")
    assert_kernel_close(o, prefill_by_definition(q, cache, ends, dim**-0.5))
    q = torch.randn(2, 4, dim, device=kernel_device).to(dtype)
    o = paged_attention(q, cache.k_pages, cache.v_pages, *cache.where(), impl="triton")
    assert_kernel_close(o, decode_by_definition(q, cache, dim**-0.5))


def test_splits_grow_where_there_would_be_too_many(kernel_device, monkeypatch):
    monkeypatch.setattr(paged, "MAX_SPLITS", 2)
    cache = Cache([150, 60, 0], 1, 16, 16, torch.float32, kernel_device)
    q = torch.randn(3, 2, 16, device=kernel_device)
    found = _launch(q, cache.k_pages, cache.v_pages, *cache.where(), 0.25, SMALL)
    assert_kernel_close(found, decode_by_definition(q, cache, 0.25))


def test_programs_stride_over_the_splits_of_a_wide_table(kernel_device, monkeypatch):
    cache = Cache([300, 9], 1, 16, 16, torch.float32, kernel_device)
    q = torch.randn(2, 2, 16, device=kernel_device)
    monkeypatch.setattr(paged, "MIN_PROGRAMS", 1)
    found = _launch(q, cache.k_pages, cache.v_pages, *cache.where(), 0.25, SMALL)
    assert_kernel_close(found, decode_by_definition(q, cache, 0.25))


def test_the_operators_keep_their_word(kernel_device):
    cache = Cache([20, 7], 1, 16, 16, torch.float32, kernel_device)
    q = torch.randn(2, 2, 16, device=kernel_device)
    arguments = (q, cache.k_pages, cache.v_pages, *cache.where())
    check_operator(torch.ops.nanokernels.paged_decode.default, *arguments, 0.25)
    ends = torch.tensor([0, 1, 2], dtype=torch.int32, device=kernel_device)
    check_operator(torch.ops.nanokernels.paged_prefill.default, *arguments, ends, 1, 0.25)


def test_decoding_compiles_into_one_graph(kernel_device):
    cache = Cache([20, 7], 1, 16, 16, torch.float32, kernel_device)
    q = torch.randn(2, 2, 16, device=kernel_device)

    def run(q):
        return paged_attention(q * 2, cache.k_pages, cache.v_pages, *cache.where(), impl="triton")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q), run(q))


def test_bad_shapes_are_errors_that_say_the_fix():
    cache, q = Cache([3], 2, 8, 16, torch.float32), torch.ones(1, 2, 8)
    pages = cache.k_pages, cache.v_pages
    with pytest.raises(ValueError, match=r"seq_lens=torch\.int64\(1,\) does not match B=1"):
        paged_attention(q, *pages, cache.page_table, cache.seq_lens.long())
    with pytest.raises(ValueError, match="page_size=8 must be at least 16"):
        paged_attention(q, *(x[:, :, :8].contiguous() for x in pages), *cache.where())
    with pytest.raises(ValueError, match=r"q_BHD=\(1, 3, 8\) does not fit"):
        paged_attention(torch.ones(1, 3, 8), *pages, *cache.where())
    with pytest.raises(ValueError, match="cu_seqlens and max_seqlen go together"):
        paged_attention(q, *pages, *cache.where(), max_seqlen=1)
    with pytest.raises(ValueError, match=r"scale=-1\.0 must be above 0"):
        paged_attention(q, *pages, *cache.where(), scale=-1.0)
    ends = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"cu_seqlens=torch\.int64\(2,\) does not match B=1"):
        paged_attention(q, *pages, *cache.where(), cu_seqlens=ends, max_seqlen=1)
    with pytest.raises(ValueError, match="must be contiguous"):
        paged_attention(q, *(x.transpose(0, 1)[:, :2] for x in pages), *cache.where())
    with pytest.raises(ValueError, match=r"slots=torch\.int32\(3,\) does not match T=3"):
        store_kv(cache.k, cache.v, *pages, cache.slots.int())
    with pytest.raises(ValueError, match=r"k is torch\.float16, the cache torch\.float32"):
        store_kv(cache.k.half(), cache.v.half(), *pages, cache.slots)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [16, 128])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(16, 8, 128), (8, 1, 64), (4, 2, 16)])
def test_kernel_matches_the_definition_at_real_shapes(heads, kv_heads, dim, page_size, dtype):
    lengths = [1, 700, 0, 2048, 511, 512, 513]
    cache = Cache(lengths, kv_heads, dim, page_size, dtype, "cuda")
    q = torch.randn(len(lengths), heads, dim, device="cuda").to(dtype)
    found = paged_attention(q, cache.k_pages, cache.v_pages, *cache.where())
    assert_kernel_close(found, decode_by_definition(q, cache, dim**-0.5))
    pages = torch.zeros_like(cache.k_pages), torch.zeros_like(cache.v_pages)
    store_kv(cache.k, cache.v, *pages, cache.slots)
    assert torch.equal(pages[0], cache.k_pages)
    assert torch.equal(pages[1], cache.v_pages)


@pytest.mark.gpu
def test_decoding_replays_in_a_cuda_graph():
    cache = Cache([100, 600], 8, 128, 16, torch.bfloat16, "cuda")
    q = torch.randn(2, 16, 128, device="cuda").to(torch.bfloat16)
    arguments = (q, cache.k_pages, cache.v_pages, *cache.where())
    expected = paged_attention(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = paged_attention(*arguments)
    found.zero_()
    graph.replay()
    assert torch.equal(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("page_size", [16, 128])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(16, 8, 128), (4, 1, 64), (4, 2, 256)])
def test_the_prefill_kernel_matches_at_real_shapes(heads, kv_heads, dim, page_size):
    lengths, counts = [700, 0, 1300, 64], [300, 0, 1300, 1]
    cache = Cache(lengths, kv_heads, dim, page_size, torch.bfloat16, "cuda")
    q, ends, o = prefill(cache, counts, heads, torch.bfloat16)
    arguments = (x.double() for x in (q, cache.k_pages, cache.v_pages))
    rows = {"cu_seqlens": ends, "max_seqlen": 1300, "impl": "reference"}
    assert_kernel_close(o, paged_attention(*arguments, *cache.where(), **rows))
    pages = cache.k_pages, cache.v_pages
    for start, end in ((0, 77), (400, 900), (431, 1300)):
        lens = torch.tensor([end], dtype=torch.int32, device="cuda")
        ends = torch.tensor([0, end - start], dtype=torch.int32, device="cuda")
        chunk = paged_attention(
            q[300 + start : 300 + end], *pages, cache.page_table[2:3], lens,
            cu_seqlens=ends, max_seqlen=end - start,
        )  # fmt: skip
        whole = o[300 + start : 300 + end]
        assert torch.equal(chunk, whole), "a chunk of a prompt has the bits of the whole"


@pytest.mark.gpu
def test_pages_past_2_to_the_31_entries_are_reached():
    cache = Cache([700, 64, 1300], 8, 128, 128, torch.bfloat16, "cuda")
    many, few = 17_000, len(cache.k_pages)
    far = torch.zeros(2, many, 8, 128, 128, dtype=torch.bfloat16, device="cuda").unbind()
    store_kv(cache.k, cache.v, *far, cache.slots + (many - few) * 128)
    near = cache.k_pages, cache.v_pages
    assert all(torch.equal(a[-few:], b) for a, b in zip(far, near, strict=True))
    table, lens = cache.page_table + (many - few), cache.seq_lens
    q = torch.randn(3, 16, 128, device="cuda").to(torch.bfloat16)
    found = paged_attention(q, *far, table, lens)
    assert torch.equal(found, paged_attention(q, *near, *cache.where()))
    q, ends, expected = prefill(cache, [300, 64, 1000], 16, torch.bfloat16)
    found = paged_attention(q, *far, table, lens, cu_seqlens=ends, max_seqlen=1000)
    assert torch.equal(found, expected)


@pytest.mark.gpu
def test_a_row_has_the_same_bits_alone_and_under_a_wide_table():
    cache = Cache([700, 3000, 17, 20_000], 8, 128, 128, torch.bfloat16, "cuda")
    q = torch.randn(4, 16, 128, device="cuda").to(torch.bfloat16)
    pages = cache.k_pages, cache.v_pages
    together = paged_attention(q, *pages, *cache.where())
    wide = torch.nn.functional.pad(cache.page_table, (0, 512))
    assert torch.equal(paged_attention(q, *pages, wide, cache.seq_lens), together)
    for row in range(4):
        width = -(-int(cache.seq_lens[row]) // 128)
        table, lens = cache.page_table[row : row + 1, :width], cache.seq_lens[row : row + 1]
        alone = paged_attention(q[row : row + 1], *pages, table, lens)
        assert torch.equal(alone, together[row : row + 1])
