"""The door for Hugging Face models: these kernels under transformers' own modules.

``register_attention`` adds one name to transformers' public attention interface; a model takes it
by ``attn_implementation="nanokernels"``. ``patch`` does that for a model already made, and replaces
the forward of its norms and MLPs, found by an explicit list of class names: a class that is not on
the list is left alone, since another model's "RMSNorm" may add 1 to its weight.

Nothing about the parameters changes, so checkpoints load and save as before.
"""

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention.varlen import attention
from .padding import pad_input, unpad_input
from .rms_norm import rms_norm
from .swiglu import silu_mul

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "nanokernels"
NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
"""Classes whose forward is ``weight * x / rms(x)`` with ``variance_epsilon``."""
MLPS = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")
"""Classes whose forward is ``down_proj(act_fn(gate_proj(x)) * up_proj(x))``."""


class _Packing(NamedTuple):
    """Sequences end to end."""

    cu_seqlens: Tensor
    max_seqlen: int


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return attention as transformers' attention interface asks for it.

    Sequences may be padded (a mask), packed by ``cu_seq_lens_q`` and ``max_length_q``, or packed by
    ``position_ids`` that start again at 0. The last costs a wait for the device in every layer.

    Args:
        module: The attention layer; its ``is_causal`` counts where the argument is None.
        query: [B, H, S, D], the last S positions of the keys.
        key: [B, K, Sk, D].
        value: [B, K, Sk, D].
        attention_mask: [B, Sk], nonzero on tokens, or None.
        dropout: Only 0.
        scaling: Multiplies the scores; D ** -0.5 when None.
        sliding_window: Keys a query sees, its own among them; None for all.
        is_causal: Whether a query sees only keys up to its own position.
        **kwargs: The rest of what transformers knows.

    Returns:
        [B, S, H, D], and None for the weights.

    Raises:
        ValueError: Dropout, soft caps, attention sinks or attention weights are asked for.
    """
    for name in ("softcap", "s_aux", "output_attentions"):
        if kwargs.get(name):
            raise ValueError(f"{name} is set and {NAME} attention has none; use 'eager'")
    if dropout:
        raise ValueError(f"dropout={dropout} is not supported; set attention_dropout=0")
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    options: dict[str, Any] = {"causal": causal, "window": sliding_window, "scale": scaling}
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if attention_mask is not None:
        return _attend_padded(q, k, v, attention_mask, options), None
    packing = _packing(q, k, kwargs)
    if packing is None:
        return attention(q, k, v, **options), None
    flat = (x.flatten(0, 1) for x in (q, k, v))
    o = attention(*flat, cu_seqlens=packing[0], max_seqlen=packing[1], **options)
    return o.view_as(q), None


def _attend_padded(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, options: dict[str, Any]
) -> Tensor:
    """Return attention of padded rows, by packing them; zeros on padding."""
    batch, length = q.shape[:2]
    queries = unpad_input(q, mask[:, -length:])
    keys = unpad_input(k, mask)
    values = v.flatten(0, 1).index_select(0, keys.indices)
    o = attention(
        queries.hidden_states,
        keys.hidden_states,
        values,
        cu_seqlens=queries.cu_seqlens,
        max_seqlen=queries.max_seqlen,
        cu_seqlens_k=keys.cu_seqlens,
        max_seqlen_k=keys.max_seqlen,
        **options,
    )
    return pad_input(o, queries.indices, batch, length)


def _packing(q: Tensor, k: Tensor, kwargs: dict[str, Any]) -> _Packing | None:
    """Return the sequences that are packed in the rows, None when a row is a sequence."""
    cu_seqlens = kwargs.get("cu_seq_lens_q")
    if cu_seqlens is not None:
        return _Packing(cu_seqlens.to(torch.int32), int(kwargs["max_length_q"]))
    positions = kwargs.get("position_ids")
    one_row = q.shape[0] == 1 and 1 < q.shape[1] == k.shape[1]
    if positions is None or not one_row or positions.shape[-1] != q.shape[1]:
        return None
    starts = (positions.flatten() == 0).nonzero().squeeze(1)
    if len(starts) < 2:
        return None
    cu_seqlens = F.pad(starts, (0, 1), value=q.shape[1]).to(torch.int32)
    return _Packing(cu_seqlens, int(cu_seqlens.diff().max()))


def _padding_mask(*_args: object, **kwargs: Any) -> Tensor | None:
    """Return the [B, Sk] mask itself, None when it hides nothing, as transformers asks for it."""
    mask: Tensor | None = kwargs.get("attention_mask")
    if mask is None:
        return None
    mask = mask[:, -int(kwargs["kv_length"]) :]
    return None if bool(mask.all()) else mask


def register_attention() -> str:
    """Add this package's attention to transformers' interface and return its name there.

    ``AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register_attention())``.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _padding_mask)
    return NAME


def _norm(module: Any, hidden_states: Tensor) -> Tensor:  # noqa: ANN401 - a class of NORMS
    return rms_norm(hidden_states, module.weight, eps=module.variance_epsilon)


def _mlp(module: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - a class of MLPS
    y: Tensor = module.down_proj(silu_mul(module.gate_proj(x), module.up_proj(x)))
    return y


def patch(model: "PreTrainedModel") -> list[str]:
    """Make a model use these kernels and return the names of the modules changed.

    Attention goes through :func:`register_attention`; norms and MLPs of the classes listed above
    get another forward. Parameters stay what they are.

    Args:
        model: A transformers model, on any device.

    Raises:
        ValueError: Nothing in the model is on the lists, or an MLP's activation is not silu.
    """
    changed = []
    for name, module in model.named_modules():
        forward = _forward_of(name, module)
        if forward is not None:
            module.forward = MethodType(forward, module)
            changed.append(name)
    if not changed:
        kinds = ", ".join((*NORMS, *MLPS))
        raise ValueError(f"{type(model).__name__} has none of the modules {kinds}; do not patch it")
    model.set_attn_implementation(register_attention())
    return changed


def _forward_of(name: str, module: nn.Module) -> Callable[..., Tensor] | None:
    kind = type(module).__name__
    if kind in NORMS:
        return _norm
    if kind not in MLPS:
        return None
    activation = getattr(module, "act_fn", None)
    probe = torch.tensor([-1.0, 0.5])
    if not callable(activation) or not torch.allclose(activation(probe), F.silu(probe)):
        raise ValueError(f"{name}: act_fn={activation} is not silu; leave this model unpatched")
    return _mlp
