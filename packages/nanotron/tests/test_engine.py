import numpy as np
import pytest
import torch

from nanorlhf.nanotron import (
    AdamWConfig,
    Engine,
    Loss,
    Mesh,
    Microbatch,
    ModelConfig,
    NonFiniteGradient,
    Qwen3,
    next_token_loss,
)
from nanorlhf.nanotron.testing import run_ranks


def rows(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 32, size=n) for n in rng.integers(2, 9, size=count)]


@pytest.fixture
def model(tiny_dir):
    return Qwen3.from_pretrained(tiny_dir, Mesh())


def test_splitting_a_batch_into_microbatches_changes_nothing(tiny_dir):
    def gradients(parts):
        engine = Engine(Qwen3.from_pretrained(tiny_dir, Mesh()), optimizer=AdamWConfig())
        report = engine.backward(
            [Microbatch.from_sequences(part) for part in parts], next_token_loss
        )
        return report, dict(engine.gradients())

    sequences = rows(8)
    one, gradients_of_one = gradients([sequences])
    many, gradients_of_many = gradients([sequences[:1], sequences[1:6], [], sequences[6:]])
    assert many == pytest.approx(one, rel=1e-6)
    torch.testing.assert_close(gradients_of_many, gradients_of_one)


def test_a_step_reports_the_mean_loss_and_the_unclipped_norm(tiny_dir):
    engine = Engine(
        Qwen3.from_pretrained(tiny_dir, Mesh()), optimizer=AdamWConfig(lr=0.0), clip_norm=1e-3
    )
    mb = Microbatch.from_sequences(rows(5))
    out = engine.forward([mb])[0]
    report = engine.train_step([mb], next_token_loss)
    clipped = torch.cat([grad.flatten() for _, grad in engine.gradients()]).norm()
    assert report["loss"] == pytest.approx(float(-out.logprobs.sum()) / mb.weight)
    assert report["entropy"] == pytest.approx(float(out.entropy.sum()) / mb.weight)
    assert (report["tokens"], report["weight"]) == (mb.num_tokens, mb.weight)
    assert float(clipped) == pytest.approx(1e-3, rel=1e-2) != report["grad_norm"]


def test_training_lowers_the_loss_and_the_learning_rate_can_change(model):
    engine = Engine(model, optimizer=AdamWConfig(lr=1e-2))
    mb = [Microbatch.from_sequences(rows(5))]
    losses = [engine.train_step(mb, next_token_loss)["loss"] for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
    frozen = model.flat.data.clone()
    engine.train_step(mb, next_token_loss, lr=0.0)
    assert torch.equal(model.flat.data, frozen)
    assert engine.steps == 21


def test_outputs_are_zero_where_nothing_was_asked_for(model):
    mask = [[0, 1, 0, 1], [0, 0]]
    batches = [
        Microbatch.from_sequences([[1, 2, 3, 4], [5, 6]], mask),
        Microbatch.from_sequences([]),
        Microbatch.from_sequences([[1, 2]], [[0, 0]]),
    ]
    first, empty, none = Engine(model, optimizer=None).forward(batches)
    assert (first.logprobs != 0).tolist() == [False, True, False, True, False, False]
    assert first.values is None
    assert empty.logprobs.shape == (0,)
    assert not none.logprobs.any()
    assert not none.entropy.any()


def test_bfloat16_gradients_accumulate_in_float32(tiny_dir):
    model = Qwen3.from_pretrained(tiny_dir, Mesh(), dtype=torch.bfloat16)
    engine = Engine(model, optimizer=AdamWConfig(lr=1e-2))
    wide = Engine(Qwen3.from_pretrained(tiny_dir, Mesh()), optimizer=AdamWConfig(lr=1e-2))
    batches = [Microbatch.from_sequences(rows(3, seed)) for seed in range(4)]
    report, want = (e.train_step(batches, next_token_loss) for e in (engine, wide))
    assert report == pytest.approx(want, rel=2e-2)
    assert model.flat.grad.dtype == engine.optimizer.adam.master.dtype == torch.float32
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model.flat.data, engine.optimizer.adam.master.bfloat16())


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(model):
    engine = Engine(model, optimizer=AdamWConfig(lr=1.0))
    before = model.flat.data.clone()

    def poisoned(out, mb):
        return Loss(out.logprobs.sum() * float("nan"))

    with pytest.raises(NonFiniteGradient, match=r"grad_norm=nan with loss=nan: no step was taken"):
        engine.train_step([Microbatch.from_sequences(rows(2))], poisoned)
    assert torch.equal(model.flat.data, before)


