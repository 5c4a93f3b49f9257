"""The model a run starts from: a new one, a folder, or one from the hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer import Codec

if TYPE_CHECKING:
    from config import Config, ModelConfig

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
VOCAB_MULTIPLE = 8
"""A new model's vocabulary is rounded up to it, so that tensor parallelism divides the rows."""


def hf_config(model: ModelConfig, codec: Codec) -> dict[str, Any]:
    """Return the Hugging Face ``config.json`` of a new Qwen3 of this shape."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": -(-len(codec) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.max_positions,
        "rope_theta": model.rope_theta,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": model.tie_word_embeddings,
        "initializer_range": model.init_std,
        "bos_token_id": None,
        "eos_token_id": codec.eos_id,
        "pad_token_id": codec.pad_id,
    }


def pretrained(config: Config) -> Path | None:
    """Return the folder of the checkpoint to start from, fetched if need be; None for a new model.

    Raises:
        ValueError: It does not exist or holds no weights.
    """
    if config.model.path is None:
        return None
    folder = fetch(config.model.path, key="model.path")
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"model.path={config.model.path!r} holds no "
            f"{'config.json' if not (folder / 'config.json').is_file() else '*.safetensors'}; "
            "give the folder of a whole Hugging Face checkpoint"
        )
    return folder


def tokenizer_source(config: Config) -> Path | None:
    """Return the folder to copy the tokenizer from; None when one is to be trained.

    Raises:
        ValueError: The folder does not exist or holds no tokenizer.
    """
    if config.tokenizer.path is not None:
        folder = fetch(config.tokenizer.path, key="tokenizer.path", weights=False)
    elif config.model.path is not None:
        folder = fetch(config.model.path, key="model.path")
    else:
        return None
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} holds no tokenizer.json; set tokenizer.path to one that does")
    return folder


def fetch(name: str, *, key: str, weights: bool = True) -> Path:
    """Return the folder ``name``, or that of the hub repository ``name``.

    Raises:
        ValueError: Neither exists.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not HUB_NAME.fullmatch(name):
        raise ValueError(
            f"{key}={name!r} is neither a folder here nor the name of a hub repository"
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.jinja", "*.txt", *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{key}={name!r}: neither a folder here nor a repository the hub gave ({reason})"
        ) from error


def write_generation_config(folder: Path, codec: Codec) -> None:
    """Write which token ends a response, for every engine that loads ``folder``."""
    config = {"eos_token_id": [codec.eos_id], "pad_token_id": codec.pad_id}
    (folder / "generation_config.json").write_text(json.dumps(config, indent=1))
