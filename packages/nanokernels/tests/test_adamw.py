import math

import pytest
import torch

from nanorlhf.nanokernels.adamw import _launch_norm, adamw_, clip_scale, global_norm
from nanorlhf.nanokernels.testing import check_operator

BETAS, EPS = (0.8, 0.9), 1e-6


def adamw_by_definition(p, g, m, v, *, lr, weight_decay, step):
    """Algorithm 2 of the paper, one number at a time; returns the new p, m and v."""
    m = BETAS[0] * m + (1 - BETAS[0]) * g
    v = BETAS[1] * v + (1 - BETAS[1]) * g * g
    m_hat, v_hat = m / (1 - BETAS[0] ** step), v / (1 - BETAS[1] ** step)
    return p - lr * (m_hat / (math.sqrt(v_hat) + EPS) + weight_decay * p), m, v


def buffers(size, device, *, params=torch.float32, grads=torch.float32):
    weights, g, m, v = torch.randn(4, size, device=device).unbind()
    made = [weights.to(params), g.to(grads), m.clone(), v.abs()]
    return made, weights.clone()


def step_all(made, *, impl, master=None, step=3, scale=1.0):
    numbers = {"lr": 0.1, "betas": BETAS, "eps": EPS, "weight_decay": 0.2}
    adamw_(*made, master=master, step=step, grad_scale=scale, impl=impl, **numbers)


def test_reference_matches_its_definition_over_steps():
    made = [x.double() for x in buffers(7, "cpu")[0]]
    p, g, m, v = (x.tolist() for x in made)
    for step in (1, 2, 3):
        step_all(made, impl="reference", step=step)
        new = [
            adamw_by_definition(*now, lr=0.1, weight_decay=0.2, step=step)
            for now in zip(p, g, m, v, strict=True)
        ]
        p, m, v = zip(*new, strict=True)
    for found, expected in zip((made[0], *made[2:]), (p, m, v), strict=True):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_it_updates_as_torch_does():
    (p, g, m, v), _ = buffers(9, "cpu")
    m.zero_(), v.zero_()
    other = torch.nn.Parameter(p.clone())
    optimizer = torch.optim.AdamW([other], lr=0.1, betas=BETAS, eps=EPS, weight_decay=0.2)
    for step in (1, 2, 3):
        other.grad = g.clone()
        optimizer.step()
        step_all((p, g, m, v), impl="reference", step=step)
    torch.testing.assert_close(p, other.detach())


