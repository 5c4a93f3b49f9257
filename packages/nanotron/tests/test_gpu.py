import numpy as np
import pytest
import torch

from nanorlhf.nanotron import AdamWConfig, Engine, Mesh, Microbatch, Qwen3, next_token_loss

pytestmark = pytest.mark.gpu


def batches():
    rng = np.random.default_rng(0)
    return [
        Microbatch.from_sequences(
            [rng.integers(0, 32, size=n) for n in rng.integers(2, 40, size=6)]
        )
        for _ in range(3)
    ]


@pytest.fixture(scope="module")
def wide_dir(tmp_path_factory, tiny_config):
    from nanorlhf.nanotron import init_checkpoint

    path = tmp_path_factory.mktemp("models") / "wide"
    init_checkpoint({**tiny_config, "head_dim": 16, "hidden_size": 64}, path, seed=1)
    return path


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 3e-2)], ids=str
)
def test_training_on_a_gpu_equals_the_cpu(wide_dir, dtype, tolerance):
    def train(device, dtype):
        model = Qwen3.from_pretrained(wide_dir, Mesh(), dtype=dtype, device=device)
        engine = Engine(model, optimizer=AdamWConfig(lr=1e-3))
        engine.backward(batches(), next_token_loss)
        gradients = {name: grad.clone().cpu() for name, grad in engine.gradients()}
        return gradients, [engine.train_step(batches(), next_token_loss) for _ in range(3)]

    want, steps = train("cpu", torch.float32)
    got, steps_on_gpu = train("cuda", dtype)
    for name, grad in want.items():
        assert float((got[name] - grad).norm() / grad.norm()) < tolerance, name
    for step, step_on_gpu in zip(steps, steps_on_gpu, strict=True):
        assert step_on_gpu == pytest.approx(step, rel=tolerance)


def test_recomputation_on_a_gpu_gives_the_same_gradients(wide_dir):
    def gradients(recompute):
        model = Qwen3.from_pretrained(wide_dir, Mesh(), device="cuda")
        engine = Engine(model, optimizer=AdamWConfig(), recompute=recompute)
        engine.backward(batches(), next_token_loss)
        return dict(engine.gradients())

    torch.testing.assert_close(gradients(True), gradients(False))
