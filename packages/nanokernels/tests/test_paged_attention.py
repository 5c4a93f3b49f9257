import pytest
import torch

from nanorlhf.nanokernels import attention, gather_kv, paged_attention, store_kv
from nanorlhf.nanokernels.attention.paged import Config, _launch
from nanorlhf.nanokernels.testing import assert_kernel_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SMALL = Config(split=32, block=16, num_warps=4, num_stages=1)


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
    found = _launch(q, cache.k_pages, cache.v_pages, *cache.where(), scale=dim**-0.5, config=SMALL)
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
        return _launch(q[rows], *pages, table, lens, scale=0.25, config=SMALL)

    together = run(slice(0, 3), 3)
    assert torch.equal(together[1:2], run(slice(1, 2), 3))
    assert torch.equal(together[1:2], run(slice(1, 2), 2)), "one split, so no second pass"


def test_bad_shapes_are_errors_that_say_the_fix():
    cache, q = Cache([3], 2, 8, 16, torch.float32), torch.ones(1, 2, 8)
    pages = cache.k_pages, cache.v_pages
    with pytest.raises(ValueError, match=r"seq_lens=torch\.int64\(1,\) does not match B=1"):
        paged_attention(q, *pages, cache.page_table, cache.seq_lens.long())
    with pytest.raises(ValueError, match="page_size=8 must be at least 16"):
        paged_attention(q, *(x[:, :, :8].contiguous() for x in pages), *cache.where())
    with pytest.raises(ValueError, match=r"q_BHD=\(1, 3, 8\) does not fit"):
        paged_attention(torch.ones(1, 3, 8), *pages, *cache.where())
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
