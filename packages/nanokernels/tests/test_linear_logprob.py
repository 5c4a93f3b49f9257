import math
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from nanorlhf.nanokernels import linear_logprob
from nanorlhf.nanokernels.linear_logprob import at_most_zero
from nanorlhf.nanokernels.linear_share import share_of
from nanorlhf.nanokernels.testing import assert_kernel_close, check_operator

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def logprob_by_definition(hidden, weight, targets, temperature):
    """One token at a time, from its whole distribution."""
    logprobs, entropy = [], []
    for h, target in zip(hidden, targets.tolist(), strict=True):
        p = (weight @ h / temperature).softmax(0)
        logprobs.append(p[target].log())
        entropy.append(-(p * p.log()).sum())
    return torch.stack(logprobs), torch.stack(entropy)


def draw(tokens, hidden_size, vocab, dtype=torch.float64, device="cpu"):
    hidden = torch.randn(tokens, hidden_size, device=device).to(dtype)
    weight = torch.randn(vocab, hidden_size, device=device).to(dtype)
    return hidden, weight, torch.randint(vocab, (tokens,), device=device)


def with_grads(hidden, weight, targets, **options):
    """Values and the gradients of a sum that weighs both outputs differently for each token."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    out = linear_logprob(hidden, weight, targets, **options)
    scale = torch.linspace(-1, 2, len(targets), device=hidden.device)
    total = (scale * out.logprobs).sum() + (scale.flip(0) * out.entropy).sum()
    return *(x.detach() for x in out), *torch.autograd.grad(total, (hidden, weight))


def assert_accurate(found, exact, *, limit=1e-5):
    """Values of float32 accuracy whatever the inputs' dtype, gradients of their dtype's."""
    assert found[0].dtype == found[1].dtype == torch.float32
    for value, expected in zip(found[:2], exact[:2], strict=True):
        assert (value.double() - expected).abs().max() < limit
    for grad, expected in zip(found[2:], exact[2:], strict=True):
        assert_kernel_close(grad, expected, grad=True)


@pytest.mark.parametrize("chunk_tokens", [1, 3, 4096])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_it_matches_its_definition_however_it_is_chunked(chunk_tokens, temperature):
    hidden, weight, targets = draw(7, 5, 11)
    out = linear_logprob(
        hidden, weight, targets, temperature=temperature, chunk_tokens=chunk_tokens
    )
    expected = logprob_by_definition(hidden, weight, targets, temperature)
    torch.testing.assert_close(out.logprobs, expected[0])
    torch.testing.assert_close(out.entropy, expected[1])


def test_both_outputs_pass_gradcheck_together_and_alone():
    hidden, weight, targets = draw(5, 3, 6)
    hidden.requires_grad_()
    weight.requires_grad_()

    def run(hidden, weight):
        return tuple(linear_logprob(hidden, weight, targets, temperature=0.7, chunk_tokens=2))

    assert torch.autograd.gradcheck(run, (hidden, weight))
    assert torch.autograd.gradcheck(lambda h, w: run(h, w)[0], (hidden, weight))
    assert torch.autograd.gradcheck(lambda h, w: run(h, w)[1], (hidden, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(70, 40, 300), (3, 13, 37), (1, 16, 2), (129, 64, 257)])
def test_the_kernels_match_the_reference_forward_and_backward(kernel_device, dtype, shape):
    hidden, weight, targets = draw(*shape, dtype, kernel_device)
    weight *= 0.3
    options = {"temperature": 0.7, "chunk_tokens": 50}
    found = with_grads(hidden, weight, targets, impl="triton", **options)
    exact = with_grads(hidden.double(), weight.double(), targets, impl="reference", **options)
    assert_accurate(found, exact)


def test_rows_of_any_stride_and_start_are_read(kernel_device):
    hidden, weight, targets = draw(6, 24, 50, torch.bfloat16, kernel_device)
    wide = torch.randn(50, 30, device=kernel_device).to(torch.bfloat16)
    wide[:, 3:27] = weight
    found = with_grads(hidden.t().contiguous().t(), wide[:, 3:27], targets, impl="triton")
    assert_accurate(found, with_grads(hidden.double(), weight.double(), targets, impl="reference"))


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("wanted", [0, 1])
def test_only_the_gradients_asked_for_are_made(kernel_device, impl, wanted):
    *inputs, targets = draw(3, 4, 5, torch.float32, kernel_device)
    inputs[wanted].requires_grad_()
    linear_logprob(*inputs, targets, impl=impl).logprobs.sum().backward()
    assert inputs[wanted].grad.norm() > 0
    assert inputs[1 - wanted].grad is None


def test_the_reference_gives_logprobs_of_float32_accuracy_from_bfloat16():
    hidden, weight, targets = draw(64, 256, 1000, torch.bfloat16)
    hidden *= 0.3
    found = with_grads(hidden, weight, targets)
    exact = with_grads(hidden.double(), weight.double(), targets)
    assert found[0].dtype == found[1].dtype == torch.float32
    assert (found[0] - exact[0]).abs().max() < 1e-4
    assert (found[1] - exact[1]).abs().max() < 1e-4
    for grad, expected in zip(found[2:], exact[2:], strict=True):
        assert_kernel_close(grad, expected, grad=True)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_logprobs_are_never_positive_and_entropy_lies_between_zero_and_log_v(kernel_device, impl):
    hidden, weight, targets = draw(40, 8, 50, torch.float32, kernel_device)
    for sharpness in (0.0, 1.0, 30.0, 1e4):
        best = (hidden @ weight.t()).argmax(dim=1)
        for aim in (targets, best):
            out = linear_logprob(hidden * sharpness, weight, aim, impl=impl)
            assert (out.logprobs <= 0).all()
            assert (out.entropy >= 0).all()
            assert (out.entropy <= math.log(50) + 1e-5).all()


def test_what_is_cut_to_zero_keeps_its_gradient():
    x = torch.tensor([1e-6, -1.0, 0.0], requires_grad=True)
    assert at_most_zero(x).tolist() == [0, -1, 0]
    assert torch.autograd.grad(at_most_zero(x).sum(), x)[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_no_tokens_give_no_tokens_and_zero_gradients(kernel_device, impl):
    hidden, weight, targets = draw(0, 4, 5, torch.float32, kernel_device)
    found = with_grads(hidden, weight, targets, impl=impl)
    assert found[0].shape == found[1].shape == (0,)
    assert found[2].shape == (0, 4)
    assert torch.equal(found[3], torch.zeros_like(weight))


def test_bad_arguments_are_errors_that_say_the_fix():
    hidden, weight, targets = draw(3, 4, 5)
    with pytest.raises(ValueError, match=r"weight_VC=\(5, 3\) do not multiply"):
        linear_logprob(hidden, weight[:, :3], targets)
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        linear_logprob(hidden, weight, targets, temperature=0)
    with pytest.raises(ValueError, match=r"targets_T spans \[0, 5\]"):
        linear_logprob(hidden, weight, torch.tensor([0, 5, 1]))
    with pytest.raises(ValueError, match=r"targets_T=torch\.int32\(3,\)"):
        linear_logprob(hidden, weight, targets.int())
    with pytest.raises(ValueError, match=r"hidden is torch\.float64, weight torch\.float32"):
        linear_logprob(hidden, weight.float(), targets)
    with pytest.raises(ValueError, match="chunk_tokens=0 must be at least 1"):
        linear_logprob(hidden, weight, targets, chunk_tokens=0)
    with pytest.raises(ValueError, match="weight on cpu, targets on meta; move them"):
        linear_logprob(hidden, weight, targets.to("meta"))


def test_the_operator_keeps_its_word(kernel_device):
    hidden, weight, targets = draw(5, 8, 20, torch.float32, kernel_device)
    inputs = hidden.requires_grad_(), weight.requires_grad_(), targets
    check_operator(torch.ops.nanokernels.linear_share.default, *inputs, 0.7, 2)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_it_compiles_into_one_graph(kernel_device, impl):
    hidden, weight, targets = draw(5, 8, 20, torch.float32, kernel_device)
    hidden.requires_grad_()

    def total(hidden):
        out = linear_logprob(hidden, weight, targets, impl=impl, chunk_tokens=2)
        return (out.logprobs - out.entropy).sum()

    run = torch.compile(total, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        torch.autograd.grad(run(hidden), hidden), torch.autograd.grad(total(hidden), hidden)
    )


def test_a_rank_knows_its_rows_and_nothing_of_targets_elsewhere(kernel_device):
    hidden, weight, _ = draw(6, 8, 20, torch.float32, kernel_device)
    rows = torch.tensor([0, -1, 19, 20, 5, -300], device=kernel_device)
    options = {"temperature": 0.7, "chunk_tokens": 4}

    def run(hidden, weight, impl):
        inputs = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        share = share_of(*inputs, rows, impl=impl, **options)
        scale = torch.linspace(-1, 2, 18, device=kernel_device)
        total = (torch.cat(tuple(share)) * scale).sum()
        return *(x.detach() for x in share), *torch.autograd.grad(total, inputs)

    found = run(hidden, weight, "triton")
    expected = run(hidden.double(), weight.double(), "reference")
    assert found[2][[1, 3, 5]].tolist() == [0, 0, 0]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_two_ranks_that_share_the_vocabulary_equal_one():
    hidden, weight, targets = draw(9, 4, 11)
    expected = with_grads(hidden, weight, targets, temperature=0.8)
    store, cuts = dist.HashStore(), [0, 3, 11]

    def run(rank):
        group = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=60))
        return with_grads(
            hidden,
            weight[cuts[rank] : cuts[rank + 1]],
            targets,
            temperature=0.8,
            chunk_tokens=4,
            vocab_start=cuts[rank],
            group=group,
        )

    with ThreadPoolExecutor(2) as threads:  # ranks as threads: nothing to start, nothing to leak
        first, second = (f.result(120) for f in [threads.submit(run, rank) for rank in range(2)])
    torch.testing.assert_close(first[:2], expected[:2])
    torch.testing.assert_close(second[:2], expected[:2])
    torch.testing.assert_close(first[2] + second[2], expected[2])
    torch.testing.assert_close(torch.cat([first[3], second[3]]), expected[3])


# Tensor cores cut off where they add: an error in proportion to the logits, 4 and 13 at most here.
@pytest.mark.gpu
@pytest.mark.parametrize(("scale", "limit"), [(0.03, 1e-5), (0.1, 4e-5)])
def test_a_real_vocabulary_on_cuda_is_as_accurate_as_float64(scale, limit):
    hidden, weight, targets = draw(1000, 1024, 151_936, torch.bfloat16, "cuda")
    hidden *= scale
    found = with_grads(hidden, weight, targets, chunk_tokens=512)
    exact = with_grads(
        hidden.double(), weight.double(), targets, impl="reference", chunk_tokens=256
    )
    assert_accurate(found, exact, limit=limit)


@pytest.mark.gpu
def test_sure_tokens_are_exact_however_large_their_logits():
    hidden, weight, _ = draw(1000, 1024, 4800, torch.bfloat16, "cuda")
    best = (hidden.float() @ weight.float().t()).argmax(dim=1)
    logprobs = linear_logprob(hidden, weight, best).logprobs
    exact = linear_logprob(hidden.double(), weight.double(), best, impl="reference").logprobs
    sure = exact > -0.1
    assert sure.sum() > 500
    assert (logprobs - exact)[sure].abs().max() < 2e-5


@pytest.mark.gpu
def test_two_runs_are_equal_bit_for_bit():
    hidden, weight, targets = draw(1000, 1024, 32_003, torch.bfloat16, "cuda")
    first, second = (with_grads(hidden, weight, targets, chunk_tokens=300) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_a_cuda_graph_holds_forward_and_backward():
    hidden, weight, targets = draw(300, 1024, 32_000, torch.bfloat16, "cuda")
    expected = with_grads(hidden, weight, targets)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = with_grads(hidden, weight, targets)
    graph.replay()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
