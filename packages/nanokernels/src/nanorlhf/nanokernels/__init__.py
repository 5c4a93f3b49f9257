"""Triton kernels for language model training and inference, each with a PyTorch reference."""

from .adamw import adamw_, clip_scale, global_norm
from .attention.kv_cache import PackedKV, gather_kv, store_kv
from .attention.paged import paged_attention
from .attention.varlen import attention
from .cross_entropy import cross_entropy, token_logprobs
from .dispatch import Impl
from .flash_attn import flash_attn_func, flash_attn_varlen_func
from .hf import patch, register_attention
from .linear_cross_entropy import linear_cross_entropy
from .linear_logprob import LogProbs, linear_logprob
from .matmul import matmul
from .padding import Unpadded, pad_input, unpad_input
from .qk_norm_rope import QK, qk_norm_rope
from .qk_norm_rope_store import qk_norm_rope_store
from .rms_norm import rms_norm
from .rope import rope, rope_table
from .sampling import sample
from .sampling_by_sort import Sampled
from .swiglu import silu_mul, swiglu

__all__ = [
    "QK",
    "Impl",
    "LogProbs",
    "PackedKV",
    "Sampled",
    "Unpadded",
    "adamw_",
    "attention",
    "clip_scale",
    "cross_entropy",
    "flash_attn_func",
    "flash_attn_varlen_func",
    "gather_kv",
    "global_norm",
    "linear_cross_entropy",
    "linear_logprob",
    "matmul",
    "pad_input",
    "paged_attention",
    "patch",
    "qk_norm_rope",
    "qk_norm_rope_store",
    "register_attention",
    "rms_norm",
    "rope",
    "rope_table",
    "sample",
    "silu_mul",
    "store_kv",
    "swiglu",
    "token_logprobs",
    "unpad_input",
]
