"""Qwen3 (arXiv:2505.09388), one pipeline stage and one tensor parallel slice of it.

Mirrors transformers' ``modeling_qwen3.py`` on packed sequences: pre-norm blocks, grouped-query
attention with RMSNorm on each query and key head, rotary positions, SwiGLU. With ``Mesh()`` it is
the whole plain model.

Shape legend: T = packed tokens, C = hidden size, H = query heads, K = key-value heads,
D = head dimension, F = feed-forward width (H, K and F of this tp rank).
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanorlhf.nanokernels import attention, linear_logprob, rope, rope_table, swiglu

from .backward import recompute
from .collectives import copy_to_group
from .companions import read_companions
from .config import ModelConfig, check_split
from .errors import CheckpointError
from .flat import FlatParameters
from .layers import ColumnLinear, RMSNorm, RowLinear, VocabEmbedding
from .loss import TokenOutputs
from .mesh import Mesh
from .packing import Microbatch
from .spec import Head, param_table, split_layers
from .weights import HFWeights, fresh


class Pack(NamedTuple):
    """What every layer needs to know about the packed sequences."""

    cu_seqlens: Tensor
    max_seqlen: int
    cos: Tensor
    sin: Tensor


class Attention(nn.Module):
    """Grouped-query attention with query and key norms."""

    def __init__(self, config: ModelConfig, flat: FlatParameters, prefix: str) -> None:
        super().__init__()
        tp, group = flat.mesh.tp, flat.mesh.tp_group
        self.head_dim = config.head_dim
        self.heads = config.num_attention_heads // tp
        self.kv_heads = config.num_key_value_heads // tp

        def bias(name: str) -> nn.Parameter | None:
            return flat.parameter(f"{prefix}{name}.bias") if config.attention_bias else None

        self.qkv = ColumnLinear(
            flat.parameter(f"{prefix}qkv_proj.weight"), bias=bias("qkv_proj"), group=group
        )
        self.out = RowLinear(
            flat.parameter(f"{prefix}o_proj.weight"), bias=bias("o_proj"), group=group
        )
        eps = config.rms_norm_eps
        self.q_norm = RMSNorm(flat.parameter(f"{prefix}q_norm.weight"), eps=eps)
        self.k_norm = RMSNorm(flat.parameter(f"{prefix}k_norm.weight"), eps=eps)

    def forward(self, x: Tensor, pack: Pack) -> Tensor:
        """Return the attention output [T, C]."""
        heads = self.qkv(x).view(len(x), -1, self.head_dim)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q = rope(self.q_norm(q), pack.cos, pack.sin)
        k = rope(self.k_norm(k), pack.cos, pack.sin)
        o = attention(q, k, v, cu_seqlens=pack.cu_seqlens, max_seqlen=pack.max_seqlen)
        return self.out(o.reshape(len(x), -1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self, config: ModelConfig, flat: FlatParameters, layer: int) -> None:
        super().__init__()
        prefix, group = f"model.layers.{layer}.", flat.mesh.tp_group
        eps = config.rms_norm_eps
        self.attention_norm = RMSNorm(flat.parameter(f"{prefix}input_layernorm.weight"), eps=eps)
        self.attention = Attention(config, flat, f"{prefix}self_attn.")
        self.mlp_norm = RMSNorm(flat.parameter(f"{prefix}post_attention_layernorm.weight"), eps=eps)
        gate_up = flat.parameter(f"{prefix}mlp.gate_up_proj.weight")
        self.gate_up = ColumnLinear(gate_up, bias=None, group=group)
        self.down = RowLinear(
            flat.parameter(f"{prefix}mlp.down_proj.weight"), bias=None, group=group
        )

    def forward(self, x: Tensor, pack: Pack) -> Tensor:
        """Return the residual stream [T, C] after the layer."""
        x = x + self.attention(self.attention_norm(x), pack)
        return x + self.down(swiglu(self.gate_up(self.mlp_norm(x))))  # type: ignore[no-any-return]


class Qwen3(nn.Module):
    """The part of a Qwen3 decoder that belongs to this rank.

    Parameters are views of ``flat``; the table ``specs`` says what each is called in a checkpoint.

    Args:
        config: Sizes.
        mesh: The layout and this rank's place in it.
        head: "lm" for log-probabilities, "value" for one value a token (no LM head).
        dtype: Of the parameters; bfloat16 trains with float32 master weights.
        device: Where parameters live.
        seed: Of the initial weights; the same weights in every layout.

    Raises:
        ValueError: The model cannot be cut over the mesh.
    """

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh,
        *,
        head: Head = "lm",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._build(config, mesh, head=head, dtype=dtype, device=device)
        for slot in self.flat.layout.slots:
            full = fresh(slot.spec, seed=seed, std=config.initializer_range)
            local = full[slot.spec.local_slices(mesh.tp, mesh.tp_rank)]
            self.flat.view(self.flat.data, slot.spec.name).copy_(local)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        mesh: Mesh,
        *,
        head: Head = "lm",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "Qwen3":
        """Return the model of a Hugging Face directory; each rank reads only its slices.

        ``head="value"`` on a language model checkpoint starts the value head at zero.

        Raises:
            CheckpointError: Config, weights or some tensor are missing, or shapes differ.
            ValueError: The model cannot be cut over the mesh.
        """
        config = ModelConfig.from_pretrained(path)
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._build(config, mesh, head=head, dtype=dtype, device=device)
        model.load_weights(path)
        return model

    def _build(
        self,
        config: ModelConfig,
        mesh: Mesh,
        *,
        head: Head,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        """Create buffers and modules of this rank, with all weights 0."""
        if head not in ("lm", "value"):
            raise ValueError(f"head={head!r}: choose 'lm' or 'value'")
        check_split(config, pp=mesh.pp, tp=mesh.tp)
        self.config, self.mesh, self.head_kind, self.recompute = config, mesh, head, False
        self.companions: dict[str, bytes] = {}
        self.specs = param_table(config, pp=mesh.pp, head=head)
        flat = self.flat = FlatParameters(self.specs, mesh, dtype=dtype, device=device)
        vocab_start = mesh.tp_rank * config.vocab_size // mesh.tp
        self.vocab_start = vocab_start
        layers = split_layers(config, pp=mesh.pp, head=head)[mesh.pp_rank]
        if mesh.is_first_stage:
            self.embedding = VocabEmbedding(
                flat.parameter("model.embed_tokens.weight"),
                vocab_start=vocab_start,
                group=mesh.tp_group,
            )
        self.blocks = nn.ModuleList(Block(config, flat, layer) for layer in layers)
        if mesh.is_last_stage:
            self._build_head(flat)

    def _build_head(self, flat: FlatParameters) -> None:
        """Create the final norm and the head."""
        self.norm = RMSNorm(flat.parameter("model.norm.weight"), eps=self.config.rms_norm_eps)
        if self.head_kind == "value":
            self.score = flat.parameter("score.weight")
            self.score_bias = flat.parameter("score.bias")
        else:
            tied = self.config.tie_word_embeddings
            name = "model.embed_tokens.weight" if tied else "lm_head.weight"
            self.lm_head = flat.parameter(name)

    def load_weights(self, path: str | Path) -> None:
        """Read this rank's slices from a Hugging Face directory; see `from_pretrained`."""
        with HFWeights(path) as files, torch.no_grad():
            specs = [slot.spec for slot in self.flat.layout.slots]
            missing = [s.name for s in specs if s.name not in files and not s.optional]
            if missing:
                raise CheckpointError(
                    f"{path}: {len(missing)} tensors are missing, first {missing[0]}; it holds "
                    f"{len(files.names)}, first {min(files.names, default='none')}"
                )
            for spec in specs:
                target = self.flat.view(self.flat.data, spec.name)
                if spec.name in files:
                    target.copy_(files.read(spec, tp=self.mesh.tp, tp_rank=self.mesh.tp_rank))
                else:
                    target.copy_(fresh(spec, seed=0, std=0.0))
        self.companions = read_companions(path)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.flat.data.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return self.flat.data.dtype

    def forward(self, x: Tensor | None, batch: Microbatch) -> Tensor:
        """Return the hidden states [T, C] after this stage's layers.

        Args:
            x: [T, C] from the stage before; None on the first, which embeds ``batch.tokens``.
            batch: The packed sequences, on the model's device.
        """
        pack = self._pack(batch)
        if x is None:
            x = self.embedding(batch.tokens)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = recompute(block, x, pack)
            else:
                x = block(x, pack)
        assert x is not None
        return x

    def _pack(self, batch: Microbatch) -> Pack:
        """Return positions (counted from 0 in each sequence) as rotary tables, and the bounds."""
        bounds = batch.cu_seqlens.long()
        starts = torch.repeat_interleave(bounds[:-1], bounds.diff(), output_size=batch.num_tokens)
        positions = torch.arange(batch.num_tokens, device=bounds.device) - starts
        cos, sin = rope_table(
            positions, head_dim=self.config.head_dim, theta=self.config.rope_theta
        )
        return Pack(batch.cu_seqlens, batch.max_seqlen, cos, sin)

    def head(self, hidden: Tensor, batch: Microbatch, *, temperature: float = 1.0) -> TokenOutputs:
        """Return the outputs of the masked tokens (last stage only), the same on every tp rank.

        Only the hidden states that predict a masked token reach the head.
        """
        if not len(batch.targets):
            zeros = hidden.new_zeros(len(hidden), dtype=_wide(hidden.dtype))
            value = self.head_kind == "value"
            return TokenOutputs(values=zeros) if value else TokenOutputs(zeros, zeros)
        chosen = self.norm(hidden.index_select(0, batch.targets - 1))
        if self.head_kind == "value":
            values = F.linear(chosen, self.score, self.score_bias)[:, 0]
            return TokenOutputs(values=_scatter(values, batch))
        out = linear_logprob(
            copy_to_group(chosen, self.mesh.tp_group),
            self.lm_head,
            batch.tokens[batch.targets],
            temperature=temperature,
            vocab_start=self.vocab_start,
            group=self.mesh.tp_group,
        )
        return TokenOutputs(_scatter(out.logprobs, batch), _scatter(out.entropy, batch))


def _scatter(values: Tensor, batch: Microbatch) -> Tensor:
    """Return [T] with ``values`` at the masked tokens and 0 elsewhere, at least float32."""
    wide = values.to(_wide(values.dtype))
    return wide.new_zeros(batch.num_tokens).index_copy(0, batch.targets, wide)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64, float32 for everything narrower."""
    return torch.promote_types(dtype, torch.float32)
