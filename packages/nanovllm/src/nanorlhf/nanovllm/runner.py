"""Runs a step: NumPy columns to device tensors, the model, the draw, and the tokens back.

The host sends one packed buffer a step (pinned, asynchronously, on CUDA; without a copy on a CPU)
and reads one back, which is also where it waits for the device.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanorlhf.nanokernels import sample

from .model import Batch, KVCache, PackedRows, Qwen3
from .sequence import IntArray
from .state import BatchState
from .step import Step


class Drawn(NamedTuple):
    """The sampled tokens of a step, in the order of its ``sample_slots_B``."""

    tokens_B: NDArray[np.int32]
    logprobs_B: NDArray[np.float32]
    raw_logprobs_B: NDArray[np.float32]


class Sender:
    """Moves named arrays to a device in one transfer.

    On a CPU the tensors share the arrays' memory. On CUDA they share one device buffer, which the
    next call overwrites, behind the step that reads it in the order of the stream.
    """

    ALIGNMENT = 16

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host = torch.empty(0, dtype=torch.uint8)
        self._target = torch.empty(0, dtype=torch.uint8, device=device)
        self._arrived: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def send(self, arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, Tensor]:
        """Return the arrays as tensors on the device."""
        tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}
        if self._arrived is None:
            return tensors
        # A step that samples nothing returns at once, perhaps before its transfer has begun.
        self._arrived.synchronize()
        ends = np.cumsum(
            [-(-t.nbytes // self.ALIGNMENT) * self.ALIGNMENT for t in tensors.values()]
        )
        self._reserve(int(ends[-1]))
        parts = dict(zip(tensors, [0, *ends[:-1].tolist()], strict=True))
        for name, tensor in tensors.items():
            self._part(self._host, parts[name], tensor).copy_(tensor)
        end = int(ends[-1])
        self._target[:end].copy_(self._host[:end], non_blocking=True)
        self._arrived.record()
        return {name: self._part(self._target, parts[name], t) for name, t in tensors.items()}

    def _part(self, buffer: Tensor, begin: int, like: Tensor) -> Tensor:
        return buffer[begin : begin + like.nbytes].view(like.dtype).view(like.shape)

    def _reserve(self, num_bytes: int) -> None:
        if len(self._host) < num_bytes:
            self._host = torch.empty(2 * num_bytes, dtype=torch.uint8, pin_memory=True)
            self._target = torch.empty(2 * num_bytes, dtype=torch.uint8, device=self._device)


class Runner:
    """Computes the steps a scheduler decides on."""

    def __init__(self, model: Qwen3, cache: KVCache, state: BatchState) -> None:
        self.model = model
        self.cache = cache
        self.state = state
        self._sender = Sender(cache.k.device)

    @torch.inference_mode()
    def run(self, step: Step) -> Drawn:
        """Compute the step's tokens, copy its pages, and draw what it samples."""
        rows = _step_arrays(self.state, step)
        arrays: dict[str, NDArray[np.generic]] = {**rows, **_sampling_arrays(self.state, step)}
        if step.copies:
            arrays["copy_from"], arrays["copy_to"] = np.array(step.copies, np.int64).T
        sent = self._sender.send(arrays)
        hidden_TC = self.model.forward(_batch(sent, step, rows), self.cache)
        if step.copies:
            self.cache.copy_pages(sent["copy_from"], sent["copy_to"])
        if not len(step.sample_slots_B):
            none = np.zeros(0, np.float32)
            return Drawn(none.astype(np.int32), none, none)
        return self._draw(hidden_TC[sent["sample_at"]], sent)

    def _draw(self, hidden_BC: Tensor, sent: Mapping[str, Tensor]) -> Drawn:
        drawn = sample(
            self.model.logits(hidden_BC),
            temperature_B=sent["temperature"],
            top_k_B=sent.get("top_k"),
            top_p_B=sent.get("top_p"),
            min_p_B=sent.get("min_p"),
            seeds_B=sent["seed"],
            steps_B=sent["drawn"],
        )
        bits = (drawn.logprobs.view(torch.int32), drawn.raw_logprobs.view(torch.int32))
        packed = torch.stack((drawn.tokens.int(), *bits)).cpu().numpy()
        return Drawn(packed[0], packed[1].view(np.float32), packed[2].view(np.float32))


