"""How many KV pages there is room for, and the longest sequence they allow."""

import logging
import math

import numpy as np
import torch

from nanorlhf.nanokernels import sample

from .config import EngineConfig, ModelConfig
from .model import Batch, KVCache, PackedRows, Qwen3

log = logging.getLogger(__name__)


def page_bytes(model: ModelConfig, *, page_size: int, dtype: torch.dtype) -> int:
    """Return the bytes of one page: keys and values of its tokens in every layer."""
    row = model.num_kv_heads * model.head_dim * dtype.itemsize
    return 2 * model.num_layers * page_size * row


def wanted_model_len(config: EngineConfig, model: ModelConfig) -> int:
    """Return the longest sequence asked for.

    Raises:
        ValueError: It is longer than the model's positions.
    """
    longest = model.max_position_embeddings
    if config.max_model_len is None:
        return longest
    if config.max_model_len > longest:
        raise ValueError(
            f"max_model_len={config.max_model_len} is above the model's "
            f"max_position_embeddings={longest}; lower it"
        )
    return config.max_model_len


def fit_model_len(config: EngineConfig, *, num_pages: int, wanted: int) -> int:
    """Return the longest sequence, which the pages must hold.

    Raises:
        ValueError: A length was asked for and the pages do not hold it.
    """
    held = num_pages * config.page_size
    if config.max_model_len is not None and held < wanted:
        raise ValueError(
            f"num_pages={num_pages} of page_size={config.page_size} hold {held} tokens, below "
            f"max_model_len={wanted}; give the KV cache more memory or lower max_model_len"
        )
    if held < wanted:
        log.info("max_model_len is %d: what %d KV pages hold", held, num_pages)
    return min(wanted, held)


def choose_num_pages(
    config: EngineConfig, model: Qwen3, *, wanted: int, dtype: torch.dtype, max_context: int
) -> int:
    """Return the number of KV pages: as asked, or what memory allows and the engine can use.

    Raises:
        ValueError: Not even one page fits.
    """
    if config.num_pages is not None:
        return config.num_pages
    each = page_bytes(model.config, page_size=config.page_size, dtype=dtype)
    usable = config.max_num_seqs * -(-wanted // config.page_size)
    room, source = config.kv_cache_bytes, f"kv_cache_bytes={config.kv_cache_bytes}"
    if model.embed.is_cuda:
        room = _gpu_room(config, model, max_context=max_context)
        source = f"gpu_memory_utilization={config.gpu_memory_utilization}"
    pages = min(usable, room // each)
    if pages < 1:
        raise ValueError(f"{source} leaves {room} bytes, below the {each} of one KV page; raise it")
    return pages


def new_cache(model: ModelConfig, *, num_pages: int, page_size: int, like: torch.Tensor) -> KVCache:
    """Return zeroed pages, in the dtype and on the device of ``like``.

    Zeroed, because attention multiplies what lies behind a sequence's last token by 0, and memory
    as it is found may hold NaN.
    """
    shape = (model.num_layers, num_pages, model.num_kv_heads, page_size, model.head_dim)
    return KVCache(k=_zeros(shape, like=like), v=_zeros(shape, like=like))


def _zeros(shape: tuple[int, ...], *, like: torch.Tensor) -> torch.Tensor:
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    # NumPy asks the system for zeroed memory, which is not taken before it is written.
    memory = np.zeros(math.prod(shape) * like.dtype.itemsize, np.uint8)
    return torch.from_numpy(memory).view(like.dtype).view(shape)


def _gpu_room(config: EngineConfig, model: Qwen3, *, max_context: int) -> int:
    """Return the bytes for pages: a share of what is free, less what the largest step takes."""
    device = model.embed.device
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    _largest_step(config, model)
    activations = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    c = model.config
    gathered = 2 * max_context * c.num_kv_heads * c.head_dim * model.embed.dtype.itemsize
    return max(int(free * config.gpu_memory_utilization) - activations - gathered, 0)


@torch.inference_mode()
def _largest_step(config: EngineConfig, model: Qwen3) -> None:
    """Run a step of the most tokens and the most rows to sample, storing nothing."""
    device, tokens = model.embed.device, config.max_num_batched_tokens
    length = min(tokens, len(model.cos))
    ends = torch.arange(0, tokens + length, length, device=device).clamp(max=tokens).int()
    zeros = torch.zeros(tokens, dtype=torch.int64, device=device)
    none = torch.zeros((0, 1), dtype=torch.int32, device=device)
    packed = PackedRows(
        cu_seqlens=ends,
        max_seqlen=length,
        page_table=none,
        seq_lens=none[:, 0],
        cu_seqlens_k=ends,
        max_seqlen_k=length,
        total_k=0,
    )
    batch = Batch(
        tokens_T=zeros,
        positions_T=zeros,
        kv_slots_T=zeros - 1,
        page_table_BM=none,
        seq_lens_B=none[:, 0],
        packed=packed,
    )
    cache = new_cache(model.config, num_pages=1, page_size=config.page_size, like=model.embed)
    hidden = model.forward(batch, cache)
    rows = zeros[: config.max_num_seqs]
    half = rows.float() + 0.5
    sample(
        model.logits(hidden[: config.max_num_seqs]),
        temperature_B=half,
        top_p_B=half,
        seeds_B=rows,
        steps_B=rows,
    )
