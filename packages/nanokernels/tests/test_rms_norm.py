import pytest
import torch

from nanorlhf.nanokernels import rms_norm
from nanorlhf.nanokernels.rms_norm import _launch_backward
from nanorlhf.nanokernels.testing import assert_kernel_close, check_operator

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def rms_norm_by_definition(x, weight, eps):
    """One row at a time."""
    rows = [row / (sum(v * v for v in row) / len(row) + eps) ** 0.5 * weight for row in x]
    return torch.stack(rows)


def with_grads(x, weight, grad, impl):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = rms_norm(x, weight, impl=impl)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad)


def test_reference_matches_its_definition():
    x, weight = torch.randn(5, 7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    torch.testing.assert_close(rms_norm(x, weight), rms_norm_by_definition(x, weight, 1e-6))


def sum_with_grads(x, weight, residual, grads, impl):
    inputs = [t.detach().requires_grad_() for t in (x, weight, residual)]
    outputs = rms_norm(inputs[0], inputs[1], residual=inputs[2], impl=impl)
    return *(y.detach() for y in outputs), *torch.autograd.grad(outputs, inputs, grads)


def test_reference_passes_gradcheck():
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rms_norm, (x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16), (37, 40), (5, 3, 128)])
def test_kernel_matches_the_reference_forward_and_backward(kernel_device, dtype, shape):
    x = torch.randn(shape, device=kernel_device).to(dtype)
    weight = torch.randn(shape[-1], device=kernel_device).to(dtype)
    grad = torch.randn_like(x)
    y, dx, dw = with_grads(x, weight, grad, "triton")
    exact = with_grads(x.double(), weight.double(), grad.double(), "reference")
    assert (y.dtype, dx.dtype, dw.dtype) == (dtype,) * 3
    assert_kernel_close(y, exact[0])
    assert_kernel_close(dx, exact[1], grad=True)
    assert_kernel_close(dw, exact[2], grad=True)


def test_a_residual_is_added_first_and_comes_back():
    x, residual = torch.randn(2, 5, 7, dtype=torch.float64).unbind()
    weight = torch.randn(7, dtype=torch.float64)
    y, total = rms_norm(x, weight, residual=residual)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(y, rms_norm_by_definition(x + residual, weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16), (37, 40), (5, 3, 128)])
def test_kernel_with_a_residual_matches_the_reference(kernel_device, dtype, shape):
    x, residual = torch.randn(2, *shape, device=kernel_device).to(dtype).unbind()
    weight = torch.randn(shape[-1], device=kernel_device).to(dtype)
    grads = torch.randn(2, *shape, device=kernel_device).to(dtype).unbind()
    found = sum_with_grads(x, weight, residual, grads, "triton")
    total = (x + residual).double()
    # What is normalised is the rounded sum, so that is where the exact gradient is taken.
    exact = sum_with_grads(
        total, weight.double(), torch.zeros_like(total), [g.double() for g in grads], "reference"
    )
    assert {t.dtype for t in found} == {dtype}
    assert torch.equal(found[1], x + residual)
    assert torch.equal(found[0], rms_norm(x + residual, weight, impl="triton"))
    assert_kernel_close(found[0], exact[0])
    for a, b in zip(found[2:], exact[2:], strict=True):
        assert_kernel_close(a, b, grad=True)


@pytest.mark.parametrize("part", [(slice(None), slice(1, 3)), (slice(2, 5), 1)])
def test_a_slice_of_a_fused_projection_is_read_in_place(kernel_device, part):
    fused = torch.randn(6, 5, 32, device=kernel_device)
    x, weight = fused[part][..., :24], torch.randn(24, device=kernel_device)
    grad = torch.randn_like(x)
    found = with_grads(x, weight, grad, "triton")
    for a, b in zip(found, with_grads(x, weight, grad, "reference"), strict=True):
        torch.testing.assert_close(a, b)


def test_programs_that_share_the_rows_add_up_to_the_same_weight_gradient(kernel_device):
    x, weight = torch.randn(23, 24, device=kernel_device), torch.randn(24, device=kernel_device)
    grad = torch.randn_like(x)
    config = {"tile": 64, "num_warps": 1, "num_stages": 2, "programs": 3}
    first = _launch_backward(x, weight, grad, None, 1e-6, config)
    again = _launch_backward(x, weight, grad, None, 1e-6, config)
    _, dx, dw = with_grads(x, weight, grad, "reference")
    torch.testing.assert_close(first[0], dx)
    torch.testing.assert_close(first[1], dw)
    assert torch.equal(first[1], again[1])


