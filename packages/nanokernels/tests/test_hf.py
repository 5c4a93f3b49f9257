import copy

import pytest
import torch

from nanorlhf.nanokernels import patch, register_attention

transformers = pytest.importorskip("transformers")


def tiny_model(kind="Qwen3", *, dtype=torch.float32, **options):
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=0,
        **options,
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype).eval()


def patched(model):
    model = copy.deepcopy(model)
    patch(model)
    return model


@pytest.mark.parametrize("kind", ["Qwen3", "Qwen2", "Llama", "Mistral"])
def test_a_patched_model_computes_what_it_did(kind):
    model = tiny_model(kind)
    ids = torch.randint(50, (2, 9))
    torch.testing.assert_close(patched(model)(ids).logits, model(ids).logits)


def test_it_names_what_it_changed_and_keeps_every_parameter():
    model = tiny_model()
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    changed = patch(model)
    assert "model.layers.0.self_attn.q_norm" in changed
    assert "model.layers.1.mlp" in changed
    assert "model.norm" in changed
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before


def test_gradients_are_those_of_the_model():
    model = tiny_model()
    other = patched(model)
    ids = torch.randint(50, (2, 7))
    for one in (model, other):
        one(ids, labels=ids).loss.backward()
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=lambda m, name=name: f"{name}: {m}")


def test_padding_on_either_side_is_not_attended_to():
    model = tiny_model()
    other = patched(model)
    ids = torch.randint(1, 50, (3, 8))
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [0] * 4 + [1] * 4])
    expected = model(ids, attention_mask=mask).logits
    found = other(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()])


def test_packed_sequences_do_not_see_each_other():
    model = patched(tiny_model())
    a, b = torch.randint(50, (1, 4)), torch.randint(50, (1, 6))
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    expected = torch.cat([model(a).logits, model(b).logits], dim=1)
    by_position = model(torch.cat([a, b], dim=1), position_ids=positions).logits
    torch.testing.assert_close(by_position, expected)
    cu = torch.tensor([0, 4, 10], dtype=torch.int32)
    by_lengths = model(
        torch.cat([a, b], dim=1),
        position_ids=positions,
        cu_seq_lens_q=cu,
        cu_seq_lens_k=cu,
        max_length_q=6,
        max_length_k=6,
    ).logits
    torch.testing.assert_close(by_lengths, expected)


def test_it_generates_the_same_tokens_with_a_cache_and_left_padding():
    model = tiny_model()
    ids = torch.randint(1, 50, (2, 5))
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    found = patched(model).generate(ids, **options)
    assert found.tolist() == model.generate(ids, **options).tolist()


def test_a_sliding_window_is_kept():
    model = tiny_model("Mistral", sliding_window=3)
    ids = torch.randint(50, (1, 9))
    torch.testing.assert_close(patched(model)(ids).logits, model(ids).logits)


def test_the_interface_alone_serves_from_pretrained(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    other = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation=register_attention()
    )
    ids = torch.randint(50, (1, 6))
    torch.testing.assert_close(other(ids).logits, model(ids).logits)


def test_a_model_with_nothing_on_the_lists_is_an_error():
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=50)
    with pytest.raises(ValueError, match="GPT2LMHeadModel has none of the modules"):
        patch(transformers.GPT2LMHeadModel(config))


def test_an_mlp_with_another_activation_is_an_error():
    with pytest.raises(ValueError, match=r"mlp: act_fn=.* is not silu"):
        patch(tiny_model("Llama", hidden_act="gelu"))


def test_dropout_is_refused():
    model = patched(tiny_model(attention_dropout=0.5)).train()
    with pytest.raises(ValueError, match=r"dropout=0.5 is not supported"):
        model(torch.ones(1, 3, dtype=torch.long))


@pytest.mark.gpu
def test_a_patched_model_on_the_gpu_is_as_close_as_eager_bf16():
    exact = tiny_model()
    ids = torch.randint(50, (2, 130))
    expected = exact(ids).logits
    eager = tiny_model(dtype=torch.bfloat16).to("cuda")
    found = patched(eager)(ids.to("cuda")).logits.float().cpu()
    baseline = eager(ids.to("cuda")).logits.float().cpu()
    error, allowed = (found - expected).norm(), (baseline - expected).norm()
    assert error <= 1.5 * allowed, f"error {error:.2e}, eager bf16 has {allowed:.2e}"
