import math

import pytest
import torch

from nanorlhf.nanokernels import cross_entropy, token_logprobs
from nanorlhf.nanokernels.testing import assert_kernel_close, check_operator
from nanorlhf.nanokernels.token_share import _launch_forward

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
IMPLS = ["triton", "reference"]
IGNORED = -100


def loss_by_definition(logits, targets, reduction):
    """One row at a time."""
    losses = [
        z.new_zeros(()) if target == IGNORED else -z.softmax(0)[target].log()
        for z, target in zip(logits, targets.tolist(), strict=True)
    ]
    if reduction == "none":
        return torch.stack(losses)
    counted = sum(target != IGNORED for target in targets.tolist())
    return sum(losses) / (max(counted, 1) if reduction == "mean" else 1)


def draw(tokens, vocab, dtype=torch.float64, device="cpu"):
    logits = (3 * torch.randn(tokens, vocab, device=device)).to(dtype)
    targets = torch.randint(vocab, (tokens,), device=device)
    targets[1::3] = IGNORED
    return logits, targets


def with_grad(logits, targets, **options):
    logits = logits.clone().requires_grad_()
    loss = cross_entropy(logits, targets, **options)
    scale = torch.linspace(-1, 2, loss.numel(), device=loss.device).view(loss.shape)
    (grad,) = torch.autograd.grad((loss * scale).sum(), logits)
    return loss.detach(), grad


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_reference_matches_its_definition(reduction):
    logits, targets = draw(7, 11)
    found = cross_entropy(logits, targets, reduction=reduction)
    torch.testing.assert_close(found, loss_by_definition(logits, targets, reduction))


def test_the_reference_passes_gradcheck():
    logits, targets = draw(4, 5)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, targets), (logits,))
    outputs = (lambda z: tuple(token_logprobs(z, targets.clamp(min=0), temperature=0.6)),)
    assert torch.autograd.gradcheck(outputs[0], (logits,))


# Rows that start anywhere in a vector of eight, shorter than one, and longer than a block of lanes.
@pytest.mark.parametrize("vocab", [1, 3, 8, 37, 64, 4103])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_kernels_match_the_reference(kernel_device, dtype, vocab, reduction):
    logits, targets = draw(6, vocab, dtype, kernel_device)
    loss, grad = with_grad(logits, targets, reduction=reduction, impl="triton")
    exact = with_grad(logits.double(), targets, reduction=reduction, impl="reference")
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-5, atol=1e-5)
    assert grad.dtype == dtype
    if vocab > 1:  # of one word the gradient is 0
        assert_kernel_close(grad, exact[1], grad=True)


def test_few_lanes_walk_a_long_row(kernel_device):
    logits, targets = draw(3, 1003, device=kernel_device, dtype=torch.float32)
    targets = targets.clamp(min=0)
    found = _launch_forward(logits, targets, 0.7, False, {"lanes": 32, "num_warps": 1})
    out = token_logprobs(logits, targets, temperature=0.7, impl="reference")
    torch.testing.assert_close(found[2] - found[0], out.logprobs)
    torch.testing.assert_close(found[1], out.entropy)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logprobs_and_entropy_match_the_reference_with_their_gradients(kernel_device, dtype):
    logits, targets = draw(6, 300, dtype, kernel_device)
    targets = targets.clamp(min=0)
    scale = torch.linspace(-1, 2, 6, device=kernel_device)

    def run(logits, impl):
        logits = logits.clone().requires_grad_()
        out = token_logprobs(logits, targets, temperature=0.7, impl=impl)
        total = (scale * out.logprobs).sum() + (scale.flip(0) * out.entropy).sum()
        return *(x.detach() for x in out), torch.autograd.grad(total, logits)[0]

    found, exact = run(logits, "triton"), run(logits.double(), "reference")
    assert found[0].dtype == found[1].dtype == torch.float32
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1].double(), exact[1], rtol=1e-5, atol=1e-5)
    assert_kernel_close(found[2], exact[2], grad=True)


@pytest.mark.parametrize("impl", IMPLS)
def test_logprobs_are_never_positive_and_entropy_lies_between_zero_and_log_v(kernel_device, impl):
    logits, targets = draw(12, 50, torch.float32, kernel_device)
    for sharpness in (0.0, 1.0, 30.0, 1e4):
        z = logits * sharpness
        for aim in (targets.clamp(min=0), z.argmax(1)):
            out = token_logprobs(z, aim, impl=impl)
            assert (out.logprobs <= 0).all()
            assert (out.entropy >= 0).all()
            assert (out.entropy <= math.log(50) + 1e-5).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_forbidden_words_have_no_part_in_it(kernel_device, impl):
    logits, targets = draw(4, 40, torch.float32, kernel_device)
    targets.fill_(3)
    wide = torch.full((4, 90), -torch.inf, device=kernel_device)
    wide[:, :40] = logits
    wide.requires_grad_()
    out = token_logprobs(wide, targets, impl=impl)
    expected = token_logprobs(logits, targets, impl="reference")
    torch.testing.assert_close(tuple(out), tuple(expected))
    (grad,) = torch.autograd.grad((out.logprobs + out.entropy).sum(), wide)
    assert grad[:, :40].isfinite().all()
    assert not grad[:, 40:].any()


def test_what_is_not_a_number_stays_so(kernel_device):
    logits, targets = draw(2, 40, torch.float32, kernel_device)
    logits[0, 5] = torch.nan
    out = token_logprobs(logits, targets.clamp(min=0), impl="triton")
    assert out.logprobs.isnan().tolist() == [True, False]


