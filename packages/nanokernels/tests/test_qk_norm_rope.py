import cmath

import pytest
import torch

from nanorlhf.nanokernels import qk_norm_rope, qk_norm_rope_store, rope_table
from nanorlhf.nanokernels.qk_norm_rope import _launch_backward, _launch_forward
from nanorlhf.nanokernels.testing import assert_kernel_close, check_operator

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 1, 1, 16), (7, 6, 2, 24), (5, 12, 3, 64)]


def norm_rope_by_definition(x, weight, positions, theta, eps):
    """A head at a time: scale it, then turn each pair (i, i + D/2) as a complex number."""
    out = torch.empty_like(x)
    half = x.shape[2] // 2
    for t, position in enumerate(positions.tolist()):
        for h in range(x.shape[1]):
            head = x[t, h].tolist()
            scale = (sum(v * v for v in head) / len(head) + eps) ** -0.5
            head = [v * scale * w for v, w in zip(head, weight.tolist(), strict=True)]
            for i in range(half):
                turn = cmath.exp(1j * position * theta ** (-i / half))
                z = complex(head[i], head[i + half]) * turn
                out[t, h, i], out[t, h, i + half] = z.real, z.imag
    return out


def inputs(shape, device, dtype=torch.float32):
    tokens, heads, kv_heads, dim = shape
    fused = torch.randn(tokens, heads + 2 * kv_heads, dim, device=device).to(dtype)
    q, k, v = fused.split([heads, kv_heads, kv_heads], dim=1)
    q_weight, k_weight = torch.randn(2, dim, device=device).to(dtype).unbind()
    table = rope_table(torch.arange(tokens, device=device) + 3, head_dim=dim, theta=1e4)
    return (q, k, q_weight, k_weight), table, v


def with_grads(tensors, table, grads, impl):
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = qk_norm_rope(*leaves, *table, impl=impl)
    return *(x.detach() for x in out), *torch.autograd.grad(out, leaves, grads)


def pages_for(v, *, page_size, pages):
    _, kv_heads, dim = v.shape
    return torch.full((2, pages, kv_heads, page_size, dim), 7.0, device=v.device, dtype=v.dtype)


