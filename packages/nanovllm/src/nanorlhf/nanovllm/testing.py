"""Checkpoints of random weights, in the Hugging Face layout, for tests, examples and benchmarks."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .config import ModelConfig
from .model import Qwen3

TINY_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "dtype": "float32",
    "eos_token_id": 1,
}
"""A ``config.json`` of 90 thousand parameters."""


def random_weights(
    config: dict[str, object], *, seed: int, scale: float = 0.02
) -> dict[str, Tensor]:
    """Return normal weights by Hugging Face name, in the config's dtype; norms are around 1.

    Args:
        config: A ``config.json``.
        seed: Of the draw.
        scale: Standard deviation. Larger ones give text that depends on its context.
    """
    shape = ModelConfig.from_dict(config)
    model = Qwen3(shape, max_model_len=1, dtype=shape.dtype, device=torch.device("meta"))
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(tensor.shape, generator=generator) * scale + name.endswith("norm.weight")
        ).to(tensor.dtype)
        for name, tensor in model.parameters().items()
    }


def write_checkpoint(
    path: str | Path, config: dict[str, object], *, seed: int, scale: float = 0.02
) -> None:
    """Write a Hugging Face directory with random weights and no tokenizer."""
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    weights = random_weights(config, seed=seed, scale=scale)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def write_tokenizer(path: str | Path) -> None:
    """Add a tokenizer of one token per byte; ``<eos>`` is 1 and bytes are 2 to 257."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    directory, special = Path(path), {"pad_token": "<pad>", "eos_token": "<eos>"}
    vocab = [*special.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocab)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special.values()))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