@pytest.mark.parametrize("size", [1, 1023, 2600])
@pytest.mark.parametrize("grads", [torch.float32, torch.bfloat16])
def test_kernel_with_master_weights_matches_the_reference(kernel_device, size, grads):
    made, master = buffers(size, kernel_device, params=torch.bfloat16, grads=grads)
    expected, expected_master = [x.clone() for x in made], master.clone()
    scale = torch.tensor(0.25, device=kernel_device)
    step_all(made, impl="triton", master=master, scale=scale)
    step_all(expected, impl="reference", master=expected_master, scale=0.25)
    torch.testing.assert_close(master, expected_master)
    assert torch.equal(made[0], master.bfloat16())
    assert torch.equal(made[1], expected[1])
    for a, b in zip(made[2:], expected[2:], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_without_master_weights_matches_the_reference(kernel_device, dtype):
    made, _ = buffers(1500, kernel_device, params=dtype)
    expected = [x.clone() for x in made]
    step_all(made, impl="triton", step=1)
    step_all(expected, impl="reference", step=1)
    for a, b in zip(made, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_slice_of_the_buffers_leaves_the_rest_alone(kernel_device):
    made, _ = buffers(100, kernel_device)
    before = [x.clone() for x in made]
    step_all([x[7:40] for x in made], impl="triton")
    for now, old, changes in zip(made, before, (True, False, True, True), strict=True):
        assert torch.equal(now[7:40], old[7:40]) is not changes
        assert torch.equal(now[:7], old[:7])
        assert torch.equal(now[40:], old[40:])


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_a_backward_that_needs_the_old_weights_is_refused(kernel_device, impl):
    (p, *rest), _ = buffers(8, kernel_device)
    p.requires_grad_()
    loss = p.square().sum()
    step_all([p, *rest], impl=impl)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_that_of_all_entries(kernel_device, dtype):
    tensors = [torch.randn(n, device=kernel_device).to(dtype) for n in (5000, 1, 0, 300)]
    expected = torch.cat(tensors).double().norm().float()
    for impl in ("triton", "reference"):
        torch.testing.assert_close(global_norm(tensors, impl=impl), expected)
    few = {"block": 64, "num_warps": 1, "num_stages": 2, "programs": 3}
    torch.testing.assert_close(_launch_norm(tensors, few), expected)


def test_clipped_gradients_have_the_largest_norm_allowed(kernel_device):
    grads = torch.randn(500, device=kernel_device) * 3
    scale = clip_scale(global_norm([grads], impl="triton"), max_norm=1.0)
    torch.testing.assert_close((grads * scale).norm(), torch.tensor(1.0, device=kernel_device))
    assert clip_scale(global_norm([grads * 0], impl="triton"), max_norm=1.0) == 1.0


def test_the_operators_keep_their_word(kernel_device):
    made, master = buffers(70, kernel_device)
    scale = torch.ones((), device=kernel_device)
    numbers = [0.98, 0.2, 0.9, 0.1, 0.1, 1.0, 1e-8]
    check_operator(torch.ops.nanokernels.adamw_.default, *made, master, scale, numbers)
    check_operator(torch.ops.nanokernels.adamw_.default, *made, None, scale, numbers)
    check_operator(torch.ops.nanokernels.global_norm.default, made)


def test_it_compiles_into_one_graph(kernel_device):
    made, master = buffers(70, kernel_device, params=torch.bfloat16)
    expected, expected_master = [x.clone() for x in made], master.clone()

    def run(made, master, impl):
        scale = clip_scale(global_norm([made[1]], impl=impl), max_norm=0.5)
        step_all(made, impl=impl, master=master, scale=scale)

    torch.compile(run, fullgraph=True, backend="aot_eager")(made, master, "triton")
    run(expected, expected_master, "reference")
    torch.testing.assert_close(master, expected_master)
    torch.testing.assert_close(made[0], expected[0])


def test_buffers_and_numbers_that_do_not_fit_are_errors():
    (p, g, m, v), _ = buffers(8, "cpu")
    with pytest.raises(ValueError, match=r"grads=\(7,\) with strides \(1,\) is not contiguous in"):
        adamw_(p, g[:7], m, v, lr=0.1, step=1)
    with pytest.raises(ValueError, match=r"params=\(4,\) with strides \(2,\)"):
        adamw_(p[::2], g[:4], m[:4], v[:4], lr=0.1, step=1)
    with pytest.raises(ValueError, match=r"master is torch\.bfloat16"):
        adamw_(p, g, m, v, master=p.bfloat16(), lr=0.1, step=1)
    with pytest.raises(ValueError, match="step=0 has no bias correction"):
        adamw_(p, g, m, v, lr=0.1, step=0)
    with pytest.raises(ValueError, match=r"betas=\(0.9, 1.0\)"):
        adamw_(p, g, m, v, lr=0.1, betas=(0.9, 1.0), step=1)
    with pytest.raises(ValueError, match=r"tensors=\[\] has no device"):
        global_norm([])


@pytest.mark.gpu
def test_buffers_of_more_than_2_to_the_31_entries_are_reached():
    size = 2**31 + 4096
    p, g, m, v = (torch.zeros(size, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    g[-1] = 1.0
    adamw_(p, g, m, v, lr=0.5, step=1)
    assert p[-1].item() == -0.5
    assert p[:-1].count_nonzero().item() == 0
    assert global_norm([g]).item() == 1.0


@pytest.mark.gpu
def test_a_captured_update_reads_the_scale_of_each_replay():
    made, master = buffers(100_000, "cuda", params=torch.bfloat16)
    expected, expected_master = [x.clone() for x in made], master.clone()
    run = lambda: step_all(  # noqa: E731
        made, impl="triton", master=master, scale=clip_scale(global_norm([made[1]]), max_norm=1.0)
    )
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    made[1].mul_(0.001)
    graph.replay()
    for grads in (made[1] / 0.001, made[1]):
        scale = clip_scale(global_norm([grads], impl="reference"), max_norm=1.0)
        given = [expected[0], grads, *expected[2:]]
        step_all(given, impl="reference", master=expected_master, scale=scale)
    torch.testing.assert_close(master, expected_master, rtol=1e-4, atol=1e-4)
