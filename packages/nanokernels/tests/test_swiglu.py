import math

import pytest
import torch

from nanorlhf.nanokernels import silu_mul, swiglu
from nanorlhf.nanokernels.swiglu import _launch_forward
from nanorlhf.nanokernels.testing import assert_kernel_close, check_operator

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def swiglu_by_definition(gate_up):
    """One number at a time."""
    width = gate_up.shape[-1] // 2
    rows = [
        [g / (1 + math.exp(-g)) * u for g, u in zip(row[:width], row[width:], strict=True)]
        for row in gate_up.tolist()
    ]
    return torch.tensor(rows, dtype=gate_up.dtype)


def with_grads(x, grad, impl):
    x = x.detach().requires_grad_()
    y = swiglu(x, impl=impl)
    return y.detach(), *torch.autograd.grad(y, x, grad)


def test_reference_matches_its_definition():
    x = torch.randn(4, 10, dtype=torch.float64)
    torch.testing.assert_close(swiglu(x), swiglu_by_definition(x))


def test_reference_passes_gradcheck():
    x = torch.randn(3, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(swiglu, (x,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2), (5, 74), (2, 3, 2100)])
def test_kernel_matches_the_reference_forward_and_backward(kernel_device, dtype, shape):
    x = torch.randn(shape, device=kernel_device).to(dtype)
    grad = torch.randn(*shape[:-1], shape[-1] // 2, device=kernel_device).to(dtype)
    y, dx = with_grads(x, grad, "triton")
    exact = with_grads(x.double(), grad.double(), "reference")
    assert (y.dtype, dx.dtype) == (dtype, dtype)
    assert_kernel_close(y, exact[0])
    assert_kernel_close(dx, exact[1], grad=True)


@pytest.mark.gpu
def test_rows_past_2_to_the_31_entries_are_reached():
    x = torch.zeros(180_000, 2 * 6144, device="cuda", dtype=torch.bfloat16)
    grad = torch.zeros(180_000, 6144, device="cuda", dtype=torch.bfloat16)
    x[-100:].normal_()
    grad[-100:].normal_()
    y, dx = with_grads(x, grad, "triton")
    exact = with_grads(x[-100:].double(), grad[-100:].double(), "reference")
    assert_kernel_close(y[-100:], exact[0])
    assert_kernel_close(dx[-100:], exact[1], grad=True)


def test_several_blocks_cover_a_row_of_a_strided_input(kernel_device):
    x = torch.randn(3, 60, device=kernel_device)[:, :46]
    y = _launch_forward(*x.chunk(2, dim=-1), {"block": 8, "num_warps": 1})
    torch.testing.assert_close(y, swiglu(x, impl="reference"))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # 1 / (1 + inf) is the 0 we want
def test_large_gates_do_not_overflow(kernel_device):
    x = torch.tensor([[-1e4, 1e4, 1.0, 1.0]], device=kernel_device)
    assert swiglu(x, impl="triton").tolist() == [[0.0, 1e4]]


def test_the_operator_keeps_its_word(kernel_device):
    x = torch.randn(3, 64, device=kernel_device, requires_grad=True)
    check_operator(torch.ops.nanokernels.swiglu.default, x)


def test_it_compiles_into_one_graph(kernel_device):
    x = torch.randn(5, 64, device=kernel_device, requires_grad=True)
    run = torch.compile(lambda x: swiglu(x, impl="triton") * 2, fullgraph=True, backend="aot_eager")
    (dx,) = torch.autograd.grad(run(x).sum(), x)
    (expected,) = torch.autograd.grad(swiglu(x, impl="reference").sum() * 2, x)
    torch.testing.assert_close(dx, expected)


def test_no_rows_give_no_rows(kernel_device):
    assert swiglu(torch.empty(0, 8, device=kernel_device), impl="triton").shape == (0, 4)


def test_two_tensors_give_what_their_fused_layout_gives(kernel_device):
    wide = torch.randn(2, 3, 100, device=kernel_device)
    gate, up = (wide[..., s].detach().requires_grad_() for s in (slice(37), slice(40, 77)))
    y = silu_mul(gate, up, impl="triton")
    expected = swiglu(torch.cat((gate, up), dim=-1), impl="reference")
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, (gate, up), grad)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (gate, up), grad))
    check_operator(torch.ops.nanokernels.silu_mul.default, gate, up)


def test_two_tensors_of_different_width_are_an_error():
    with pytest.raises(ValueError, match=r"gate=.*\(2,\) and up=.*\(3,\) differ"):
        silu_mul(torch.ones(2), torch.ones(3))


def test_an_odd_width_is_an_error():
    with pytest.raises(ValueError, match=r"gate_up=\(2, 5\) has no two halves"):
        swiglu(torch.ones(2, 5))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(4096, 2 * 3072), (1001, 2 * 11008)])
def test_kernel_matches_the_reference_at_real_shapes(shape):
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    grad = torch.randn(shape[0], shape[1] // 2, device="cuda", dtype=torch.bfloat16)
    y, dx = with_grads(x, grad, "triton")
    exact = with_grads(x.double(), grad.double(), "reference")
    assert_kernel_close(y, exact[0])
    assert_kernel_close(dx, exact[1], grad=True)