def test_reference_matches_its_definition():
    (q, k, q_weight, k_weight), table, _ = inputs((4, 2, 1, 6), "cpu")
    found = qk_norm_rope(q, k, q_weight, k_weight, *table, eps=1e-5)
    for out, x, weight in zip(found, (q, k), (q_weight, k_weight), strict=True):
        expected = norm_rope_by_definition(x, weight, torch.arange(4) + 3, 1e4, 1e-5)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_reference_passes_gradcheck():
    tensors, table, _ = inputs((3, 2, 1, 4), "cpu", torch.float64)
    tensors = [x.detach().clone().requires_grad_() for x in tensors]
    table = [x.double() for x in table]
    assert torch.autograd.gradcheck(lambda *x: tuple(qk_norm_rope(*x, *table)), tensors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_matches_the_reference_forward_and_backward(kernel_device, dtype, shape):
    tensors, table, _ = inputs(shape, kernel_device, dtype)
    grads = [torch.randn_like(x) for x in tensors[:2]]
    found = with_grads(tensors, table, grads, "triton")
    exact = with_grads(
        [x.double() for x in tensors], table, [g.double() for g in grads], "reference"
    )
    assert {x.dtype for x in found} == {dtype}
    for out, expected in zip(found[:2], exact[:2], strict=True):
        assert_kernel_close(out, expected)
    for grad, expected in zip(found[2:], exact[2:], strict=True):
        assert_kernel_close(grad, expected, grad=True)


@pytest.mark.parametrize("heads", [1, 2, 16])
def test_pieces_and_programs_of_any_size_give_the_same(kernel_device, heads):
    tensors, table, _ = inputs((9, 6, 3, 16), kernel_device)
    grads = [torch.randn_like(x) for x in tensors[:2]]
    expected = with_grads(tensors, table, grads, "reference")
    config = {"heads": heads, "num_warps": 1, "num_stages": 2, "programs": 12}
    found = _launch_forward(*tensors, *table, 1e-6, config)
    dq, dk, dw = _launch_backward(*tensors, *table, *grads, 1e-6, config)
    for a, b in zip((*found, dq, dk, dw[0], dw[1]), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert torch.equal(dw, _launch_backward(*tensors, *table, *grads, 1e-6, config)[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_storing_writes_the_same_keys_and_leaves_the_other_slots_alone(kernel_device, dtype):
    (q, k, *weights), table, v = inputs((5, 6, 3, 24), kernel_device, dtype)
    slots = torch.tensor([35, 2, -1, 16, 47], device=kernel_device)
    pages = pages_for(v, page_size=16, pages=3)
    out = qk_norm_rope_store(q, k, v, *weights, *table, *pages, slots, impl="triton")
    expected = qk_norm_rope(q, k, *weights, *table, impl="triton")
    assert torch.equal(out, expected.q_THD)
    wanted = pages_for(v, page_size=16, pages=3)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            wanted[0, slot // 16, :, slot % 16] = expected.k_TKD[token]
            wanted[1, slot // 16, :, slot % 16] = v[token]
    assert torch.equal(pages, wanted)
    again = pages_for(v, page_size=16, pages=3)
    q_reference = qk_norm_rope_store(q, k, v, *weights, *table, *again, slots, impl="reference")
    assert_kernel_close(out, q_reference.double())
    assert_kernel_close(pages[0], again[0].double())
    assert torch.equal(pages[1], again[1])


def test_a_token_does_not_depend_on_its_batch(kernel_device):
    tensors, table, _ = inputs((9, 4, 2, 32), kernel_device)
    together = qk_norm_rope(*tensors, *table, impl="triton")
    q, k, *weights = tensors
    alone = qk_norm_rope(q[4:5], k[4:5], *weights, *(x[4:5] for x in table), impl="triton")
    assert torch.equal(together.q_THD[4:5], alone.q_THD)
    assert torch.equal(together.k_TKD[4:5], alone.k_TKD)


def test_the_operators_keep_their_word(kernel_device):
    (q, k, *weights), table, v = inputs((3, 2, 1, 16), kernel_device)
    slots = torch.tensor([1, -1, 17], device=kernel_device)
    pages = pages_for(v, page_size=16, pages=2)
    store = torch.ops.nanokernels.qk_norm_rope_store.default
    check_operator(store, q, k, v, *weights, *table, *pages.unbind(), slots, 1e-6)
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, *weights)]
    check_operator(torch.ops.nanokernels.qk_norm_rope.default, *leaves, *table, 1e-6)


def test_it_compiles_into_one_graph(kernel_device):
    tensors, table, v = inputs((5, 2, 1, 16), kernel_device)
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    slots = torch.arange(5, device=kernel_device)

    def run(pages, impl):
        q, k = qk_norm_rope(*leaves, *table, impl=impl)
        with torch.no_grad():
            qk_norm_rope_store(q, k, v, *leaves[2:], *table, *pages, slots, impl=impl)
        return q.sin().sum() + k.cos().sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    pages, wanted = (pages_for(v, page_size=16, pages=1) for _ in range(2))
    found = torch.autograd.grad(compiled(pages.unbind(), "triton"), leaves)
    expected = torch.autograd.grad(run(wanted.unbind(), "reference"), leaves)
    for a, b in zip((*found, pages), (*expected, wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_no_tokens_give_no_tokens(kernel_device):
    tensors, table, v = inputs((0, 2, 1, 16), kernel_device)
    found = with_grads(tensors, table, [x.clone() for x in tensors[:2]], "triton")
    assert [tuple(x.shape) for x in found[:2]] == [(0, 2, 16), (0, 1, 16)]
    assert found[4].tolist() == found[5].tolist() == [0.0] * 16
    pages, slots = pages_for(v, page_size=16, pages=1), torch.empty(0, dtype=torch.int64)
    q, k, *weights = tensors
    slots = slots.to(kernel_device)
    assert not len(qk_norm_rope_store(q, k, v, *weights, *table, *pages, slots, impl="triton"))


def test_shapes_that_do_not_fit_are_errors():
    (q, k, q_weight, k_weight), table, v = inputs((3, 2, 1, 8), "cpu")
    with pytest.raises(ValueError, match=r"q=\(3, 2, 8\) and k=\(2, 1, 8\) are not"):
        qk_norm_rope(q, k[:2], q_weight, k_weight, *table)
    with pytest.raises(ValueError, match=r"k_weight=torch.float32\(4,\) do not match D=8"):
        qk_norm_rope(q, k, q_weight, k_weight[:4], *table)
    with pytest.raises(ValueError, match=r"cos=\(2, 4\).*do not match q=\(3, 2, 8\)"):
        qk_norm_rope(q, k, q_weight, k_weight, table.cos[:2], table.sin[:2])
    pages = pages_for(v, page_size=16, pages=1)
    with pytest.raises(ValueError, match=r"slots=torch.int32\(3,\) does not match T=3"):
        qk_norm_rope_store(
            q, k, v, q_weight, k_weight, *table, *pages, torch.arange(3, dtype=torch.int32)
        )


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(8192, 16, 8, 128), (1001, 32, 4, 256), (37, 64, 8, 128)])
def test_kernel_matches_the_reference_at_real_shapes(shape):
    tensors, table, _ = inputs(shape, "cuda", torch.bfloat16)
    grads = [torch.randn_like(x) for x in tensors[:2]]
    found = with_grads(tensors, table, grads, "triton")
    again = with_grads(tensors, table, grads, "triton")
    exact = with_grads(
        [x.double() for x in tensors], table, [g.double() for g in grads], "reference"
    )
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    for i, (a, b) in enumerate(zip(found, exact, strict=True)):
        assert_kernel_close(a, b, grad=i > 1)


@pytest.mark.gpu
def test_tokens_past_2_to_the_31_entries_are_reached():
    tokens = 2**20 + 1
    tensors, table, _ = inputs((tokens, 16, 8, 128), "cuda", torch.bfloat16)
    grads = [torch.randn_like(x) for x in tensors[:2]]
    found = with_grads(tensors, table, grads, "triton")
    q, k, *weights = tensors
    last = (q[-3:], k[-3:], *weights)
    few = with_grads(last, [t[-3:] for t in table], [g[-3:] for g in grads], "triton")
    for a, b in zip(found[:4], few[:4], strict=True):
        assert torch.equal(a[-3:], b)


@pytest.mark.gpu
def test_a_captured_store_follows_its_slots():
    (q, k, *weights), table, v = inputs((40, 16, 8, 128), "cuda", torch.bfloat16)
    pages, slots = pages_for(v, page_size=16, pages=8), torch.arange(40, device="cuda")
    run = lambda: qk_norm_rope_store(q, k, v, *weights, *table, *pages, slots)  # noqa: E731
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    slots.add_(64)
    pages.fill_(7.0)
    graph.replay()
    assert (pages[:, :4] == 7.0).all()
    assert torch.equal(pages[1, 4, :, 3], v[3])
