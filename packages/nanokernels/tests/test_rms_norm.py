import pytest
import torch

from nanorlhf.nanokernels import rms_norm
from nanorlhf.nanokernels.rms_norm import Config, _launch_backward, _launch_forward
from nanorlhf.nanokernels.testing import assert_kernel_close

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


def test_a_slice_of_a_fused_projection_is_read_in_place(kernel_device):
    fused = torch.randn(6, 5, 32, device=kernel_device)
    x, weight = fused[:, 1:3], torch.ones(32, device=kernel_device)
    grad = torch.randn_like(x)
    found = with_grads(x, weight, grad, "triton")
    for a, b in zip(found, with_grads(x, weight, grad, "reference"), strict=True):
        torch.testing.assert_close(a, b)


def test_programs_that_share_the_rows_add_up_to_the_same_weight_gradient(kernel_device):
    x, weight = torch.randn(23, 24, device=kernel_device), torch.randn(24, device=kernel_device)
    grad = torch.randn_like(x)
    config = Config(tile=64, num_warps=1, programs=3)
    rstd = _launch_forward(x, weight, eps=1e-6, config=config).rstd
    first = _launch_backward(x, weight, rstd, grad, config=config)
    again = _launch_backward(x, weight, rstd, grad, config=config)
    _, dx, dw = with_grads(x, weight, grad, "reference")
    torch.testing.assert_close(first[0], dx)
    torch.testing.assert_close(first[1], dw)
    assert torch.equal(first[1], again[1])


def test_a_row_does_not_depend_on_its_batch(kernel_device):
    x, weight = torch.randn(9, 40, device=kernel_device), torch.randn(40, device=kernel_device)
    together = rms_norm(x, weight, impl="triton")
    assert torch.equal(together[4:5], rms_norm(x[4:5], weight, impl="triton"))


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


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(4096, 1024), (1000, 4096), (2048, 16, 128), (33, 8192)])
def test_kernel_matches_the_reference_at_real_shapes(shape):
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(shape[-1], device="cuda", dtype=torch.bfloat16)
    grad = torch.randn_like(x)
    y, dx, dw = with_grads(x, weight, grad, "triton")
    exact = with_grads(x.double(), weight.double(), grad.double(), "reference")
    assert_kernel_close(y, exact[0])
    assert_kernel_close(dx, exact[1], grad=True)
    assert_kernel_close(dw, exact[2], grad=True)
