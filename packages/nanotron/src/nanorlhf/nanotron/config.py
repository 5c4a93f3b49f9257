"""The shape of a Qwen3 decoder, read from and written to a Hugging Face ``config.json``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import CheckpointError

_OWN = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "rms_norm_eps",
    "tie_word_embeddings",
    "attention_bias",
    "initializer_range",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and switches of a Qwen3 decoder; names follow Hugging Face.

    Raises:
        ValueError: A size is not positive, query heads are not a multiple of key-value heads,
            or the head dimension is odd.
    """

    vocab_size: int
    """Rows of the embedding."""
    hidden_size: int
    """Width of the residual stream."""
    intermediate_size: int
    """Width of the SwiGLU product."""
    num_hidden_layers: int
    """Decoder blocks."""
    num_attention_heads: int
    """Query heads."""
    num_key_value_heads: int
    """Key and value heads (GQA)."""
    head_dim: int
    """Width of one head; need not be hidden_size / num_attention_heads."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square in every RMSNorm."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    tie_word_embeddings: bool = False
    """The LM head is the embedding matrix."""
    attention_bias: bool = False
    """q, k, v and o projections have a bias."""
    initializer_range: float = 0.02
    """Standard deviation of freshly initialised matrices."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Every other key of config.json, written back unchanged."""

    def __post_init__(self) -> None:
        for name in (*_OWN[:5], "num_key_value_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads:
            raise ValueError(
                f"num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}; "
                f"grouped-query attention shares each kv head among equally many query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; rotary embedding turns pairs")

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "ModelConfig":
        """Return the configuration in ``path/config.json``.

        Raises:
            CheckpointError: There is no such file.
        """
        file = Path(path) / "config.json"
        if not file.is_file():
            raise CheckpointError(
                f"{path}: no config.json there; give the folder of a downloaded Hugging Face model"
            )
        return cls.from_dict(json.loads(file.read_text()))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Return the configuration that a ``config.json`` spells.

        Both spellings of the rotary base are read: ``rope_theta`` (transformers 4) and
        ``rope_parameters`` (transformers 5).

        Raises:
            ValueError: A key is missing, or asks for something this decoder does not do.
        """
        _reject_unsupported(values)
        missing = [name for name in _OWN[:5] if name not in values]
        if missing:
            raise ValueError(f"config lacks {', '.join(missing)}; a Qwen3 config.json has them")
        heads = values["num_attention_heads"]
        rope = values.get("rope_parameters") or {}
        return cls(
            **{name: values[name] for name in _OWN if values.get(name) is not None},
            num_key_value_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            rope_theta=float(rope.get("rope_theta") or values.get("rope_theta") or 10_000.0),
            extra=dict(values),
        )

    def to_hf_dict(self) -> dict[str, Any]:
        """Return the dictionary to write as ``config.json``; unknown keys are kept."""
        rope = {"rope_type": "default", "rope_theta": self.rope_theta}
        return {
            "architectures": ["Qwen3ForCausalLM"],
            **self.extra,
            **{name: getattr(self, name) for name in _OWN},
            "model_type": "qwen3",
            "hidden_act": "silu",
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "rope_theta": self.rope_theta,
            "rope_parameters": rope,
        }


def _reject_unsupported(values: Mapping[str, Any]) -> None:
    """Raise ValueError for a config that this decoder would compute wrongly."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    rules = {
        "model_type": (values.get("model_type", "qwen3"), "qwen3"),
        "hidden_act": (values.get("hidden_act", "silu"), "silu"),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "use_sliding_window": (bool(values.get("use_sliding_window")), False),
    }
    for key, (value, supported) in rules.items():
        if value != supported:
            raise ValueError(f"{key}={value!r} is not supported; only {supported!r} is")


def check_split(config: ModelConfig, *, pp: int, tp: int) -> None:
    """Raise ValueError when the model cannot be cut into ``pp`` stages and ``tp`` slices."""
    if config.num_hidden_layers < pp:
        raise ValueError(
            f"num_hidden_layers={config.num_hidden_layers} is less than pp={pp}; each stage needs "
            f"a layer, use pp <= {config.num_hidden_layers}"
        )
    for name in (
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "intermediate_size",
    ):
        value = getattr(config, name)
        if value % tp:
            raise ValueError(
                f"{name}={value} is not divisible by tp={tp}; use a tp that divides it"
            )
