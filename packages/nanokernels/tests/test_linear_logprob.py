import math
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from nanorlhf.nanokernels import linear_logprob
from nanorlhf.nanokernels.linear_logprob import reference


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


def with_grads(fn, hidden, weight, targets, **options):
    """Values and the gradients of a sum that weighs both outputs differently for each token."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    out = fn(hidden, weight, targets, **options)
    scale = torch.linspace(-1, 2, len(targets), device=hidden.device)
    total = (scale * out.logprobs).sum() + (scale.flip(0) * out.entropy).sum()
    return *(x.detach() for x in out), *torch.autograd.grad(total, (hidden, weight))


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


def test_reference_matches_its_definition():
    hidden, weight, targets = draw(4, 3, 6)
    expected = logprob_by_definition(hidden, weight, targets, 0.7)
    found = reference(hidden, weight, targets, temperature=0.7)
    torch.testing.assert_close(tuple(found), expected)


def test_both_outputs_pass_gradcheck_together_and_alone():
    hidden, weight, targets = draw(5, 3, 6)
    hidden.requires_grad_()
    weight.requires_grad_()

    def run(hidden, weight):
        return tuple(linear_logprob(hidden, weight, targets, temperature=0.7, chunk_tokens=2))

    assert torch.autograd.gradcheck(run, (hidden, weight))
    assert torch.autograd.gradcheck(lambda h, w: run(h, w)[0], (hidden, weight))
    assert torch.autograd.gradcheck(lambda h, w: run(h, w)[1], (hidden, weight))


def test_only_the_gradients_asked_for_are_made():
    hidden, weight, targets = draw(3, 4, 5)
    linear_logprob(hidden, weight.requires_grad_(), targets).logprobs.sum().backward()
    assert hidden.grad is None
    assert weight.grad is not None


def test_bfloat16_inputs_give_logprobs_of_float32_accuracy():
    hidden, weight, targets = draw(64, 256, 1000, torch.bfloat16)
    hidden *= 0.3
    found = with_grads(linear_logprob, hidden, weight, targets)
    exact = with_grads(reference, hidden.double(), weight.double(), targets)
    assert found[0].dtype == found[1].dtype == torch.float32
    assert (found[0] - exact[0]).abs().max() < 1e-4
    assert (found[1] - exact[1]).abs().max() < 1e-4
    for grad, expected in zip(found[2:], exact[2:], strict=True):
        assert (grad - expected).norm() / expected.norm() < 8e-3


def test_logprobs_are_never_positive_and_entropy_lies_between_zero_and_log_v():
    hidden, weight, targets = draw(200, 8, 50, torch.float32)
    for sharpness in (0.0, 1.0, 30.0, 1e4):
        best = (hidden @ weight.t()).argmax(dim=1)
        for aim in (targets, best):
            out = linear_logprob(hidden * sharpness, weight, aim)
            assert (out.logprobs <= 0).all()
            assert (out.entropy >= 0).all()
            assert (out.entropy <= math.log(50) + 1e-5).all()


def test_no_tokens_give_no_tokens_and_zero_gradients():
    hidden, weight, targets = draw(0, 4, 5)
    found = with_grads(linear_logprob, hidden, weight, targets)
    assert found[0].shape == found[1].shape == (0,)
    assert found[2].shape == (0, 4)
    assert torch.equal(found[3], torch.zeros(5, 4, dtype=torch.float64))


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


def test_two_ranks_that_share_the_vocabulary_equal_one():
    hidden, weight, targets = draw(9, 4, 11)
    expected = with_grads(linear_logprob, hidden, weight, targets, temperature=0.8)
    store, cuts = dist.HashStore(), [0, 3, 11]

    def run(rank):
        group = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=60))
        return with_grads(
            linear_logprob,
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


@pytest.mark.gpu
def test_a_real_vocabulary_on_cuda_is_as_accurate_as_float64():
    hidden, weight, targets = draw(1000, 1024, 151_936, torch.bfloat16, "cuda")
    hidden *= 0.1
    found = with_grads(linear_logprob, hidden, weight, targets, chunk_tokens=512)
    exact = reference(hidden.double(), weight.double(), targets)
    assert (found[0] - exact.logprobs).abs().max() < 1e-4
    assert (found[1] - exact.entropy).abs().max() < 1e-3
    part = slice(0, 64)
    grads = with_grads(linear_logprob, hidden[part], weight, targets[part])[2:]
    expected = with_grads(reference, hidden[part].double(), weight.double(), targets[part])[2:]
    for grad, want in zip(grads, expected, strict=True):
        assert (grad - want).norm() / want.norm() < 8e-3
