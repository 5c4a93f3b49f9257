"""Weights on their way from trainer to rollout."""

import pickle

import pytest
import torch

from nanorlhf.nanoverl.weights import Shipment, pack, unpack


def test_cpu_weights_arrive_under_their_names():
    sent = {"a": torch.randn(3, 2), "b": torch.arange(4.0)}
    first = pack([("a", sent["a"].requires_grad_())])
    second = pack([("b", sent["b"])])
    arrived = dict(unpack(first, pickle.loads(pickle.dumps(second))))
    assert arrived.keys() == sent.keys()
    assert all(torch.equal(arrived[name], sent[name]) for name in sent)
    assert not arrived["a"].requires_grad


def test_nothing_shipped_is_nothing_received():
    assert dict(unpack(Shipment({}))) == {}


@pytest.mark.gpu
def test_cuda_weights_travel_as_handles_and_not_as_copies():
    shipment = pack([("w", torch.ones(1024, 1024, device="cuda"))])
    assert len(pickle.dumps(shipment)) < 10_000
