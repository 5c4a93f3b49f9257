"""Triton kernels for language model training and inference, each with a PyTorch reference."""

from .attention.kv_cache import PackedKV, gather_kv, store_kv
from .attention.paged import paged_attention
from .attention.varlen import attention
from .dispatch import Impl
from .linear_logprob import LogProbs, linear_logprob
from .rms_norm import rms_norm
from .rope import rope, rope_table
from .sampling import Sampled, sample
from .swiglu import swiglu

__all__ = [
    "Impl",
    "LogProbs",
    "PackedKV",
    "Sampled",
    "attention",
    "gather_kv",
    "linear_logprob",
    "paged_attention",
    "rms_norm",
    "rope",
    "rope_table",
    "sample",
    "store_kv",
    "swiglu",
]
