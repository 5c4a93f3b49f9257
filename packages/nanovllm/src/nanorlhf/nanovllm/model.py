"""Qwen3 for inference: packed tokens in, hidden states of the same tokens out, KV pages updated.

```
 tokens [T] -> embed -> +--------------------- layer x num_layers ----------------------+ -> norm
                        | norm -> qkv -> q/k norm, rope -> store kv -> attend -> o -> + |
                        | norm -> gate|up -> swiglu -> down -> +                        |
                        +---------------------------------------------------------------+
```

There is no padding: the T tokens of a step are those of its rows, one row after another. Rows of
one token come first and attend through the page table; the others attend over packed keys, gathered
from the pages if a row continues a prefix. Projections that read the same input are one matrix.
The head runs only on the tokens that are sampled from.

Shape legend: T = tokens of a step, B = rows of one token, N = rows of several, S = keys of those,
H = query heads, K = key heads, D = head dim, C = hidden, M = pages of a row, V = vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanorlhf.nanokernels import (
    Impl,
    attention,
    gather_kv,
    paged_attention,
    rms_norm,
    rope,
    rope_table,
    store_kv,
    swiglu,
)

from .config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """Rows of several tokens; where one continues computed tokens, keys come from the pages."""

    cu_seqlens: Tensor
    """int32 [N + 1], into the tokens after the single ones."""
    max_seqlen: int
    page_table: Tensor
    """int32 [N, M]."""
    seq_lens: Tensor
    """int32 [N], prefix included."""
    cu_seqlens_k: Tensor
    """int32 [N + 1]."""
    max_seqlen_k: int
    total_k: int
    """S, or 0 when no row has a prefix: then keys are those just computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The tokens of a step and where their keys are, on the model's device."""

    tokens_T: Tensor
    """int64."""
    positions_T: Tensor
    """int64."""
    kv_slots_T: Tensor
    """int64, page * page_size + offset."""
    page_table_BM: Tensor
    """int32, of the rows of one token."""
    seq_lens_B: Tensor
    """int32, the token itself included."""
    packed: PackedRows | None
    """None when every row is one token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCache:
    """Keys and values, [layers, pages, K, page_size, D]."""

    k: Tensor
    v: Tensor

    def copy_pages(self, source: Tensor, target: Tensor) -> None:
        """Copy whole pages, in every layer; int64 [count] each."""
        self.k[:, target] = self.k[:, source]
        self.v[:, target] = self.v[:, source]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The weights of one decoder layer, as torch.nn.Linear keeps them: [out, in]."""

    input_norm: Tensor
    qkv: Tensor
    q_norm: Tensor
    k_norm: Tensor
    o: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