def test_wrong_use_says_what_to_do(model):
    engine = Engine(model, optimizer=AdamWConfig())
    with pytest.raises(ValueError, match="optimizer=None: this engine only evaluates"):
        Engine(model, optimizer=None).train_step([], next_token_loss)
    with pytest.raises(ValueError, match="no token of any microbatch is in its mask"):
        engine.train_step([Microbatch.from_sequences([[1, 2]], [[0, 0]])], next_token_loss)
    with pytest.raises(ValueError, match="token id 32 is outside the vocabulary of 32"):
        engine.forward([Microbatch.from_sequences([[1, 32]])])
    with pytest.raises(ValueError, match=r"schedule='zb': choose one of \['1f1b', 'gpipe'\]"):
        Engine(model, optimizer=None, schedule="zb")
    with pytest.raises(ValueError, match="zero=2: choose 0"):
        Engine(model, optimizer=None, zero=2)
    with pytest.raises(ValueError, match=r"clip_norm=0: must be positive"):
        Engine(model, optimizer=None, clip_norm=0)
    with pytest.raises(ValueError, match="head='reward': choose 'lm' or 'value'"):
        Qwen3(model.config, Mesh(), head="reward")


def errors(rank, config):
    found = []
    for change, layout in (
        ({"num_attention_heads": 9, "num_key_value_heads": 9}, {"tp": 2}),
        ({"num_key_value_heads": 1}, {"tp": 2}),
        ({"vocab_size": 33}, {"tp": 2}),
        ({"intermediate_size": 25}, {"tp": 2}),
        ({"num_hidden_layers": 1}, {"pp": 2}),
    ):
        try:
            Qwen3(ModelConfig.from_dict({**config, **change}), Mesh(**layout))
        except ValueError as error:
            found.append(str(error))
    return found


def test_a_model_that_cannot_be_cut_is_refused_with_the_reason(tiny_config):
    heads, kv_heads, vocab, ffn, layers = run_ranks(errors, 2, tiny_config)[0]
    assert heads.startswith("num_attention_heads=9 is not divisible by tp=2")
    assert kv_heads.startswith("num_key_value_heads=1 is not divisible by tp=2")
    assert vocab.startswith("vocab_size=33 is not divisible by tp=2")
    assert ffn.startswith("intermediate_size=25 is not divisible by tp=2")
    assert layers.startswith("num_hidden_layers=1 is less than pp=2")


def test_configs_this_decoder_would_compute_wrongly_are_refused(tiny_config):
    for change, message in (
        ({"model_type": "llama"}, "model_type='llama' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window=True is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn' is not"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 is not a multiple of"),
        ({"head_dim": 7}, "head_dim=7 is odd"),
        ({"vocab_size": 0}, "vocab_size=0: must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelConfig.from_dict({**tiny_config, **change})
    with pytest.raises(ValueError, match="config lacks vocab_size"):
        ModelConfig.from_dict({k: v for k, v in tiny_config.items() if k != "vocab_size"})


def test_both_spellings_of_the_rotary_base_are_read_and_written(tiny_config):
    plain = {k: v for k, v in tiny_config.items() if k != "rope_theta"}
    new = {**plain, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}
    for values in (new, {**plain, "rope_theta": 5.0}):
        config = ModelConfig.from_dict(values)
        assert config.rope_theta == 5.0
        assert ModelConfig.from_dict(config.to_hf_dict()).rope_theta == 5.0
        assert config.to_hf_dict()["eos_token_id"] == 3
