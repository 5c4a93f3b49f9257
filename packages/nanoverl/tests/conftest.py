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


@pytest.fixture
def ragged():
    """Five responses to two prompts, of one to five tokens; the fourth holds tool output."""
    from nanorlhf.nanoverl import Sample

    shapes = [(2, 3, 7), (1, 1, 7), (3, 4, 2), (2, 5, 2), (1, 2, 2)]  # prompt, response, group
    generator = torch.Generator().manual_seed(0)
    samples = []
    for i, (prompt, response, group) in enumerate(shapes):
        logprobs = -torch.rand(response, generator=generator)
        samples.append(
            Sample(
                prompt_tokens=list(range(prompt)),
                response_tokens=list(range(10, 10 + response)),
                logprobs=logprobs.tolist(),
                versions=[3] * (response - 1) + [4],
                finish_reason="length" if i == 2 else "stop",
                group=group,
                text=f"answer {i}",
                row={"answer": str(i)},
                chosen=[True, False, False, True, True] if i == 3 else None,
                reward=[1.0, 0.0, 0.5, 0.25, 1.0][i],
            )
        )
    return samples


@pytest.fixture(scope="session")
def math500() -> list[str]:
    """The reference answers of MATH-500, where that data is."""
    import json

    root = Path(__file__).resolve().parents[3]
    folder = Path(os.environ.get("NANORLHF_DATA") or root.parent / "shared" / "data")
    path = folder / "math500" / "test.jsonl"
    if not path.exists():
        pytest.skip(f"no {path}; set NANORLHF_DATA to the folder that holds math500/")
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["answer"] for line in file]
