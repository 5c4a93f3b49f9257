import math

import pytest
import torch

from nanorlhf.nanokernels.picked_logits import logits_buffer, picked_logits, write_picked
from nanorlhf.nanokernels.vocab_tiles import Guess, Line, aligned, exponentials, statistics

SMALL = {"block_m": 16, "block_n": 32, "block_k": 16, "num_warps": 4, "num_stages": 1}
SCALE = 0.8


def draw(tokens, width, vocab, device, dtype=torch.float32):
    hidden = torch.randn(tokens, width, device=device).to(dtype)
    weight = torch.randn(vocab, width, device=device).to(dtype)
    return hidden, weight, hidden.double() @ weight.double().t() * SCALE


@pytest.mark.parametrize("programs", [1, 100])
@pytest.mark.parametrize("shape", [(37, 40, 70), (1, 16, 1), (16, 20, 64), (33, 8, 31)])
def test_statistics_add_up_over_ragged_tiles(kernel_device, shape, programs):
    hidden, weight, y = draw(*shape, kernel_device)
    found = statistics(hidden, weight, scale=SCALE, config=SMALL | {"programs": programs})
    logp = (y * math.log(2)).log_softmax(1)
    torch.testing.assert_close(
        found.lse_T.double(), (y * math.log(2)).logsumexp(1), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        found.entropy_T.double(), -(logp.exp() * logp).sum(1), rtol=1e-5, atol=1e-5
    )


def test_a_guess_stores_exponentials_and_leaves_the_sums_as_they_are(kernel_device):
    hidden, weight, y = draw(37, 24, 70, kernel_device)
    shift = torch.linspace(-3, 3, 37, device=kernel_device)
    out = logits_buffer(37, 70, hidden).fill_(torch.nan)
    config = SMALL | {"programs": 1}
    found = statistics(hidden, weight, scale=SCALE, guess=Guess(shift, out), config=config)
    alone = statistics(hidden, weight, scale=SCALE, config=config)
    assert torch.equal(found.lse_T, alone.lse_T)
    expected = (y - shift[:, None].double()).exp2().float()
    torch.testing.assert_close(out[:, :70], expected, rtol=1e-4, atol=1e-7)
    assert out[:, 70:].isnan().all()


def test_a_guess_far_below_is_cut_off_and_not_infinite(kernel_device):
    hidden, weight, _ = draw(3, 8, 5, kernel_device)
    out = logits_buffer(3, 5, hidden)
    shift = torch.full((3,), -1e6, device=kernel_device)
    statistics(hidden, weight, scale=SCALE, guess=Guess(shift, out))
    assert out[:, :5].isfinite().all()


@pytest.mark.parametrize("wanted", [0, 1])
def test_exponentials_follow_their_line_where_they_are_wanted(kernel_device, wanted):
    hidden, weight, y = draw(37, 24, 70, kernel_device)
    line = Line(*torch.randn(3, 37, device=kernel_device))
    out = logits_buffer(37, 70, hidden).fill_(torch.nan)
    flag = torch.tensor([wanted], dtype=torch.int32, device=kernel_device)
    config = SMALL | {"programs": 1}
    exponentials(hidden, weight, line, out, scale=SCALE, wanted=flag, config=config)
    d = y - line.shift_T[:, None].double()
    expected = d.exp2() * (line.a_T[:, None] + line.b_T[:, None] * d)
    if wanted:
        torch.testing.assert_close(out[:, :70], expected.float(), rtol=1e-3, atol=1e-4)
        assert out[:, 70:].isnan().all()
    else:
        assert out.isnan().all()


@pytest.mark.parametrize("width", [1, 40, 1500])
def test_picked_logits_are_zero_outside_the_vocabulary(kernel_device, width):
    hidden, weight, y = draw(4, width, 9, kernel_device)
    found = picked_logits(hidden, weight, torch.tensor([8, -1, 0, 9], device=kernel_device))
    expected = torch.stack((y[0, 8], y[0, 0] * 0, y[2, 0], y[0, 0] * 0)) / SCALE
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_values_of_rows_outside_the_vocabulary_land_where_nobody_reads():
    out = torch.zeros(3, 64)
    write_picked(out, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4, -1, 7]), vocab=5)
    assert out[:, :5].tolist() == [[0, 0, 0, 0, 1], [0] * 5, [0] * 5]
    assert logits_buffer(1, 64, out).shape == (1, 128)  # always a column more than words


def test_aligned_matrices_have_the_same_product():
    x, w = torch.randn(3, 13).bfloat16(), torch.randn(4, 13).bfloat16()
    assert aligned(x).shape == (3, 16)
    torch.testing.assert_close(
        aligned(x).float() @ aligned(w).float().t(), x.float() @ w.float().t()
    )
    shifted = torch.randn(33).bfloat16()[1:].view(2, 16)
    assert shifted.data_ptr() % 16
    assert aligned(shifted).data_ptr() % 16 == 0
    assert torch.equal(aligned(shifted), shifted)


@pytest.mark.gpu
def test_more_tokens_than_one_launch_takes_give_the_same_sums():
    hidden, weight, _ = draw(10_000, 1024, 1008, "cuda", torch.bfloat16)
    found = statistics(hidden, weight, scale=SCALE)
    part = statistics(hidden[-77:], weight, scale=SCALE)
    assert torch.equal(found.lse_T[-77:], part.lse_T)
    assert torch.equal(found.entropy_T[-77:], part.entropy_T)


@pytest.mark.gpu
def test_a_picked_logit_is_rounded_as_the_sum_of_all_is():
    hidden, weight, _ = draw(500, 1024, 1, "cuda", torch.bfloat16)
    same = weight.expand(16, -1).contiguous()
    lse = statistics(hidden, same, scale=1.0 / math.log(2)).lse_T - math.log(16)
    picked = picked_logits(hidden, same, torch.zeros(500, dtype=torch.int64, device="cuda"))
    # What tensor cores cut off is some 2e-6 of a logit.
    torch.testing.assert_close(lse, picked, rtol=5e-7, atol=1e-6)
