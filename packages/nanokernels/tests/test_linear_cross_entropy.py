import pytest
import torch

from nanorlhf.nanokernels import linear_cross_entropy
from nanorlhf.nanokernels.testing import assert_kernel_close, check_operator, relative_error

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
IMPLS = ["triton", "reference"]
REDUCTIONS = ["mean", "sum", "none"]
IGNORED = -100


def loss_by_definition(hidden, weight, targets, reduction):
    """One token at a time."""
    losses = [
        h.new_zeros(()) if target == IGNORED else -(weight @ h).softmax(0)[target].log()
        for h, target in zip(hidden, targets.tolist(), strict=True)
    ]
    if reduction == "none":
        return torch.stack(losses)
    counted = sum(target != IGNORED for target in targets.tolist())
    return sum(losses) / (max(counted, 1) if reduction == "mean" else 1)


def draw(tokens, width, vocab, dtype=torch.float64, device="cpu", scale=0.3):
    hidden = torch.randn(tokens, width, device=device).to(dtype)
    weight = (scale * torch.randn(vocab, width, device=device)).to(dtype)
    targets = torch.randint(vocab, (tokens,), device=device)
    targets[2::5] = IGNORED
    return hidden, weight, targets


def with_grads(hidden, weight, targets, **options):
    """The loss and its gradients, weighed for each token where there is one a token."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    loss = linear_cross_entropy(hidden, weight, targets, **options)
    scale = torch.linspace(-0.6, 2, loss.numel(), device=loss.device).view(loss.shape)
    return loss.detach(), *torch.autograd.grad((loss * scale).sum(), (hidden, weight))


def assert_accurate(found, exact):
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-5, atol=1e-5)
    for grad, expected in zip(found[1:], exact[1:], strict=True):
        assert_kernel_close(grad, expected, grad=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("chunk_tokens", [1, 3, 4096])
def test_the_reference_matches_its_definition(reduction, chunk_tokens):
    hidden, weight, targets = draw(7, 5, 11)
    options = {"reduction": reduction, "chunk_tokens": chunk_tokens}
    found = linear_cross_entropy(hidden, weight, targets, **options)
    torch.testing.assert_close(found, loss_by_definition(hidden, weight, targets, reduction))


def test_the_reference_passes_gradcheck():
    hidden, weight, targets = draw(5, 3, 6)
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets), inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(70, 40, 300), (3, 13, 37)])
def test_the_kernels_match_the_reference(kernel_device, dtype, reduction, shape):
    hidden, weight, targets = draw(*shape, dtype, kernel_device)
    options = {"reduction": reduction, "chunk_tokens": 32}
    found = with_grads(hidden, weight, targets, impl="triton", **options)
    exact = with_grads(hidden.double(), weight.double(), targets, impl="reference", **options)
    assert_accurate(found, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("far_tokens", [1, 40])
def test_tokens_of_huge_loss_have_the_same_accuracy(kernel_device, dtype, far_tokens):
    hidden, weight, targets = draw(40, 16, 50, dtype, kernel_device, scale=1.0)
    hidden[:far_tokens] *= 25
    inputs = hidden, weight, targets
    losses = linear_cross_entropy(*inputs, reduction="none", impl="triton")
    assert losses.max() > 60  # beyond what the guess of the shift serves for
    found = with_grads(*inputs, impl="triton", chunk_tokens=16)
    exact = with_grads(hidden.double(), weight.double(), targets, impl="reference")
    assert_accurate(found, exact)


def test_the_kernels_are_as_exact_as_the_rounding_of_their_results(kernel_device):
    hidden, weight, targets = draw(64, 64, 500, torch.bfloat16, kernel_device)
    found = with_grads(hidden, weight, targets, impl="triton", chunk_tokens=16)
    exact = with_grads(hidden.double(), weight.double(), targets, impl="reference")
    for grad, expected in zip(found[1:], exact[1:], strict=True):
        rounding = relative_error(expected.bfloat16(), expected)
        assert relative_error(grad, expected) < 2.5 * rounding


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("wanted", [0, 1])
def test_only_the_gradients_asked_for_are_made(kernel_device, impl, wanted):
    *inputs, targets = draw(3, 4, 5, torch.float32, kernel_device)
    inputs[wanted].requires_grad_()
    linear_cross_entropy(*inputs, targets, impl=impl).backward()
    assert inputs[wanted].grad.norm() > 0
    assert inputs[1 - wanted].grad is None


@pytest.mark.parametrize("impl", IMPLS)
def test_inputs_without_gradients_have_a_loss_all_the_same(kernel_device, impl):
    hidden, weight, targets = draw(6, 4, 5, torch.float32, kernel_device)
    loss = linear_cross_entropy(hidden, weight, targets, impl=impl)
    assert not loss.requires_grad
    expected = with_grads(hidden, weight, targets, impl="reference")[0]
    torch.testing.assert_close(loss, expected)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight.requires_grad_(), targets, impl=impl)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("tokens", [0, 3])
def test_where_no_token_counts_loss_and_gradients_are_zero(kernel_device, impl, reduction, tokens):
    hidden, weight, targets = draw(tokens, 4, 5, torch.float32, kernel_device)
    targets.fill_(IGNORED)
    found = with_grads(hidden, weight, targets, reduction=reduction, impl=impl)
    assert [x.shape for x in found[1:]] == [(tokens, 4), (5, 4)]
    for x in found:
        assert not x.any()


def test_the_backward_can_run_twice_and_scales_with_what_comes_in(kernel_device):
    hidden, weight, targets = draw(9, 8, 20, torch.bfloat16, kernel_device)
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    loss = linear_cross_entropy(*inputs, targets, impl="triton")
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss * 4, inputs)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a * 4, b)


def test_a_weight_gradient_of_many_chunks_does_not_lose_small_parts(kernel_device):
    hidden, weight, targets = draw(120, 8, 4, torch.bfloat16, kernel_device)
    inputs = hidden, weight, targets.clamp(min=0)
    many = with_grads(*inputs, impl="triton", chunk_tokens=2)[2]
    one = with_grads(*inputs, impl="triton")[2]
    assert relative_error(many, one) < 4e-3


def test_the_operator_keeps_its_word(kernel_device):
    hidden, weight, targets = draw(5, 8, 20, torch.float32, kernel_device)
    inputs = hidden.requires_grad_(), weight.requires_grad_(), targets
    op = torch.ops.nanokernels.linear_cross_entropy.default
    check_operator(op, *inputs, IGNORED, True, 2, True, True)
    check_operator(
        torch.ops.nanokernels.scaled.default,
        *(hidden.detach(), torch.ones((), device=kernel_device), torch.bfloat16),
    )


def test_it_compiles_into_one_graph(kernel_device):
    hidden, weight, targets = draw(5, 8, 20, torch.float32, kernel_device)
    inputs = hidden.requires_grad_(), weight.requires_grad_()

    def loss(hidden, weight):
        return linear_cross_entropy(hidden * 2, weight, targets, impl="triton", chunk_tokens=2)

    run = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(run(*inputs), inputs)
    torch.testing.assert_close(found, torch.autograd.grad(loss(*inputs), inputs))


def test_bad_arguments_are_errors_that_say_the_fix():
    hidden, weight, targets = draw(3, 4, 5)
    with pytest.raises(ValueError, match=r"weight_VC=\(5, 3\) do not multiply"):
        linear_cross_entropy(hidden, weight[:, :3], targets)
    with pytest.raises(ValueError, match="reduction='avg' is unknown"):
        linear_cross_entropy(hidden, weight, targets, reduction="avg")
    with pytest.raises(ValueError, match=r"targets_T spans \[-1, 0\]"):
        linear_cross_entropy(hidden, weight, torch.tensor([0, -1, IGNORED]))


@pytest.mark.gpu
@pytest.mark.parametrize("scale", [0.02, 0.1, 0.5])
def test_a_real_vocabulary_is_as_exact_as_eager_and_better(scale):
    hidden, weight, targets = draw(1000, 1024, 151_936, torch.bfloat16, "cuda", scale)
    found = with_grads(hidden, weight, targets, chunk_tokens=512)
    exact = with_grads(
        hidden.double(), weight.double(), targets, impl="reference", chunk_tokens=256
    )
    assert_accurate(found, exact)


@pytest.mark.gpu
def test_two_runs_are_equal_bit_for_bit():
    inputs = draw(1000, 1024, 32_000, torch.bfloat16, "cuda")
    first, second = (with_grads(*inputs, chunk_tokens=300) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_a_cuda_graph_holds_forward_and_backward():
    inputs = draw(300, 1024, 32_000, torch.bfloat16, "cuda")
    expected = with_grads(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = with_grads(*inputs)
    graph.replay()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_memory_stays_within_two_gibibytes_at_a_real_vocabulary():
    hidden, weight, targets = draw(8192, 1024, 151_936, torch.bfloat16, "cuda")
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.autograd.grad(linear_cross_entropy(*inputs, targets), inputs)
    assert torch.cuda.max_memory_allocated() - before < 2 << 30
