"""Sequences of different lengths laid end to end, without padding.

A `Microbatch` is what one forward pass sees: all sequences in one row of T tokens, with
``cu_seqlens`` marking where each begins. Every rank of a replica (all its tp and pp ranks) gets the
same microbatches, so each pipeline stage knows the shape of what its neighbour sends.

Alignment: a per-token value at index t describes token t. Its log-probability comes from the
hidden state at t - 1, so the first token of a sequence has none and ``mask`` is never True there.

Shape legend: T = packed tokens, N = sequences.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


@dataclass(kw_only=True)
class Microbatch:
    """Packed sequences for one forward (and backward) pass.

    Raises:
        ValueError: Lengths disagree, or the first token of a sequence is in ``mask``.
    """

    tokens: Tensor
    """int64 [T]."""
    cu_seqlens: Tensor
    """int32 [N + 1]: sequence n is ``tokens[cu_seqlens[n]:cu_seqlens[n + 1]]``."""
    max_seqlen: int
    """Length of the longest sequence, 0 when there is none."""
    mask: Tensor
    """bool [T]: tokens whose log-probability (or value) is wanted."""
    fields: dict[str, Tensor] = field(default_factory=dict)
    """Per-token inputs of the loss, each [T]."""
    weight: float | None = None
    """Its share of the loss's denominator; the number of tokens in ``mask`` when None."""
    targets: Tensor = field(init=False)
    """int64: indices where ``mask`` is True, found once here so that a GPU never waits for it."""

    def __post_init__(self) -> None:
        sizes = {name: len(value) for name, value in {"mask": self.mask, **self.fields}.items()}
        wrong = {name: size for name, size in sizes.items() if size != len(self.tokens)}
        if wrong:
            raise ValueError(f"{wrong} differ from the {len(self.tokens)} tokens; each is [T]")
        self.targets = self.mask.nonzero()[:, 0]
        starts = self.cu_seqlens[:-1][self.cu_seqlens[:-1] < self.cu_seqlens[1:]].long()
        if bool(self.mask[starts].any()):
            raise ValueError(
                "mask is True on the first token of a sequence, which nothing predicts; "
                "clear it, or use Microbatch.from_sequences, which does"
            )
        if self.weight is None:
            self.weight = float(len(self.targets))

    @classmethod
    def from_sequences(
        cls,
        sequences: Sequence[ArrayLike],
        masks: Sequence[ArrayLike] | None = None,
        fields: Mapping[str, Sequence[ArrayLike]] | None = None,
        *,
        weight: float | None = None,
    ) -> "Microbatch":
        """Return the sequences packed on the CPU.

        Args:
            sequences: Token ids, one array a sequence.
            masks: Booleans, one array a sequence; all tokens when None. The first token of each
                sequence is cleared: nothing predicts it.
            fields: For each name one array a sequence; floats become float32, integers int64.
            weight: See `Microbatch.weight`.

        >>> Microbatch.from_sequences([[5, 6, 7], [8, 9]]).mask
        tensor([False,  True,  True, False,  True])
        """
        lengths = [len(np.atleast_1d(np.asarray(s))) for s in sequences]
        bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
        total = int(bounds[-1])
        mask = np.ones(total, bool) if masks is None else _pack("masks", masks, lengths)
        mask = mask.astype(bool)
        mask[bounds[:-1][bounds[:-1] < bounds[1:]]] = False
        packed = {name: _pack(name, rows, lengths) for name, rows in (fields or {}).items()}
        return cls(
            tokens=torch.from_numpy(_pack("sequences", sequences, lengths).astype(np.int64)),
            cu_seqlens=torch.from_numpy(bounds),
            max_seqlen=max(lengths, default=0),
            mask=torch.from_numpy(mask),
            fields={name: torch.from_numpy(_canonical(row)) for name, row in packed.items()},
            weight=weight,
        )

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.tokens)

    def to(self, device: torch.device | str) -> "Microbatch":
        """Return the microbatch on ``device``; itself when it is there already."""
        device = torch.device(device)
        if self.tokens.device == device:
            return self
        moved = object.__new__(Microbatch)
        moved.__dict__.update(self.__dict__)
        for name in ("tokens", "cu_seqlens", "mask", "targets"):
            setattr(moved, name, getattr(self, name).to(device, non_blocking=True))
        moved.fields = {k: v.to(device, non_blocking=True) for k, v in self.fields.items()}
        return moved

    def with_fields(self, **fields: Tensor) -> "Microbatch":
        """Return a copy with further per-token fields."""
        return replace(self, fields={**self.fields, **fields})


def _pack(name: str, rows: Sequence[ArrayLike], lengths: list[int]) -> np.ndarray:
    """Return the rows end to end, checked against the lengths of the sequences."""
    arrays = [np.atleast_1d(np.asarray(row)) for row in rows]
    if [len(row) for row in arrays] != lengths:
        raise ValueError(
            f"{name} has rows of {[len(row) for row in arrays][:8]}, sequences have {lengths[:8]}; "
            f"give one array of the same length for each sequence"
        )
    return np.concatenate(arrays) if arrays else np.zeros(0)


def _canonical(row: np.ndarray) -> np.ndarray:
    """Return the array as bool, int64 or float32."""
    if row.dtype == bool:
        return row
    return row.astype(np.int64 if np.issubdtype(row.dtype, np.integer) else np.float32)


def balance(lengths: Sequence[int], *, ranks: int, max_tokens: int) -> list[list[list[int]]]:
    """Return sequence indices as ``[rank][microbatch][sequence]``, balanced by tokens.

    Every rank gets the same number of microbatches, some of which may be empty; each holds at most
    ``max_tokens``, except that a longer sequence gets a microbatch of its own. Longest first into
    the emptiest microbatch (Graham's LPT rule), with as few microbatches as that rule can fill.

    Raises:
        ValueError: ``ranks`` or ``max_tokens`` is not positive.

    >>> balance([5, 3, 3, 2], ranks=2, max_tokens=8)
    [[[0, 3]], [[1, 2]]]
    """
    if ranks < 1 or max_tokens < 1:
        raise ValueError(f"ranks={ranks}, max_tokens={max_tokens}: both must be at least 1")
    if not len(lengths):
        return [[] for _ in range(ranks)]
    bins = -(-sum(min(int(n), max_tokens) for n in lengths) // max_tokens)
    per_rank = max(1, -(-bins // ranks))
    while (packed := _fill(lengths, per_rank * ranks, max_tokens)) is None:
        per_rank += 1
    loads = [sum(lengths[i] for i in members) for members in packed]
    result: list[list[list[int]]] = [[] for _ in range(ranks)]
    totals = [0] * ranks
    for b in sorted(range(len(packed)), key=lambda b: -loads[b]):
        open_ranks = (r for r in range(ranks) if len(result[r]) < per_rank)
        rank = min(open_ranks, key=lambda r: totals[r])
        result[rank].append(sorted(packed[b]))
        totals[rank] += loads[b]
    return result


def _fill(lengths: Sequence[int], bins: int, max_tokens: int) -> list[list[int]] | None:
    """Return the sequences spread over ``bins`` by the LPT rule, None when one does not fit."""
    packed: list[list[int]] = [[] for _ in range(bins)]
    heap = [(0, b) for b in range(bins)]
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        load, b = heap[0]
        if packed[b] and load + lengths[i] > max_tokens:
            return None
        packed[b].append(i)
        heapq.heapreplace(heap, (load + int(lengths[i]), b))
    return packed
