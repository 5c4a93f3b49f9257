import pytest
import torch

from nanorlhf.nanotron import AdamWConfig, LRSchedule
from nanorlhf.nanotron.optimizer import AdamW, Run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_equals_torch_with_and_without_decay(dtype):
    torch.manual_seed(0)
    start = torch.randn(37, dtype=dtype)
    master = start.clone()
    ours = AdamW(
        master,
        [Run(0, 10, False, True), Run(10, 37, True, True)],
        AdamWConfig(lr=1e-2, betas=(0.9, 0.99), eps=1e-7, weight_decay=0.1),
    )
    plain, decayed = (torch.nn.Parameter(part.clone()) for part in (start[:10], start[10:]))
    theirs = torch.optim.AdamW(
        [{"params": [plain], "weight_decay": 0.0}, {"params": [decayed], "weight_decay": 0.1}],
        lr=1e-2,
        betas=(0.9, 0.99),
        eps=1e-7,
    )
    for step in range(5):
        grad = torch.randn(37, dtype=dtype)
        plain.grad, decayed.grad = grad[:10].clone(), grad[10:].clone()
        rate = 1e-2 / (step + 1)
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
        kept = grad.clone()
        ours.step(grad, lr=rate)
        assert torch.equal(grad, kept)
        torch.testing.assert_close(master, torch.cat([plain.data, decayed.data]))


def test_the_schedule_warms_up_to_the_peak_and_falls_to_the_floor():
    rate = LRSchedule(2.0, warmup_steps=4, total_steps=14, min_ratio=0.1, shape="cosine")
    assert [rate(step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert rate(9) == pytest.approx(2.0 * 0.55)
    assert rate(14) == rate(100) == pytest.approx(0.2)
    falling = [rate(step) for step in range(3, 15)]
    assert falling == sorted(falling, reverse=True)


def test_a_constant_schedule_keeps_the_peak():
    rate = LRSchedule(3.0, warmup_steps=0, total_steps=5, min_ratio=0.5, shape="constant")
    assert {rate(step) for step in range(10)} == {3.0}


def test_settings_outside_their_range_are_refused():
    with pytest.raises(ValueError, match=r"betas=\(0.9, 1.0\): each must be in \[0, 1\)"):
        AdamWConfig(betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="eps > 0"):
        AdamWConfig(eps=0)
    with pytest.raises(ValueError, match="warmup_steps=9 must be between 0 and total_steps=3"):
        LRSchedule(1.0, warmup_steps=9, total_steps=3)
    with pytest.raises(ValueError, match="shape='step': choose cosine, linear or constant"):
        LRSchedule(1.0, shape="step")
    with pytest.raises(ValueError, match=r"min_ratio in \[0, 1\]"):
        LRSchedule(1.0, min_ratio=2.0)
