import pytest
import torch

from nanorlhf.nanokernels.attention.backward import launch_backward
from nanorlhf.nanokernels.attention.forward import launch_forward
from nanorlhf.nanokernels.attention.packed import Packed
from nanorlhf.nanokernels.configs import table
from nanorlhf.nanokernels.testing import GRAD_LIMITS, assert_kernel_close, relative_error

# Autograd's own thread may be the first to call cuBLAS, for the definition, and PyTorch says so.
pytestmark = pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS, but there was no current")

CONFIGS = {
    "square": ((16, 16), (16, 16)),
    "wide": ((16, 32), (16, 32)),
    "tall": ((32, 16), (32, 16)),
    "halved": ((32, 16), (16, 32)),
}
"""Queries and keys of a tile in the first pass, and in the second."""
MASKS = {
    "causal": {},
    "full": {"causal": False},
    "window": {"window": 5},
}


def configs(name):
    return {
        f"{side}_config": {"block_m": m, "block_n": n, "num_warps": 4, "num_stages": 1}
        for side, (m, n) in zip(("dq", "dkdv"), CONFIGS[name], strict=True)
    }


def one_sequence(q, k, v, scale, causal, window):
    """Scores written out: o, and the log-sum-exp of each row, -inf where a query sees no key."""
    n, m, group = len(q), len(k), q.shape[1] // k.shape[1]
    last = torch.arange(n, device=q.device)[:, None] + m - n
    key = torch.arange(m, device=q.device)[None, :]
    seen = key <= last if causal else torch.ones(n, m, dtype=torch.bool, device=q.device)
    if window is not None:
        seen = seen & (key > last - window)
    k, v = (x.repeat_interleave(group, dim=1).transpose(0, 1) for x in (k, v))
    s = (q.transpose(0, 1) @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
    blind = ~seen.any(1)
    p = s.masked_fill(blind[:, None], 0.0).softmax(-1).masked_fill(blind[:, None], 0.0)
    return (p @ v).transpose(0, 1), s.logsumexp(-1)


def by_definition(q, k, v, do, lengths, key_lengths, *, causal=True, window=None):
    """Output, log-sum-exp and gradients by autograd in float64, a sequence at a time."""
    inputs = [x.detach().double().requires_grad_() for x in (q, k, v)]
    parts = zip(
        inputs[0].split(lengths),
        inputs[1].split(key_lengths),
        inputs[2].split(key_lengths),
        strict=True,
    )
    done = [one_sequence(*part, q.shape[-1] ** -0.5, causal, window) for part in parts]
    o, lse = torch.cat([x[0] for x in done]), torch.cat([x[1] for x in done], dim=1)
    return o.detach(), lse.detach(), torch.autograd.grad(o, inputs, do.double())


def draw(lengths, key_lengths, heads, kv_heads, dim, dtype, device):
    q, do = torch.randn(2, sum(lengths), heads, dim, device=device).to(dtype)
    k, v = torch.randn(2, sum(key_lengths), kv_heads, dim, device=device).to(dtype)
    return q, k, v, do


def packed(lengths, device):
    ends = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    return Packed(ends, max(lengths))


def found(q, k, v, do, saved, lengths, key_lengths, **options):
    """The gradients by the kernels, from the exact output and log-sum-exp."""
    o, lse = saved[0].to(q.dtype), saved[1].float().contiguous()
    at = {"queries": packed(lengths, q.device), "keys": packed(key_lengths, q.device)}
    return launch_backward(q, k, v, o, lse, do, **at, scale=q.shape[-1] ** -0.5, **options)


def check(shape, dtype, device, mask, **options):
    lengths, key_lengths, *_ = shape
    q, k, v, do = draw(*shape, dtype, device)
    *saved, expected = by_definition(q, k, v, do, lengths, key_lengths, **MASKS[mask])
    grads = found(q, k, v, do, saved, lengths, key_lengths, **MASKS[mask], **options)
    for grad, exact in zip(grads, expected, strict=True):
        assert_kernel_close(grad, exact, grad=True)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("tiles", CONFIGS)
def test_the_gradients_match_their_definition_on_ragged_sequences(kernel_device, tiles, mask):
    lengths = [20, 1, 7, 16, 33]
    shape = (lengths, lengths, 2, 1, 16)
    check(shape, torch.float32, kernel_device, mask, **configs(tiles))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("key_lengths", [[27, 5, 40], [9, 5, 2]])
def test_the_mask_is_aligned_at_the_last_key(kernel_device, key_lengths, mask):
    shape = ([20, 3, 17], key_lengths, 2, 2, 16)
    check(shape, torch.float32, kernel_device, mask, **configs("halved"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tiles", CONFIGS)
def test_a_window_wider_than_a_tile_cuts_where_it_ends(kernel_device, tiles, dtype):
    inputs = draw([85], [85], 2, 1, 16, dtype, kernel_device)
    *saved, expected = by_definition(*inputs, [85], [85], window=40)
    grads = found(*inputs, saved, [85], [85], window=40, **configs(tiles))
    for grad, exact in zip(grads, expected, strict=True):
        assert_kernel_close(grad, exact, grad=True)


@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8])
def test_the_gradients_of_shared_kv_heads_are_summed(kernel_device, kv_heads):
    shape = ([19], [19], 8, kv_heads, 16)
    check(shape, torch.float32, kernel_device, "causal", **configs("square"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_limits(kernel_device, dtype):
    shape = ([37, 20], [37, 20], 2, 1, 32)
    check(shape, dtype, kernel_device, "causal", **configs("wide"))


@pytest.mark.parametrize("mask", MASKS)
def test_a_dense_batch_is_as_many_sequences_of_one_length(kernel_device, mask):
    lengths, key_lengths = [21] * 3, [27] * 3
    q, k, v, do = draw(lengths, key_lengths, 2, 1, 16, torch.float32, kernel_device)
    *saved, expected = by_definition(q, k, v, do, lengths, key_lengths, **MASKS[mask])
    o, lse = saved[0].float(), saved[1].float().contiguous()
    batch = (x.unflatten(0, (3, -1)) for x in (q, k, v, o))
    at = {"queries": None, "keys": None, "scale": 0.25}
    grads = launch_backward(
        *batch, lse, do.unflatten(0, (3, -1)), **at, **MASKS[mask], **configs("halved")
    )
    for grad, exact in zip(grads, expected, strict=True):
        assert_kernel_close(grad.flatten(0, 1), exact, grad=True)


def test_strided_rows_are_read_where_they_are(kernel_device):
    lengths = [20, 13]
    fused = torch.randn(33, 4, 16, device=kernel_device)
    q, k, v = fused[:, :2], fused[:, 2:3], fused[:, 3:]
    do = torch.randn(33, 3, 16, device=kernel_device)[:, 1:]
    *saved, expected = by_definition(q, k, v, do, lengths, lengths)
    grads = found(q, k, v, do, saved, lengths, lengths, **configs("square"))
    for grad, exact in zip(grads, expected, strict=True):
        assert_kernel_close(grad, exact, grad=True)


def test_a_sequence_stands_nan_in_its_neighbours(kernel_device):
    lengths = [18, 21, 18]
    q, k, v, do = draw(lengths, lengths, 2, 1, 16, torch.float32, kernel_device)
    o, lse, expected = by_definition(q, k, v, do, lengths, lengths)
    for x in (q, k, v, do, o):
        x[:18] = torch.nan
        x[39:] = torch.nan
    lse[:, :18] = torch.nan
    lse[:, 39:] = torch.nan
    grads = found(q, k, v, do, (o, lse), lengths, lengths, **configs("halved"))
    for grad, exact in zip(grads, expected, strict=True):
        assert_kernel_close(grad[18:39], exact[18:39], grad=True)


def test_empty_sequences_lie_between_others(kernel_device):
    shape = ([0, 17, 0, 0, 5, 0], [3, 17, 0, 4, 5, 0], 2, 1, 16)
    check(shape, torch.float32, kernel_device, "causal", **configs("square"))


def test_more_sequences_than_a_step_of_the_search_are_found(kernel_device):
    lengths = [2, *[0] * 127, 3, 1]
    shape = (lengths, lengths, 1, 1, 16)
    check(shape, torch.float32, kernel_device, "causal", **configs("square"))


def draw_low(lengths, dim, dtype, device):
    """Inputs with scores of about -128: beside them the exponential of a zero is infinite."""
    q, k, v, do = draw(lengths, lengths, 2, 1, dim, dtype, device)
    q[..., 0], k[..., 0] = 32, -4 * dim**0.5
    return q, k, v, do


def check_low(lengths, dim, dtype, device, limit, **options):
    inputs = draw_low(lengths, dim, dtype, device)
    *saved, expected = by_definition(*inputs, lengths, lengths, causal=False)
    assert float(saved[1].max()) < -100
    grads = found(*inputs, saved, lengths, lengths, causal=False, **options)
    # The first number of dq is a sum of zeros to within the rounding of ds, times a large one.
    for grad, exact in zip(grads, expected, strict=True):
        assert relative_error(grad[..., 1:], exact[..., 1:]) < limit


# Infinity is what the mask takes out, in dq, or what a row of no key of dk and dv keeps to itself.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")
@pytest.mark.filterwarnings("ignore:invalid value encountered in")
def test_zeros_past_the_end_of_a_tile_weigh_nothing_where_scores_are_low(kernel_device):
    # Scores this large keep seven bits fewer behind the point.
    check_low([20, 7], 16, torch.float32, kernel_device, 1e-4, **configs("halved"))


def test_no_keys_give_zero_gradients(kernel_device):
    q = torch.randn(4, 2, 16, device=kernel_device)
    none = torch.empty(0, 1, 16, device=kernel_device)
    lse = torch.full((2, 4), -torch.inf, device=kernel_device)
    at = {"queries": packed([4], q.device), "keys": packed([0], q.device), "scale": 1.0}
    grads = launch_backward(q, none, none, torch.zeros_like(q), lse, q, **at)
    assert torch.equal(grads.q, torch.zeros_like(q))
    assert grads.k.shape == none.shape


@pytest.mark.gpu
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dim", [16, 64, 128, 256])
def test_the_gradients_match_at_real_lengths(dim, mask):
    lengths, key_lengths = [1000, 37, 1, 511], [1000, 101, 9, 777]
    limits = MASKS | {"window": {"window": 200}}
    q, k, v, do = draw(lengths, key_lengths, 4, 2, dim, torch.bfloat16, "cuda")
    *saved, expected = by_definition(q, k, v, do, lengths, key_lengths, **limits[mask])
    grads = found(q, k, v, do, saved, lengths, key_lengths, **limits[mask])
    for grad, exact in zip(grads, expected, strict=True):
        assert_kernel_close(grad, exact, grad=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [64, 128])
def test_keys_past_the_end_weigh_nothing_where_scores_are_low(dim):
    check_low([1000, 37, 511], dim, torch.bfloat16, "cuda", GRAD_LIMITS[torch.bfloat16])


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [64, 128])
def test_the_kernels_for_other_gpus_match_at_real_lengths(dim):
    shape = ([1000, 37, 1, 511], [1000, 101, 9, 777], 4, 2, dim)
    tables = {f"{side}_config": table(f"attention_{side}")[f"{dim}/2"] for side in ("dq", "dkdv")}
    check(shape, torch.bfloat16, "cuda", "causal", **tables)


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_float32_keeps_its_limit(dim):
    shape = ([300, 65], [300, 65], 2, 1, dim)
    check(shape, torch.float32, "cuda", "causal")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [64, 128])
def test_long_sequences_of_many_heads_keep_the_limits(dim, dtype):
    shape = ([4096, 1, 1024], [4096, 1, 1024], 8, 4, dim)
    check(shape, dtype, "cuda", "causal")


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [[1000, 2048, 77], [1024] * 8, [4096] * 2])
@pytest.mark.parametrize("dim", [64, 128])
def test_many_runs_agree_to_the_last_bit(dim, lengths):
    q, k, v, do = draw(lengths, lengths, 16, 8, dim, torch.bfloat16, "cuda")
    at = {"queries": packed(lengths, "cuda"), "keys": packed(lengths, "cuda"), "scale": dim**-0.5}
    saved = launch_forward(q, k, v, **at)
    first = launch_backward(q, k, v, *saved, do, **at)
    for _ in range(5):
        again = launch_backward(q, k, v, *saved, do, **at)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
