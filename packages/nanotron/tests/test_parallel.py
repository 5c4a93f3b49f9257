"""Every layout is one process: loss, every gradient, the norm and the weights after three steps.

All in float64, so that what remains is rounding: a forgotten or doubled reduction is 1e-2 and more,
a different order of summation 1e-14.
"""

import functools

import numpy as np
import pytest
import torch

from nanorlhf.nanotron import AdamWConfig, Engine, Loss, Mesh, Microbatch, ModelConfig, Qwen3
from nanorlhf.nanotron.testing import run_ranks
from nanorlhf.nanotron.zero import ShardedOptimizer

BASE = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
}
DEFAULTS = {"layers": 3, "tied": True, "bias": False, "head": "lm", "count": 5, "fault": ""}
OPTIMIZER = AdamWConfig(lr=1e-2, weight_decay=0.1)
FAULTS = {
    "qk_norm": ("reduce_partial", lambda self, grad: None),
    "tied": ("reduce_tied", lambda self, grad: None),
    "tied_twice": (
        "reduce_tied",
        lambda self, grad, once=ShardedOptimizer.reduce_tied: (once(self, grad), once(self, grad)),
    ),
    "clip": ("norm", lambda self: torch.linalg.vector_norm(self.grad)),
}


def batch(count, seed=0):
    """Uneven sequences, uneven masks; microbatch 1 has no masked token at all."""
    rng = np.random.default_rng(seed)
    result = []
    for i in range(count):
        lengths = rng.integers(2, 12, size=2 + i % 3)
        sequences = [rng.integers(0, BASE["vocab_size"], size=n) for n in lengths]
        masks = [(rng.random(n) < 0.6) & (i != 1) for n in lengths]
        scale = [rng.random(n) for n in lengths]
        result.append(Microbatch.from_sequences(sequences, masks, {"scale": scale}))
    return result


def lm_loss(out, mb):
    picked = -out.logprobs * mb.fields["scale"] - 0.1 * out.entropy
    return Loss(picked.sum(), {"entropy": out.entropy.sum(), "sequences": torch.tensor(1.0)})


def value_loss(out, mb):
    return Loss(((out.values - mb.fields["scale"]) * mb.mask).square().sum())


def train(rank, layout, options):
    """Train three clipped steps on this rank and return everything it can see."""
    torch.set_num_threads(1)
    options = {**DEFAULTS, **options}
    config = ModelConfig.from_dict(
        {
            **BASE,
            "num_hidden_layers": options["layers"],
            "tie_word_embeddings": options["tied"],
            "attention_bias": options["bias"],
        }
    )
    if options["fault"]:
        setattr(ShardedOptimizer, *FAULTS[options["fault"]])
    mesh = Mesh(**layout)
    model = Qwen3(config, mesh, head=options["head"], dtype=torch.float64, seed=3)
    engine = Engine(model, optimizer=OPTIMIZER, clip_norm=0.05, **options.get("engine", {}))
    loss_fn = value_loss if options["head"] == "value" else lm_loss
    mine = batch(options["count"])[mesh.dp_rank :: mesh.dp]
    report = engine.backward(mine, loss_fn, temperature=0.7)
    gradients = {name: grad.clone() for name, grad in engine.gradients()}
    steps = [engine.train_step(mine, loss_fn, temperature=0.7) for _ in range(3)]
    outputs = engine.forward(batch(options["count"]), temperature=0.7)
    return {
        "steps": [report, *steps],
        "gradients": gradients,
        "weights": {name: weight.clone() for name, weight in engine.weights()},
        "outputs": None if outputs is None else [list(filter(torch.is_tensor, o)) for o in outputs],
    }


@functools.cache
def alone(**options):
    return train(0, {}, options)


def assert_same(ranks, expected):
    """Compare what all ranks report with one process, name by name."""
    for kind in ("gradients", "weights"):
        seen = {name for rank in ranks for name in rank[kind]}
        assert seen == set(expected[kind])
        for rank in ranks:
            for name, tensor in rank[kind].items():
                torch.testing.assert_close(
                    tensor, expected[kind][name], rtol=1e-9, atol=1e-12, msg=f"{kind} {name}"
                )
    for rank in ranks:
        for got, want in zip(rank["steps"], expected["steps"], strict=True):
            assert got == pytest.approx(want, rel=1e-10)
        if rank["outputs"] is not None:
            torch.testing.assert_close(rank["outputs"], expected["outputs"], rtol=1e-9, atol=1e-12)
    assert any(rank["outputs"] is not None for rank in ranks)


def check(layout, **options):
    size = layout.get("dp", 1) * layout.get("pp", 1) * layout.get("tp", 1)
    model_options = {k: v for k, v in options.items() if k not in ("engine", "fault")}
    assert_same(run_ranks(train, size, layout, options), alone(**model_options))


@pytest.mark.parametrize(
    ("axis", "tied"), [("dp", True), ("pp", True), ("pp", False), ("tp", True), ("tp", False)]
)
def test_two_ranks_along_one_axis_equal_one_process(axis, tied):
    check({axis: 2}, tied=tied)


@pytest.mark.parametrize("layout", [{"dp": 2, "tp": 2}, {"tp": 2, "pp": 2}, {"dp": 2, "pp": 2}])
def test_two_axes_of_two_ranks_equal_one_process(layout):
    check(layout)


def test_biases_are_cut_and_reduced_like_one_process():
    check({"tp": 2}, bias=True, tied=False)


def test_a_value_head_equals_one_process():
    check({"tp": 2}, head="value")


def test_gpipe_without_zero_equals_one_process():
    check({"dp": 2, "pp": 2}, engine={"schedule": "gpipe", "zero": 0})


def test_recomputing_activations_changes_nothing():
    check({"tp": 2}, engine={"recompute": True})


def test_fewer_microbatches_than_stages_and_replicas_equal_one_process():
    check({"pp": 2}, count=1)
    check({"dp": 2}, count=1)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 6])
def test_four_stages_equal_one_process(count):
    check({"pp": 4}, layers=4, count=count)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("engine", [(), (("schedule", "gpipe"), ("zero", 0))])
def test_three_axes_of_two_ranks_equal_one_process(tied, engine):
    check({"dp": 2, "pp": 2, "tp": 2}, tied=tied, engine=dict(engine))


@pytest.mark.parametrize(
    ("fault", "layout", "symptom"),
    [
        ("qk_norm", {"tp": 2}, r"gradients model\.layers\.\d\.self_attn\.[qk]_norm"),
        ("tied", {"pp": 2}, r"gradients model\.embed_tokens"),
        ("tied_twice", {"pp": 2}, r"gradients model\.embed_tokens"),
        ("clip", {"tp": 2}, "weights|grad_norm"),
    ],
)
def test_parity_fails_when_one_reduction_is_broken(fault, layout, symptom):
    with pytest.raises(AssertionError, match=symptom):
        check(layout, fault=fault)