def test_a_row_does_not_depend_on_its_batch(kernel_device):
    x, weight = torch.randn(9, 40, device=kernel_device), torch.randn(40, device=kernel_device)
    together = rms_norm(x, weight, impl="triton")
    assert torch.equal(together[4:5], rms_norm(x[4:5], weight, impl="triton"))


def test_the_operators_keep_their_word(kernel_device):
    x, residual = torch.randn(2, 3, 24, device=kernel_device).unbind()
    x, residual = x.clone().requires_grad_(), residual.clone().requires_grad_()
    weight = torch.randn(24, device=kernel_device, requires_grad=True)
    check_operator(torch.ops.nanokernels.rms_norm.default, x, weight, 1e-6)
    check_operator(torch.ops.nanokernels.add_rms_norm.default, x, weight, residual, 1e-6)


def test_it_compiles_into_one_graph(kernel_device):
    x, weight = torch.randn(5, 24, device=kernel_device), torch.randn(24, device=kernel_device)
    x.requires_grad_()

    def run(impl):
        y, total = rms_norm(x, weight, residual=x * 2, impl=impl)
        return rms_norm(y, weight, impl=impl) + total

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    (dx,) = torch.autograd.grad(compiled("triton").sin().sum(), x)
    (expected,) = torch.autograd.grad(run("reference").sin().sum(), x)
    torch.testing.assert_close(dx, expected)


def test_no_rows_give_no_rows(kernel_device):
    x = torch.empty(0, 8, device=kernel_device, requires_grad=True)
    y = rms_norm(x, torch.ones(8, device=kernel_device), impl="triton")
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 8)


def test_a_row_too_long_for_a_tile_is_an_error_not_a_fallback(kernel_device):
    x = torch.ones(1, 8193, device=kernel_device)
    with pytest.raises(ValueError, match="N=8193 does not fit one tile of at most 8192"):
        rms_norm(x, x[0], impl="triton")


def test_a_weight_of_another_length_is_an_error():
    with pytest.raises(ValueError, match=r"weight=\(3,\) does not match x=\(2, 4\)"):
        rms_norm(torch.ones(2, 4), torch.ones(3))


def test_a_residual_of_another_dtype_is_an_error():
    x = torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"residual=torch.float64\(2, 4\) does not match"):
        rms_norm(x, x[0], residual=x.double())


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape", [(4096, 1024), (1000, 4096), (2048, 16, 128), (33, 8192), (50, 2880)]
)
def test_kernel_matches_the_reference_at_real_shapes(shape):
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(shape[-1], device="cuda", dtype=torch.bfloat16)
    grad = torch.randn_like(x)
    y, dx, dw = with_grads(x, weight, grad, "triton")
    exact = with_grads(x.double(), weight.double(), grad.double(), "reference")
    assert_kernel_close(y, exact[0])
    assert_kernel_close(dx, exact[1], grad=True)
    assert_kernel_close(dw, exact[2], grad=True)


@pytest.mark.gpu
def test_rows_past_2_to_the_31_entries_are_reached():
    x = torch.zeros(2**19 + 3, 4096, device="cuda", dtype=torch.bfloat16)
    x[-2:] = torch.randn(2, 4096, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(4096, device="cuda", dtype=torch.bfloat16)
    y, dx, dw = with_grads(x, weight, x, "triton")
    few = with_grads(x[-2:], weight, x[-2:], "triton")
    assert torch.equal(y[-2:], few[0])
    assert torch.equal(dx[-2:], few[1])
    assert_kernel_close(dw, few[2].double(), grad=True)


@pytest.mark.gpu
def test_a_captured_step_runs_again_on_new_rows():
    x, residual, weight, dy = (torch.randn(300, 1024, device="cuda") for _ in range(4))
    run = lambda: sum_with_grads(x, weight[0], residual, (dy, dy), "triton")  # noqa: E731
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    x.normal_()
    graph.replay()
    for a, b in zip(found, run(), strict=True):
        assert torch.equal(a, b)
