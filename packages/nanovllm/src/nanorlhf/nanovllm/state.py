"""What the engine knows of its running sequences: one row, a slot, for each, in NumPy arrays.

Everything a step reads or writes is a column here, so a decode step over hundreds of sequences is a
handful of array operations and no loop. A sequence keeps its slot from admission until it finishes
or is preempted; the rows are what a captured device step would mirror.

Shape legend: S = slots, L = longest sequence, M = its pages, B = rows of a step.
"""

import numpy as np
from numpy.typing import NDArray

from .sequence import IntArray, Sequence


class BatchState:
    """The slots. Columns of a free slot are stale and must not be read.

    Attributes:
        tokens, logprobs, raw_logprobs, versions: [S, L], per token, as in :class:`Sequence`.
        length: int64 [S], tokens known.
        computed: int64 [S], tokens whose keys and values are in the pages.
        prompt_len, limit: int64 [S], where the response begins and must end.
        page_table: int32 [S, M], the pages of each sequence; ``num_pages`` int64 [S] of them.
        num_registered: int64 [S], how many of the first pages the prefix index has been told of.
        temperature, top_p, min_p: float32 [S]; top_k, seed: int64 [S]; ignore_eos: bool [S].
        stop_ids: int64 [S, at least 1], padded with -1; has_stop_strings: bool [S].
    """

    def __init__(self, *, max_num_seqs: int, max_model_len: int, page_size: int) -> None:
        slots, max_pages = max_num_seqs, -(-max_model_len // page_size)
        self.page_size = page_size
        # Zeroed memory costs nothing until it is touched, so the longest length may be large.
        self.tokens = np.zeros((slots, max_model_len), np.int32)
        self.logprobs = np.zeros((slots, max_model_len), np.float32)
        self.raw_logprobs = np.zeros((slots, max_model_len), np.float32)
        self.versions = np.zeros((slots, max_model_len), np.int32)
        self.page_table = np.zeros((slots, max_pages), np.int32)
        self.length = np.zeros(slots, np.int64)
        self.computed = np.zeros(slots, np.int64)
        self.prompt_len = np.zeros(slots, np.int64)
        self.limit = np.zeros(slots, np.int64)
        self.num_pages = np.zeros(slots, np.int64)
        self.num_registered = np.zeros(slots, np.int64)
        self.temperature = np.zeros(slots, np.float32)
        self.top_p = np.ones(slots, np.float32)
        self.min_p = np.zeros(slots, np.float32)
        self.top_k = np.zeros(slots, np.int64)
        self.seed = np.zeros(slots, np.int64)
        self.ignore_eos = np.zeros(slots, np.bool_)
        self.has_stop_strings = np.zeros(slots, np.bool_)
        self.stop_ids = np.full((slots, 1), -1, np.int64)

    def enter(self, slot: int, sequence: Sequence) -> None:
        """Fill a slot with a sequence that has no pages yet."""
        length = len(sequence.tokens)
        for name in ("tokens", "logprobs", "raw_logprobs", "versions"):
            getattr(self, name)[slot, :length] = getattr(sequence, name)
        self.length[slot] = length
        self.computed[slot] = self.num_pages[slot] = self.num_registered[slot] = 0
        self.prompt_len[slot] = sequence.prompt_len
        self.limit[slot] = sequence.limit
        params = sequence.params
        self.temperature[slot] = params.temperature
        self.top_p[slot] = params.top_p
        self.min_p[slot] = params.min_p
        self.top_k[slot] = max(params.top_k, 0)
        self.seed[slot] = sequence.seed
        self.ignore_eos[slot] = params.ignore_eos
        self.has_stop_strings[slot] = bool(params.stop_strings)
        self._set_stop_ids(slot, list(params.stop_token_ids))

    def leave(self, slot: int, sequence: Sequence) -> None:
        """Copy what the slot knows back into its sequence."""
        length = self.length[slot]
        for name in ("tokens", "logprobs", "raw_logprobs", "versions"):
            setattr(sequence, name, getattr(self, name)[slot, :length].copy())

    def pages(self, slot: int) -> list[int]:
        """Return the pages of a slot, first tokens first."""
        pages: list[int] = self.page_table[slot, : self.num_pages[slot]].tolist()
        return pages

    def add_pages(self, slot: int, pages: list[int]) -> None:
        """Append pages to a slot."""
        begin = self.num_pages[slot]
        self.page_table[slot, begin : begin + len(pages)] = pages
        self.num_pages[slot] = begin + len(pages)

    def append(
        self,
        slots_B: IntArray,
        tokens_B: NDArray[np.int32],
        *,
        logprobs_B: NDArray[np.float32],
        raw_logprobs_B: NDArray[np.float32],
        version: int,
    ) -> None:
        """Add one sampled token to each of the slots."""
        at = self.length[slots_B]
        self.tokens[slots_B, at] = tokens_B
        self.logprobs[slots_B, at] = logprobs_B
        self.raw_logprobs[slots_B, at] = raw_logprobs_B
        self.versions[slots_B, at] = version
        self.length[slots_B] = at + 1

    def is_stopped(self, slots_B: IntArray, is_eos_V: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which slots' last token ends them, bool [B].

        Args:
            slots_B: Slots that just got a token.
            is_eos_V: bool [vocabulary], the model's end-of-sequence tokens.
        """
        last = self.tokens[slots_B, self.length[slots_B] - 1]
        eos = is_eos_V[last] & ~self.ignore_eos[slots_B]
        stopped: NDArray[np.bool_] = eos | (last[:, None] == self.stop_ids[slots_B]).any(axis=1)
        return stopped

    def is_full(self, slots_B: IntArray) -> NDArray[np.bool_]:
        """Return which slots have reached their limit, bool [B]."""
        full: NDArray[np.bool_] = self.length[slots_B] >= self.limit[slots_B]
        return full

    def _set_stop_ids(self, slot: int, ids: list[int]) -> None:
        missing = len(ids) - self.stop_ids.shape[1]
        if missing > 0:
            self.stop_ids = np.pad(self.stop_ids, ((0, 0), (0, missing)), constant_values=-1)
        self.stop_ids[slot] = -1
        self.stop_ids[slot, : len(ids)] = ids
