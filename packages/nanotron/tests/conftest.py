"""A tiny model directory, written once."""

import pytest
import torch

from nanorlhf.nanotron import init_checkpoint


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_config():
    return {
        "model_type": "qwen3",
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "rope_theta": 10_000.0,
        "eos_token_id": 3,
    }


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory, tiny_config):
    path = tmp_path_factory.mktemp("models") / "tiny"
    init_checkpoint(tiny_config, path, seed=1)
    (path / "generation_config.json").write_text('{"eos_token_id": 3}')
    return path
