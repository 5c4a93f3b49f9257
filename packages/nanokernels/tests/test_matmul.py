import pytest
import torch

from nanorlhf.nanokernels import matmul
from nanorlhf.nanokernels.matmul import _as_lines, _config, _launch, _run_pointed
from nanorlhf.nanokernels.testing import assert_kernel_close, check_operator

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SMALL = {"block_m": 16, "block_n": 16, "block_k": 16, "num_warps": 4, "num_stages": 1}


def product_by_definition(a, b):
    """One number at a time."""
    c = torch.zeros(a.shape[0], b.shape[1], dtype=torch.float64)
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            c[i, j] = sum(float(x) * float(y) for x, y in zip(a[i], b[:, j], strict=True))
    return c


def laid_out(rows, columns, layout, device, dtype):
    """A random matrix whose rows, columns or neither are contiguous."""
    if layout == "columns":
        return torch.randn(columns, rows, device=device).to(dtype).t()
    if layout == "neither":
        return torch.randn(rows, 2 * columns, device=device).to(dtype)[:, ::2]
    return torch.randn(rows, columns, device=device).to(dtype)


def test_reference_matches_its_definition():
    a, b = torch.randn(3, 5, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(matmul(a, b), product_by_definition(a, b))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "k", "n"), [(1, 16, 8), (5, 40, 24), (33, 7, 3), (16, 33, 40)])
def test_kernel_matches_the_definition(kernel_device, dtype, m, k, n):
    a, b = (torch.randn(s, device=kernel_device).to(dtype) for s in ((m, k), (k, n)))
    c = _launch(a, b, SMALL)
    assert c.dtype == dtype
    assert_kernel_close(c, product_by_definition(a, b))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("b_layout", ["rows", "columns", "neither"])
@pytest.mark.parametrize("a_layout", ["rows", "columns", "neither"])
def test_every_layout_is_read_as_it_is(kernel_device, a_layout, b_layout, aligned):
    m, k, n = (24, 40, 32) if aligned else (25, 37, 29)
    a = laid_out(m, k, a_layout, kernel_device, torch.bfloat16)
    b = laid_out(k, n, b_layout, kernel_device, torch.bfloat16)
    c = torch.empty(m, n, dtype=a.dtype, device=kernel_device)
    assert_kernel_close(_launch(a, b, SMALL), a.double() @ b.double())
    _run_pointed(_as_lines(a), _as_lines(b), c, SMALL)
    assert_kernel_close(c, a.double() @ b.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_match_those_of_the_reference(kernel_device, dtype):
    a = torch.randn(2, 3, 24, device=kernel_device).to(dtype).requires_grad_()
    w = torch.randn(16, 24, device=kernel_device).to(dtype).requires_grad_()
    dc = torch.randn(2, 3, 16, device=kernel_device).to(dtype)
    found = torch.autograd.grad(matmul(a, w.t(), impl="triton"), (a, w), dc)
    a, w = a.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    exact = torch.autograd.grad(a @ w.t(), (a, w), dc.double())
    for x, y in zip(found, exact, strict=True):
        assert_kernel_close(x, y, grad=True)


def test_rows_do_not_depend_on_how_many_there_are(kernel_device):
    a, b = torch.randn(40, 48, device=kernel_device), torch.randn(48, 16, device=kernel_device)
    together = _launch(a, b, SMALL)
    assert torch.equal(_launch(a[7:8], b, SMALL), together[7:8])
    assert torch.equal(_launch(a[16:], b, SMALL), together[16:])


def test_tiles_shrink_until_there_are_enough_programs():
    tiles = [_config(m, 1024, "many") for m in (8192, 4096, 1024, 64, 17)]
    sizes = [tile["block_m"] * tile["block_n"] for tile in tiles]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[2] > sizes[-1]


@pytest.mark.parametrize("m", [3, 20])
def test_few_rows_and_many_agree_with_the_table_s_own_tiles(kernel_device, m):
    a, w = (torch.randn(s, 48, device=kernel_device).to(torch.bfloat16) for s in (m, 72))
    assert_kernel_close(matmul(a, w.t(), impl="triton"), a.double() @ w.double().t())


@pytest.mark.slow
def test_the_operator_keeps_its_word(kernel_device):
    a = torch.randn(5, 24, device=kernel_device, requires_grad=True)
    b = torch.randn(24, 16, device=kernel_device, requires_grad=True)
    check_operator(torch.ops.nanokernels.matmul.default, a, b)


def test_it_compiles_into_one_graph(kernel_device):
    a = torch.randn(5, 24, device=kernel_device, requires_grad=True)
    w = torch.randn(16, 24, device=kernel_device)
    run = torch.compile(
        lambda a: matmul(a, w.t(), impl="triton") * 2, fullgraph=True, backend="aot_eager"
    )
    (da,) = torch.autograd.grad(run(a).sum(), a)
    torch.testing.assert_close(da, 2 * w.sum(0).expand(5, -1), rtol=1e-5, atol=1e-5)


def test_empty_sizes_give_empty_or_zero(kernel_device):
    a, b = torch.empty(0, 8, device=kernel_device), torch.empty(8, 4, device=kernel_device)
    assert matmul(a, b, impl="triton").shape == (0, 4)
    assert matmul(a.t(), a, impl="triton").tolist() == torch.zeros(8, 8).tolist()


def test_shapes_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match=r"a=torch\.float32\(2, 3\) and b=.*\(2, 3\) do not fit"):
        matmul(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="in one dtype"):
        matmul(torch.ones(2, 3), torch.ones(3, 2).double())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(1024, 1024), (6144, 1024), (1024, 3072), (1000, 520)])
def test_a_row_has_the_same_bits_whatever_m_is(n, k, dtype):
    a = torch.randn(4096, k, device="cuda").to(dtype)
    w = torch.randn(n, k, device="cuda").to(dtype)
    whole = matmul(a, w.t())
    assert_kernel_close(whole[:256], a[:256].double() @ w.double().t())
    for m in (1, 2, 7, 16, 33, 64, 100, 128, 512, 1000, 1024, 2048):
        assert torch.equal(matmul(a[:m], w.t()), whole[:m])
        assert torch.equal(matmul(a[-m:], w.t()), whole[-m:])


@pytest.mark.gpu
def test_offsets_beyond_31_bits_are_reached():
    a = torch.randn(15_000, 32, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(151_936, 32, device="cuda", dtype=torch.bfloat16)
    c = matmul(a, w.t())
    assert_kernel_close(c[-8:, -64:], a[-8:].double() @ w[-64:].double().t())


@pytest.mark.gpu
def test_it_replays_in_a_cuda_graph():
    a = torch.randn(7, 1024, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(1024, 1024, device="cuda", dtype=torch.bfloat16)
    expected = matmul(a, w.t())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = matmul(a, w.t())
    found.zero_()
    graph.replay()
    assert torch.equal(found, expected)
