"""Triton kernels for language model training and inference, each with a PyTorch reference."""

from .attention.kv_cache import PackedKV, gather_kv, store_kv
from .attention.paged import paged_attention
from .attention.varlen import attention
from .dispatch import Impl
from .flash_attn import flash_attn_func, flash_attn_varlen_func
from .hf import patch, register_attention
from .linear_logprob import LogProbs, linear_logprob
from .padding import Unpadded, pad_input, unpad_input
from .rms_norm import rms_norm
from .rope import rope, rope_table
from .sampling import Sampled, sample
from .swiglu import silu_mul, swiglu

__all__ = [
    "Impl",
    "LogProbs",
    "PackedKV",
    "Sampled",
    "Unpadded",
    "attention",
    "flash_attn_func",
    "flash_attn_varlen_func",
    "gather_kv",
    "linear_logprob",
    "pad_input",
    "paged_attention",
    "patch",
    "register_attention",
    "rms_norm",
    "rope",
    "rope_table",
    "sample",
    "silu_mul",
    "store_kv",
    "swiglu",
    "unpad_input",
]
