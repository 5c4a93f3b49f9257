import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="tensors need torch")

import nanorlhf.nanoray as nanoray  # noqa: E402  after the skip

WAIT_S = 60


@pytest.fixture(scope="module")
def ray():
    nanoray.shutdown()
    nanoray.init(num_cpus=2, preload=("torch",))
    yield nanoray
    nanoray.shutdown()


TENSORS = {
    "large": torch.arange(300_000, dtype=torch.float32),
    "small": torch.arange(3),
    "bf16": torch.randn(400, 500).bfloat16(),
    "half": torch.randn(4).half(),
    "bool": torch.tensor([True, False]),
    "complex": torch.tensor([1 + 2j]).conj(),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 3),
    "strided": torch.arange(300_000).reshape(500, 600).T,
    "fp8": torch.randn(8).to(torch.float8_e4m3fn),
    "grad": torch.ones(3, requires_grad=True),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_come_back_as_they_were(ray, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ray.get(ray.put(TENSORS[name]))
    torch.testing.assert_close(found, TENSORS[name], rtol=0, atol=0)
    assert found.requires_grad == TENSORS[name].requires_grad


def test_a_tensor_is_read_without_a_copy(ray):
    ref = ray.put({"w": TENSORS["large"]})
    assert ray.get(ref)["w"].data_ptr() == ray.get(ref)["w"].data_ptr()


def test_writing_to_a_tensor_changes_it_for_the_writer_alone(ray):
    @ray.remote
    class Writer:
        def add(self, weights):
            weights["w"] += 1
            return float(weights["w"][0])

    ref = ray.put({"w": torch.zeros(300_000)})
    writer = Writer.remote()
    assert ray.get([writer.add.remote(ref) for _ in range(3)], timeout=WAIT_S) == [1, 1, 1]
    mine = ray.get(ref)["w"]
    mine += 5
    assert ray.get(writer.add.remote(ref), timeout=WAIT_S) == 1
    del mine
    assert ray.get(ref)["w"].sum() == 0


def test_a_trainer_publishes_to_a_rollout(ray):
    @ray.remote
    class Trainer:
        def __init__(self):
            import torch

            self.weights = {"a": torch.zeros(200_000), "b": torch.zeros(3, dtype=torch.bfloat16)}

        def step(self):
            for weight in self.weights.values():
                weight += 1
            return self.weights

    @ray.remote
    class Rollout:
        def update(self, weights):
            self.total = sum(float(weight.float().mean()) for weight in weights.values())

        def sample(self):
            return self.total

    trainer, rollout = Trainer.remote(), Rollout.remote()
    for step in range(1, 6):
        rollout.update.remote(trainer.step.remote())
        assert ray.get(rollout.sample.remote(), timeout=WAIT_S) == 2 * step


def test_modules_and_arrays_travel_together(ray):
    value = {"layer": torch.nn.Linear(300, 300), "array": np.ones(100_000)}
    found = ray.get(ray.put(value))
    torch.testing.assert_close(found["layer"].weight, value["layer"].weight)
    assert found["layer"].weight.requires_grad


def test_the_zygote_has_one_thread_and_no_cuda(ray):
    @ray.remote
    def look():
        import os
        import sys

        threads = os.listdir(f"/proc/{os.getppid()}/task")
        return len(threads), "torch" in sys.modules, torch.cuda.is_initialized()

    assert ray.get(look.remote(), timeout=WAIT_S) == (1, True, False)


@pytest.mark.gpu
def test_cuda_tensors_are_refused_with_the_way_out(ray):
    with pytest.raises(ray.SerializationError, match=r"send tensor.cpu\(\)"):
        ray.put(torch.ones(3, device="cuda"))
