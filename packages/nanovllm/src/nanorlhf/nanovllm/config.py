"""What the model is, from its directory, and how the engine is to run it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nanorlhf.nanokernels import Impl

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]

MIN_PAGE_SIZE = 16
"""The decode kernel's smallest tile of keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How much the engine takes on at once, and of the machine."""

    dtype: DTypeName = "auto"
    """Of weights, activations and KV pages; ``auto`` is the checkpoint's own."""
    device: str = "auto"
    """``auto`` is the first CUDA device, or the CPU without one."""
    max_model_len: int | None = None
    """Longest prompt and response together; None: what the model and the pages allow."""
    max_num_seqs: int = 256
    """Most sequences running at once."""
    max_num_batched_tokens: int = 8192
    """Most tokens in one step; longer prompts are computed in chunks."""
    page_size: int = 16
    """Tokens per KV page, a power of two of 16 or more."""
    num_pages: int | None = None
    """KV pages; None: as many as the memory below holds and the engine can use."""
    gpu_memory_utilization: float = 0.9
    """Share of the GPU memory that is free after the weights for pages and activations."""
    kv_cache_bytes: int = 1 << 30
    """Most memory for KV pages on a CPU; it is taken page by page as it is needed."""
    enable_prefix_caching: bool = True
    """Keep the pages of finished prompts for prompts that begin alike."""
    seed: int = 0
    """Of the requests that bring none: the k-th request of an engine draws from (seed, k)."""
    impl: Impl = "auto"
    """Which kernels run: Triton's on CUDA and PyTorch's on a CPU, or the one asked for."""

    def __post_init__(self) -> None:
        """Check the arithmetic.

        Raises:
            ValueError: A value is out of range, or two do not fit together.
        """
        for name in ("max_num_seqs", "max_num_batched_tokens", "kv_cache_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("max_model_len", "num_pages"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1, or None to choose it")
        if self.page_size < MIN_PAGE_SIZE or self.page_size & (self.page_size - 1):
            raise ValueError(
                f"page_size={self.page_size} must be a power of two of {MIN_PAGE_SIZE} or more"
            )
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization={self.gpu_memory_utilization} must lie in (0, 1]"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is below "
                f"max_num_seqs={self.max_num_seqs}, and each running sequence decodes a token a "
                "step; raise the one or lower the other"
            )


REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of a Qwen3 model, from the ``config.json`` of its directory."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    dtype: torch.dtype
    eos_token_ids: tuple[int, ...]
    """From ``generation_config.json`` and ``config.json``."""

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "ModelConfig":
        """Read the configuration in a Hugging Face directory.

        Raises:
            ValueError: There is no such directory, or the model is none this engine runs.
        """
        directory = Path(path)
        if not (directory / "config.json").is_file():
            raise ValueError(
                f"model={str(path)!r} holds no config.json; give the directory of a Hugging Face "
                "checkpoint (`hf download NAME` prints one)"
            )
        raw: dict[str, Any] = json.loads((directory / "config.json").read_text())
        generation = directory / "generation_config.json"
        more = json.loads(generation.read_text()) if generation.is_file() else {}
        eos = {*_ids(raw.get("eos_token_id")), *_ids(more.get("eos_token_id"))}
        return cls.from_dict(raw, eos_token_ids=tuple(sorted(eos)))

    @classmethod
    def from_dict(
        cls, raw: dict[str, Any], *, eos_token_ids: tuple[int, ...] = ()
    ) -> "ModelConfig":
        """Return the configuration that a ``config.json`` holds.

        Raises:
            ValueError: The model is none this engine runs.
        """
        missing = [name for name in REQUIRED if name not in raw]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}; save the model again")
        _check_supported(raw)
        outside = [token for token in eos_token_ids if not 0 <= token < raw["vocab_size"]]
        if outside:
            raise ValueError(
                f"eos_token_id={outside[0]} is outside vocab_size={raw['vocab_size']}; correct "
                "config.json or generation_config.json"
            )
        heads, hidden = raw["num_attention_heads"], raw["hidden_size"]
        rope = raw.get("rope_parameters") or {}
        return cls(
            vocab_size=raw["vocab_size"],
            hidden_size=hidden,
            intermediate_size=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or hidden // heads,
            rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
            rope_theta=rope.get("rope_theta", raw.get("rope_theta", 10_000.0)),
            max_position_embeddings=raw.get("max_position_embeddings", 32_768),
            tie_word_embeddings=raw.get("tie_word_embeddings", False),
            dtype=getattr(torch, raw.get("dtype") or raw.get("torch_dtype") or "float32"),
            eos_token_ids=eos_token_ids,
        )


def _ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else value


def _check_supported(raw: dict[str, Any]) -> None:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    for name, value, only in (
        ("model_type", raw.get("model_type"), "qwen3"),
        ("hidden_act", raw.get("hidden_act", "silu"), "silu"),
        ("attention_bias", raw.get("attention_bias", False), False),
        ("use_sliding_window", raw.get("use_sliding_window", False), False),
        ("rope_type", rope.get("rope_type", rope.get("type", "default")), "default"),
    ):
        if value != only:
            raise ValueError(
                f"{name}={value!r} in config.json is not supported; this engine runs {only!r} only"
            )
