"""The model against transformers (imported here only: it takes seconds)."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForTokenClassification,
)

from nanorlhf.nanotron import AdamWConfig, Engine, Mesh, Microbatch, Qwen3, next_token_loss

LENGTHS = (7, 1, 12, 3)


def sequences(vocab):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, vocab, (n,), generator=generator).tolist() for n in LENGTHS]


def packed_logprobs(model, tokens, temperature=1.0):
    """What transformers says about each token given those before it, one sequence at a time."""
    rows = []
    for row in tokens:
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0].double() / temperature
        scores = logits.log_softmax(-1)
        chosen = scores[:-1].gather(1, torch.tensor(row[1:])[:, None])[:, 0]
        rows.append(torch.cat([torch.zeros(1, dtype=torch.float64), chosen]))
    return torch.cat(rows).float()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_model_equals_transformers(tmp_path, tied, bias):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=tied,
        attention_bias=bias,
        rope_parameters={"rope_type": "default", "rope_theta": 777.0},
        initializer_range=0.2,
    )
    theirs = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    theirs.save_pretrained(tmp_path)
    tokens = sequences(50)
    engine = Engine(Qwen3.from_pretrained(tmp_path, Mesh()), optimizer=None)
    ours = engine.forward([Microbatch.from_sequences(tokens)], temperature=0.8)[0]
    torch.testing.assert_close(ours.logprobs, packed_logprobs(theirs, tokens, 0.8))
    assert {name for name, _ in engine.weights()} == {name for name, _ in theirs.named_parameters()}


def test_transformers_loads_a_trained_checkpoint_with_equal_logits(tmp_path, tiny_dir):
    engine = Engine(Qwen3.from_pretrained(tiny_dir, Mesh()), optimizer=AdamWConfig(lr=1e-2))
    batch = [Microbatch.from_sequences(sequences(32))]
    for _ in range(2):
        engine.train_step(batch, next_token_loss)
    engine.save(tmp_path / "trained")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "trained").eval()
    assert theirs.dtype == torch.float32
    assert theirs.generation_config.eos_token_id == 3
    ours = engine.forward(batch)[0].logprobs
    torch.testing.assert_close(ours, packed_logprobs(theirs, sequences(32)))


def test_transformers_loads_a_critic_with_equal_values(tmp_path, tiny_dir):
    model = Qwen3.from_pretrained(tiny_dir, Mesh(), head="value")
    with torch.no_grad():
        model.score.normal_()
        model.score_bias.normal_()
    engine = Engine(model, optimizer=None)
    engine.save(tmp_path / "critic")
    theirs, info = Qwen3ForTokenClassification.from_pretrained(
        tmp_path / "critic", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    row = sequences(32)[2]
    with torch.no_grad():
        want = theirs.eval()(torch.tensor([row])).logits[0, :, 0]
    got = engine.forward([Microbatch.from_sequences([row])])[0].values
    torch.testing.assert_close(got[1:], want[:-1])