def _step_arrays(state: BatchState, step: Step) -> dict[str, NDArray[np.generic]]:
    """Return what the forward pass reads, by the names of :func:`_batch`."""
    slots, counts, singles = step.slots_R, step.counts_R, step.num_single
    starts = state.computed[slots]
    ends = starts + counts
    last = np.cumsum(counts) - 1
    if singles == len(slots):
        row_T, positions = slots, starts
    else:
        row_T = np.repeat(slots, counts)
        positions = np.arange(len(row_T)) - np.repeat(last + 1 - ends, counts)
    pages = state.page_table[row_T, positions // state.page_size].astype(np.int64)
    arrays: dict[str, NDArray[np.generic]] = {
        "tokens": state.tokens[row_T, positions].astype(np.int64),
        "positions": positions,
        "kv_slots": pages * state.page_size + positions % state.page_size,
        "page_table": _page_rows(state, slots[:singles], ends[:singles]),
        "seq_lens": ends[:singles].astype(np.int32),
        "sample_at": last[step.sample_rows_B],
    }
    if singles < len(slots):
        arrays |= _packed_arrays(state, slots[singles:], starts[singles:], ends[singles:])
    return arrays


def _packed_arrays(
    state: BatchState, slots: IntArray, starts: IntArray, ends: IntArray
) -> dict[str, NDArray[np.generic]]:
    """Return what the rows of several tokens need."""
    return {
        "cu_seqlens": np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int32),
        "prefix_lens": starts.astype(np.int32),
        "prefix_pages": _page_rows(state, slots, ends),
        "key_lens": ends.astype(np.int32),
        "cu_seqlens_k": np.concatenate([[0], np.cumsum(ends)]).astype(np.int32),
    }


def _page_rows(state: BatchState, slots: IntArray, ends: IntArray) -> NDArray[np.int32]:
    """Return the page tables of some slots, cut to the longest of them."""
    width = -(-int(ends.max()) // state.page_size) if len(ends) else 0
    return state.page_table[slots, :width]


def _batch(
    sent: Mapping[str, Tensor], step: Step, host: Mapping[str, NDArray[np.generic]]
) -> Batch:
    """Assemble the model's input; sizes come from the host's arrays, so nothing waits."""
    packed = None
    if step.num_single < len(step.slots_R):
        lengths = host["key_lens"]
        has_prefix = bool(host["prefix_lens"].any())
        packed = PackedRows(
            cu_seqlens=sent["cu_seqlens"],
            max_seqlen=int(step.counts_R.max()),
            page_table=sent["prefix_pages"],
            seq_lens=sent["key_lens"],
            cu_seqlens_k=sent["cu_seqlens_k"],
            max_seqlen_k=int(lengths.max()),
            total_k=int(lengths.sum()) if has_prefix else 0,
        )
    return Batch(
        tokens_T=sent["tokens"],
        positions_T=sent["positions"],
        kv_slots_T=sent["kv_slots"],
        page_table_BM=sent["page_table"],
        seq_lens_B=sent["seq_lens"],
        packed=packed,
    )


def _sampling_arrays(state: BatchState, step: Step) -> dict[str, NDArray[np.generic]]:
    """Return the sampling columns of the step's slots; truncations nobody asks for are left out."""
    slots = step.sample_slots_B
    arrays: dict[str, NDArray[np.generic]] = {
        "temperature": state.temperature[slots],
        "seed": state.seed[slots],
        "drawn": state.length[slots] - state.prompt_len[slots],
    }
    for name, off in (("top_k", 0), ("top_p", 1), ("min_p", 0)):
        column = getattr(state, name)[slots]
        if (column != off).any():
            arrays[name] = column
    return arrays