@pytest.mark.parametrize("impl", IMPLS)
def test_a_batch_of_ignored_tokens_has_a_loss_of_zero(kernel_device, impl):
    logits, targets = draw(3, 20, torch.float32, kernel_device)
    loss, grad = with_grad(logits, targets.fill_(IGNORED), impl=impl)
    assert loss.item() == 0
    assert not grad.any()


@pytest.mark.parametrize("impl", IMPLS)
def test_no_tokens_have_a_loss_of_zero(kernel_device, impl):
    logits, targets = draw(0, 20, torch.float32, kernel_device)
    loss, grad = with_grad(logits, targets, impl=impl)
    assert loss.item() == 0
    assert grad.shape == (0, 20)


def test_strided_logits_are_read_and_get_a_gradient_of_their_shape(kernel_device):
    wide, targets = draw(5, 70, torch.float32, kernel_device)
    targets = targets.clamp(max=30)
    for view in (wide[:, 7:60], wide[:, ::2], wide[:1].expand(5, 70)):
        view = view.detach().requires_grad_()
        (grad,) = torch.autograd.grad(cross_entropy(view, targets, impl="triton"), view)
        (expected,) = torch.autograd.grad(cross_entropy(view, targets, impl="reference"), view)
        torch.testing.assert_close(grad, expected)


def test_in_place_the_gradient_takes_the_logits_memory_and_a_second_backward_is_refused(
    kernel_device,
):
    leaf, targets = draw(5, 37, torch.bfloat16, kernel_device)
    leaf.requires_grad_()
    logits = leaf * 1.0
    places = []
    logits.register_hook(lambda grad: places.append(grad.data_ptr()))
    loss = cross_entropy(logits, targets, in_place=True, impl="triton")
    loss.backward(retain_graph=True)
    _, expected = with_grad(leaf.detach(), targets, reduction="sum", impl="triton")
    counted = (targets != IGNORED).sum()
    assert places == [logits.data_ptr()]
    assert_kernel_close(leaf.grad, expected / -counted, grad=True)  # with_grad weighs by -1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_in_place_the_backward_can_run_twice(kernel_device):
    logits, targets = draw(5, 37, torch.float32, kernel_device)
    logits.requires_grad_()
    loss = cross_entropy(logits, targets, impl="triton")
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (second,) = torch.autograd.grad(loss, logits)
    assert torch.equal(first, second)


def test_the_operator_keeps_its_word(kernel_device):
    logits, targets = draw(3, 20, torch.float32, kernel_device)
    op = torch.ops.nanokernels.token_share.default
    check_operator(op, logits.requires_grad_(), targets, 0.7, False)


@pytest.mark.parametrize("in_place", [False, True])
def test_it_compiles_into_one_graph(kernel_device, in_place):
    leaf, targets = draw(5, 37, torch.float32, kernel_device)
    leaf.requires_grad_()

    def total(leaf):
        return cross_entropy(leaf * 2, targets, in_place=in_place, impl="triton")

    run = torch.compile(total, fullgraph=True, backend="aot_eager")
    (grad,) = torch.autograd.grad(run(leaf), leaf)
    (expected,) = torch.autograd.grad(cross_entropy(leaf * 2, targets), leaf)
    torch.testing.assert_close(grad, expected)


def test_bad_arguments_are_errors_that_say_the_fix():
    logits, targets = draw(3, 5)
    with pytest.raises(ValueError, match=r"logits=torch\.float64\(5,\) is no matrix"):
        cross_entropy(logits[0], targets)
    with pytest.raises(ValueError, match=r"targets_T=torch\.int32\(3,\)"):
        cross_entropy(logits, targets.int())
    with pytest.raises(ValueError, match=r"targets_T spans \[5, 5\]"):
        cross_entropy(logits, targets.fill_(5))
    with pytest.raises(ValueError, match="reduction='avg' is unknown"):
        cross_entropy(logits, targets, reduction="avg")
    with pytest.raises(ValueError, match="in_place=True needs rows of adjacent numbers"):
        cross_entropy(logits[:, ::2], targets, in_place=True)
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        token_logprobs(logits, targets, temperature=0)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab", [151_936, 50_257])
def test_the_kernels_match_the_reference_at_real_shapes(vocab):
    logits, targets = draw(128, vocab, torch.bfloat16, "cuda")
    found = with_grad(logits, targets)
    exact = with_grad(logits.double(), targets, impl="reference")
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-5, atol=1e-5)
    assert_kernel_close(found[1], exact[1], grad=True)


@pytest.mark.gpu
def test_offsets_beyond_31_bits_are_right():
    logits = torch.randn(15_000, 151_936, device="cuda", dtype=torch.bfloat16)
    targets = torch.randint(151_936, (15_000,), device="cuda")
    end = logits[-20:].clone()
    logits.requires_grad_()
    loss = cross_entropy(logits, targets, in_place=True, reduction="sum")
    (grad,) = torch.autograd.grad(loss, logits)
    expected = with_grad(end.double(), targets[-20:], reduction="sum", impl="reference")[1]
    assert_kernel_close(grad[-20:], -expected, grad=True)  # with_grad weighs a scalar by -1


@pytest.mark.gpu
def test_a_cuda_graph_holds_forward_and_backward():
    logits, targets = draw(64, 5000, torch.bfloat16, "cuda")
    expected = with_grad(logits, targets)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = with_grad(logits, targets)
    graph.replay()
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