class Qwen3:
    """The model's weights, in storage that never moves, and its forward pass.

    Args:
        config: The shape.
        max_model_len: How many positions the rotary table holds.
        dtype: Of weights and activations.
        device: Where everything lies.
        impl: Passed to every kernel.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        max_model_len: int,
        dtype: torch.dtype,
        device: torch.device,
        impl: Impl = "auto",
    ) -> None:
        self.config = config
        self.impl = impl

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.embed = empty(config.vocab_size, config.hidden_size)
        self.layers = [self._empty_layer(empty) for _ in range(config.num_layers)]
        self.norm = empty(config.hidden_size)
        self.head = self.embed if config.tie_word_embeddings else torch.empty_like(self.embed)
        positions = torch.arange(max_model_len, device=device)
        self.cos, self.sin = rope_table(
            positions, head_dim=config.head_dim, theta=config.rope_theta
        )

    def parameters(self) -> dict[str, Tensor]:
        """Return every tensor of the checkpoint by its Hugging Face name, as a view to write to."""
        named = {"model.embed_tokens.weight": self.embed, "model.norm.weight": self.norm}
        if self.head is not self.embed:
            named["lm_head.weight"] = self.head
        for index, layer in enumerate(self.layers):
            for name, tensor in self._named_layer(layer).items():
                named[f"model.layers.{index}.{name}.weight"] = tensor
        return named

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Return the hidden states of the step's tokens, [T, C], before the last norm.

        Their keys and values are in the cache afterwards.
        """
        x_TC = F.embedding(batch.tokens_T, self.embed)
        cos, sin = self.cos[batch.positions_T], self.sin[batch.positions_T]
        for index, layer in enumerate(self.layers):
            q, k, v = self._qkv(layer, x_TC, cos=cos, sin=sin)
            store_kv(k, v, cache.k[index], cache.v[index], batch.kv_slots_T, impl=self.impl)
            o_THD = self._attend(q, k, v, batch=batch, pages=(cache.k[index], cache.v[index]))
            x_TC = x_TC + F.linear(o_THD.flatten(1), layer.o)
            x_TC = x_TC + self._mlp(layer, x_TC)
        return x_TC

    def logits(self, hidden_BC: Tensor) -> Tensor:
        """Return the logits of the tokens after these, [B, V]."""
        return F.linear(self._norm(hidden_BC, self.norm), self.head)

    def _empty_layer(self, empty: Callable[..., Tensor]) -> Layer:
        c = self.config
        hidden, q_size, kv_size = (
            c.hidden_size,
            c.num_heads * c.head_dim,
            c.num_kv_heads * c.head_dim,
        )
        return Layer(
            input_norm=empty(hidden),
            qkv=empty(q_size + 2 * kv_size, hidden),
            q_norm=empty(c.head_dim),
            k_norm=empty(c.head_dim),
            o=empty(hidden, q_size),
            post_norm=empty(hidden),
            gate_up=empty(2 * c.intermediate_size, hidden),
            down=empty(hidden, c.intermediate_size),
        )

    def _named_layer(self, layer: Layer) -> dict[str, Tensor]:
        c = self.config
        q_size, kv_size = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        q, k, v = layer.qkv.split_with_sizes([q_size, kv_size, kv_size])
        gate, up = layer.gate_up.chunk(2)
        return {
            "input_layernorm": layer.input_norm,
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.q_norm": layer.q_norm,
            "self_attn.k_norm": layer.k_norm,
            "self_attn.o_proj": layer.o,
            "post_attention_layernorm": layer.post_norm,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.down,
        }

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, eps=self.config.rms_norm_eps, impl=self.impl)

    def _qkv(
        self, layer: Layer, x_TC: Tensor, *, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        c = self.config
        qkv = F.linear(self._norm(x_TC, layer.input_norm), layer.qkv)
        heads = qkv.view(len(qkv), c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        q, k, v = heads.split_with_sizes([c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=1)
        q = rope(self._norm(q, layer.q_norm), cos, sin, impl=self.impl)
        k = rope(self._norm(k, layer.k_norm), cos, sin, impl=self.impl)
        return q, k, v

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, batch: Batch, pages: tuple[Tensor, Tensor]
    ) -> Tensor:
        singles, parts = len(batch.seq_lens_B), []
        if singles:
            parts.append(
                paged_attention(
                    q[:singles], *pages, batch.page_table_BM, batch.seq_lens_B, impl=self.impl
                )
            )
        if batch.packed is not None:
            parts.append(
                self._attend_packed(
                    q[singles:], k[singles:], v[singles:], rows=batch.packed, pages=pages
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend_packed(
        self, q: Tensor, k: Tensor, v: Tensor, *, rows: PackedRows, pages: tuple[Tensor, Tensor]
    ) -> Tensor:
        if not rows.total_k:
            return attention(
                q, k, v, cu_seqlens=rows.cu_seqlens, max_seqlen=rows.max_seqlen, impl=self.impl
            )
        k, v = gather_kv(*pages, rows.page_table, rows.seq_lens, total=rows.total_k)
        return attention(
            q,
            k,
            v,
            cu_seqlens=rows.cu_seqlens,
            max_seqlen=rows.max_seqlen,
            cu_seqlens_k=rows.cu_seqlens_k,
            max_seqlen_k=rows.max_seqlen_k,
            impl=self.impl,
        )

    def _mlp(self, layer: Layer, x_TC: Tensor) -> Tensor:
        gate_up = F.linear(self._norm(x_TC, layer.post_norm), layer.gate_up)
        return F.linear(swiglu(gate_up, impl=self.impl), layer.down)
