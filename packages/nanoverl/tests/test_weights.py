"""Weights on their way from trainer to rollout."""

import pickle

import pytest
import torch

from nanorlhf.nanoverl.weights import Inbox, Outbox


def test_cpu_weights_arrive_under_their_names():
    sent = {"a": torch.randn(3, 2), "b": torch.arange(4.0)}
    first = Outbox(processes=True).pack([("a", sent["a"].requires_grad_())])
    second = Outbox(processes=True).pack([("b", sent["b"])])
    arrived = dict(Inbox().unpack(first, pickle.loads(pickle.dumps(second))))
    assert arrived.keys() == sent.keys()
    assert all(torch.equal(arrived[name], sent[name]) for name in sent)
    assert not arrived["a"].requires_grad


@pytest.mark.gpu
def test_cuda_weights_travel_as_one_handle_that_stays_the_same():
    outbox = Outbox(processes=True)
    weights = {"w": torch.ones(1024, 1024, device="cuda"), "b": torch.ones(3, device="cuda")}
    first, second = (outbox.pack(weights.items()) for _ in range(2))
    assert first.handle == second.handle
    assert len(pickle.dumps(first)) < 10_000
    assert not first.tensors


@pytest.mark.gpu
def test_cuda_weights_stay_tensors_within_one_process():
    weights = {"w": torch.ones(2, 2, device="cuda")}
    shipment = Outbox(processes=False).pack(weights.items())
    assert dict(Inbox().unpack(shipment))["w"].data_ptr() == weights["w"].data_ptr()
