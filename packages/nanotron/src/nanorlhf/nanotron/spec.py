"""The parameter table: one row a Hugging Face tensor, and everything parallel derives from it.

Name, full shape, slice of a tensor parallel rank, how its gradient is reduced, weight decay,
stages that hold it, initialisation: init, loading, gradient reductions, the gradient norm,
checkpoints and export all read this table and none of them looks at a name. A reduction cannot
be forgotten in one of them.

The row that is easily got wrong is ``q_norm``/``k_norm``: the weight is whole on every tp rank, but
it acts on that rank's heads only, so each rank's gradient is a partial sum
(``grad="partial_tp"``; Hugging Face calls it ``replicated_with_grad_allreduce``).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .config import ModelConfig

Head = Literal["lm", "value"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamSpec:
    """One tensor of a checkpoint and how it is spread over the ranks."""

    name: str
    """Hugging Face name."""
    shape: tuple[int, ...]
    """Full shape."""
    stages: tuple[int, ...]
    """Pipeline stages that hold it; two for embeddings tied across stages, the first owns it."""
    shard_dim: int | None = None
    """Dimension cut over tp; None when every tp rank holds all of it."""
    grad: Literal["whole", "partial_tp"] = "whole"
    """"partial_tp": each tp rank's gradient is a term of a sum over the tp group."""
    init: Literal["normal", "ones", "zeros"] = "normal"
    """Fresh values."""
    optional: bool = False
    """A checkpoint may lack it (a value head put on a language model); it starts at ``init``."""
    fused: str = ""
    """The module parameter it is a part of (rows stacked); its own name when it stands alone."""

    @property
    def decay(self) -> bool:
        """Weight decay applies: matrices only, never norms or biases."""
        return len(self.shape) > 1

    @property
    def module_name(self) -> str:
        """Name of the module parameter that contains it."""
        return self.fused or self.name

    def local_shape(self, tp: int) -> tuple[int, ...]:
        """Return the shape of one tp rank's slice."""
        return tuple(n // tp if d == self.shard_dim else n for d, n in enumerate(self.shape))

    def local_slices(self, tp: int, tp_rank: int) -> tuple[slice, ...]:
        """Return the index of one tp rank's slice in the full tensor."""
        local = self.local_shape(tp)
        return tuple(
            slice(tp_rank * n, (tp_rank + 1) * n) if d == self.shard_dim else slice(0, n)
            for d, n in enumerate(local)
        )


def split_layers(config: ModelConfig, *, pp: int, head: Head = "lm") -> list[range]:
    """Return the layers of each pipeline stage, balanced by cost including the LM head.

    A layer costs its matrix elements; the LM head costs vocab * hidden and sits on the last stage
    (8.7 layers' worth for Qwen3-0.6B), so the last stage gets as many layers as keep the slowest
    stage fastest. Stages before it differ by at most one layer, earlier ones get the extra.

    >>> c = ModelConfig(vocab_size=151936, hidden_size=1024, intermediate_size=3072, head_dim=128,
    ...     num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8)
    >>> [len(r) for r in split_layers(c, pp=2)], [len(r) for r in split_layers(c, pp=4)]
    ([19, 9], [9, 9, 9, 1])
    """
    layers = config.num_hidden_layers
    if pp == 1:
        return [range(layers)]
    extra = config.vocab_size * config.hidden_size / _layer_elements(config) if head == "lm" else 0

    def slowest(last: int) -> float:
        return max(last + extra, -(-(layers - last) // (pp - 1)))

    last = min(range(layers - pp + 1, 0, -1), key=slowest)
    base, more = divmod(layers - last, pp - 1)
    counts = [base + (stage < more) for stage in range(pp - 1)] + [last]
    starts = [sum(counts[:stage]) for stage in range(pp)]
    return [range(start, start + count) for start, count in zip(starts, counts, strict=True)]


def _layer_elements(config: ModelConfig) -> int:
    """Return the matrix elements of one decoder layer."""
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    return config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)


def param_table(config: ModelConfig, *, pp: int = 1, head: Head = "lm") -> list[ParamSpec]:
    """Return the specification of every tensor of the model, in checkpoint order."""
    vocab, hidden, last = config.vocab_size, config.hidden_size, pp - 1
    tied = config.tie_word_embeddings and head == "lm"
    table = [
        ParamSpec(
            name="model.embed_tokens.weight",
            shape=(vocab, hidden),
            shard_dim=0,
            stages=(0, last) if tied and pp > 1 else (0,),
        )
    ]
    for stage, layers in enumerate(split_layers(config, pp=pp, head=head)):
        for layer in layers:
            table += _layer_specs(config, layer, stage)
    table.append(ParamSpec(name="model.norm.weight", shape=(hidden,), stages=(last,), init="ones"))
    if head == "value":
        for name, shape in {"score.weight": (1, hidden), "score.bias": (1,)}.items():
            table.append(
                ParamSpec(name=name, shape=shape, stages=(last,), init="zeros", optional=True)
            )
    elif not tied:
        table.append(
            ParamSpec(name="lm_head.weight", shape=(vocab, hidden), shard_dim=0, stages=(last,))
        )
    return table


def _layer_specs(config: ModelConfig, layer: int, stage: int) -> Iterator[ParamSpec]:
    """Yield the tensors of one decoder layer."""
    prefix = f"model.layers.{layer}."
    hidden, ffn, dim = config.hidden_size, config.intermediate_size, config.head_dim
    q_rows, kv_rows = config.num_attention_heads * dim, config.num_key_value_heads * dim

    def norm(name: str, size: int, *, partial: bool = False) -> ParamSpec:
        return ParamSpec(
            name=f"{prefix}{name}.weight",
            shape=(size,),
            stages=(stage,),
            grad="partial_tp" if partial else "whole",
            init="ones",
        )

    def matrix(name: str, rows: int, cols: int, *, dim: int, fused: str = "") -> ParamSpec:
        return ParamSpec(
            name=f"{prefix}{name}.weight",
            shape=(rows, cols),
            stages=(stage,),
            shard_dim=dim,
            fused=f"{prefix}{fused}.weight" if fused else "",
        )

    def bias(name: str, rows: int, *, dim: int | None, fused: str = "") -> ParamSpec:
        return ParamSpec(
            name=f"{prefix}{name}.bias",
            shape=(rows,),
            stages=(stage,),
            shard_dim=dim,
            init="zeros",
            fused=f"{prefix}{fused}.bias" if fused else "",
        )

    rows = {"q_proj": q_rows, "k_proj": kv_rows, "v_proj": kv_rows}
    yield norm("input_layernorm", hidden)
    for name, count in rows.items():
        yield matrix(f"self_attn.{name}", count, hidden, dim=0, fused="self_attn.qkv_proj")
    yield matrix("self_attn.o_proj", hidden, q_rows, dim=1)
    if config.attention_bias:
        for name, count in rows.items():
            yield bias(f"self_attn.{name}", count, dim=0, fused="self_attn.qkv_proj")
        yield bias("self_attn.o_proj", hidden, dim=None)
    yield norm("self_attn.q_norm", dim, partial=True)
    yield norm("self_attn.k_norm", dim, partial=True)
    yield norm("post_attention_layernorm", hidden)
    yield matrix("mlp.gate_proj", ffn, hidden, dim=0, fused="mlp.gate_up_proj")
    yield matrix("mlp.up_proj", ffn, hidden, dim=0, fused="mlp.gate_up_proj")
    yield matrix("mlp.down_proj", hidden, ffn, dim=1)
