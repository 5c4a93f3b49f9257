"""A tiny policy with a tokenizer, and small datasets for it."""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")

DIGITS = "0123456789"


@pytest.fixture(scope="session")
def policy(tmp_path_factory) -> Path:
    """A random Qwen3 of two layers over an alphabet of digits."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from nanorlhf.nanotron import init_checkpoint

    folder = tmp_path_factory.mktemp("policy") / "model"
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 16,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "initializer_range": 0.05,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    init_checkpoint(config, folder, seed=0, dtype=torch.float32)
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *DIGITS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encode():
    """Digits as token ids of `policy`."""
    return lambda text: [3 + DIGITS.index(letter) for letter in text]


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory, encode):
    """Rows ``ab`` answered by ``b`` and the end: copying, which two layers learn at once."""
    from nanorlhf.nanosets import Dataset, load_dataset

    rows = [
        {"tokens": [*encode(f"{a}{b}{b}"), 1], "loss_mask": [False, False, True, True]}
        for a in range(10)
        for b in range(10)
    ]
    path = tmp_path_factory.mktemp("data") / "sft.nano"
    Dataset.from_list(rows).save_to_disk(path)
    return load_dataset(path)


@pytest.fixture(scope="session")
def questions(tmp_path_factory, encode):
    """Prompts of two digits, of which the second is the answer."""
    from nanorlhf.nanosets import Dataset, load_dataset

    rows = [
        {"prompt_tokens": encode(f"{a}{b}"), "prompt": f"{a}{b}", "answer": str(b)}
        for a in range(10)
        for b in range(10)
    ]
    path = tmp_path_factory.mktemp("data") / "rl.nano"
    Dataset.from_list(rows).save_to_disk(path)
    return load_dataset(path)
