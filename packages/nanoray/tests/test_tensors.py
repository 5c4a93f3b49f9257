import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="tensors need torch")

import nanorlhf.nanoray as nanoray  # noqa: E402  after the skip
from nanorlhf.nanoray.value import pickled  # noqa: E402

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
    "slice": torch.arange(300_000).reshape(500, 600)[::2, 3:9],
    "expanded": torch.arange(4).expand(3, 4),
    "negated": torch.tensor([1 + 2j]).conj().imag,
    "parameter": torch.nn.Parameter(torch.ones(300, 300)),
    "frozen": torch.nn.Parameter(torch.ones(3), requires_grad=False),
    "int4-like": torch.arange(6, dtype=torch.uint8),
    "sparse": torch.eye(200).to_sparse(),
    "fp8": torch.randn(8).to(torch.float8_e4m3fn),
    "grad": torch.ones(3, requires_grad=True),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_come_back_as_they_were(ray, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ray.get(ray.put(TENSORS[name]))
    torch.testing.assert_close(found, TENSORS[name], rtol=0, atol=0)
    assert type(found) is type(TENSORS[name])
    assert found.requires_grad == TENSORS[name].requires_grad


def test_tensors_of_one_storage_still_share_it(ray):
    base = torch.arange(300_000.0)
    value = {"base": base, "tail": base[100_000:], "bits": base.view(torch.int32)}
    found = ray.get(ray.put(value))
    found["base"][-1] = -1
    assert found["tail"][-1] == -1
    assert found["bits"].data_ptr() == found["base"].data_ptr()
    assert base[-1] == 299_999
    assert pickled(value).size < base.nbytes + 2000


def test_tied_weights_stay_tied(ray):
    embed, head = torch.nn.Embedding(300, 200), torch.nn.Linear(200, 300, bias=False)
    head.weight = embed.weight
    found = ray.get(
        ray.put({"module": torch.nn.ModuleList([embed, head]), "data": embed.weight.data})
    )
    assert found["module"][0].weight is found["module"][1].weight
    assert found["data"].data_ptr() == found["module"][0].weight.data_ptr()


def test_a_slice_of_a_tensor_does_not_carry_the_whole():
    assert pickled(torch.zeros(1_000_000)[:10]).size < 2000


def test_what_hangs_on_a_tensor_travels_with_it(ray):
    tensor = torch.ones(3)
    tensor.tag = "x"
    assert ray.get(ray.put(tensor)).tag == "x"


def test_a_tensor_without_data_stays_without(ray):
    found = ray.get(ray.put(torch.empty(4, 5, device="meta")))
    assert found.device.type == "meta"
    assert found.shape == (4, 5)


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
