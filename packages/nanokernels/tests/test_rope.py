import cmath

import pytest
import torch

from nanorlhf.nanokernels import rope, rope_table
from nanorlhf.nanokernels.testing import assert_kernel_close, check_operator

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def rope_by_definition(x, positions, theta):
    """Each pair (i, i + D/2) is a complex number, turned by its position's angle."""
    out = torch.empty_like(x)
    half = x.shape[2] // 2
    for t, position in enumerate(positions.tolist()):
        for h in range(x.shape[1]):
            for i in range(half):
                turn = cmath.exp(1j * position * theta ** (-i / half))
                z = complex(x[t, h, i], x[t, h, i + half]) * turn
                out[t, h, i], out[t, h, i + half] = z.real, z.imag
    return out


def with_grads(x, table, grad, impl):
    x = x.detach().requires_grad_()
    y = rope(x, *table, impl=impl)
    return y.detach(), *torch.autograd.grad(y, x, grad)


def test_reference_matches_its_definition():
    x, positions = torch.randn(4, 2, 6), torch.tensor([0, 3, 1, 250])
    table = rope_table(positions, head_dim=6, theta=1e4)
    # float32 angles of position 250 are good to about 250 * 2**-24.
    torch.testing.assert_close(
        rope(x, *table), rope_by_definition(x, positions, 1e4), rtol=1e-4, atol=1e-4
    )


def test_reference_passes_gradcheck():
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    table = rope_table(torch.arange(3), head_dim=4, theta=1e4)
    assert torch.autograd.gradcheck(lambda x: rope(x, *(t.double() for t in table)), (x,))


def test_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 32).unbind()

    def score(i, j):
        a, b = (rope_table(torch.tensor([p]), head_dim=32, theta=1e6) for p in (i, j))
        return float((rope(q, *a) * rope(k, *b)).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 16), (7, 3, 24), (4, 8, 128)])
def test_kernel_matches_the_reference_forward_and_backward(kernel_device, dtype, shape):
    x = torch.randn(shape, device=kernel_device).to(dtype)
    grad = torch.randn_like(x)
    table = rope_table(torch.arange(shape[0], device=kernel_device), head_dim=shape[2], theta=1e6)
    y, dx = with_grads(x, table, grad, "triton")
    exact = with_grads(x.double(), table, grad.double(), "reference")
    assert (y.dtype, dx.dtype) == (dtype, dtype)
    assert_kernel_close(y, exact[0])
    assert_kernel_close(dx, exact[1], grad=True)


def test_a_slice_of_a_fused_projection_is_read_in_place(kernel_device):
    x = torch.randn(5, 6, 16, device=kernel_device)[:, 2:5]
    table = rope_table(torch.arange(5, device=kernel_device), head_dim=16, theta=1e4)
    torch.testing.assert_close(rope(x, *table, impl="triton"), rope(x, *table, impl="reference"))


def test_the_operator_keeps_its_word(kernel_device):
    table = rope_table(torch.arange(3, device=kernel_device), head_dim=8, theta=1e4)
    x = torch.randn(3, 2, 8, device=kernel_device, requires_grad=True)
    check_operator(torch.ops.nanokernels.rope.default, x, *table, 1)


def test_it_compiles_into_one_graph(kernel_device):
    x = torch.randn(5, 2, 8, device=kernel_device, requires_grad=True)
    table = rope_table(torch.arange(5, device=kernel_device), head_dim=8, theta=1e4)

    def run(impl):
        return rope(x, *table, impl=impl).sin().sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    (dx,) = torch.autograd.grad(compiled("triton"), x)
    torch.testing.assert_close(dx, *torch.autograd.grad(run("reference"), x))


def test_a_table_of_other_positions_is_an_error():
    table = rope_table(torch.arange(3), head_dim=8, theta=1e4)
    with pytest.raises(ValueError, match=r"cos=\(3, 4\).*do not match x_THD=\(4, 1, 8\)"):
        rope(torch.ones(4, 1, 8), *table)


def test_an_odd_head_is_an_error():
    with pytest.raises(ValueError, match="head_dim=5 must be even"):
        rope_table(torch.arange(3), head_dim=5, theta=1e4)


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [8, 16])
def test_kernel_matches_the_reference_at_real_shapes(heads):
    x = torch.randn(8192, heads, 128, device="cuda", dtype=torch.bfloat16)
    grad = torch.randn_like(x)
    table = rope_table(torch.arange(8192, device="cuda"), head_dim=128, theta=1e6)
    y, dx = with_grads(x, table, grad, "triton")
    exact = with_grads(x.double(), table, grad.double(), "reference")
    assert_kernel_close(y, exact[0])
    assert_kernel_close(dx, exact[1], grad=True)
