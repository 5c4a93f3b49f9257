"""Devices of trainer and rollout."""

import pytest

from nanorlhf.nanoverl import Layout
from nanorlhf.nanoverl.placement import place, place_here


def test_two_cores_train_with_two_ranks_or_with_one_beside_a_rollout():
    sft = place(Layout(dp="auto"), device="cpu", slots=2, threads=2)
    rl = place(Layout(dp="auto"), replicas=1, device="cpu", slots=2, threads=2)
    assert (sft.layout.dp, sft.threads) == (2, 1)
    assert (rl.layout.dp, rl.trainer, rl.rollout, rl.threads) == (1, ["cpu"], ["cpu"], 1)


def test_one_gpu_is_shared_and_eight_are_divided():
    one = place(Layout(dp="auto"), replicas=1, device="cuda", slots=1)
    assert (one.trainer, one.rollout) == (["cuda:0"], ["cuda:0"])
    eight = place(Layout(dp="auto", tp=2), replicas=2, device="cuda", slots=8)
    assert eight.layout.dp == 3
    assert eight.rollout == ["cuda:6", "cuda:7"]


def test_engines_share_the_devices_of_the_trainer_where_there_are_no_others():
    placed = place(Layout(dp=2), replicas=3, device="cuda", slots=2)
    assert placed.rollout == ["cuda:0", "cuda:1", "cuda:0"]


def test_two_ranks_of_a_trainer_on_one_gpu_are_refused():
    with pytest.raises(ValueError, match=r"dp\*pp\*tp=3 ranks on 2 GPUs: .*at most 2"):
        place(Layout(dp=3), device="cuda", slots=2)


def test_cuda_on_a_machine_without_it_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"device='cuda'.*use device='cpu'"):
        place_here(Layout(), device="cuda")


def test_without_processes_there_is_one_rank():
    assert place_here(Layout(dp="auto"), device="cpu", processes=False).layout.dp == 1
