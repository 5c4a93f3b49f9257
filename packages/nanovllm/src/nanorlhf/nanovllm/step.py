"""What one forward pass computes, and the budget it is planned within.

Shape legend: R = rows of a step, B = the tokens it samples.
"""

from dataclasses import dataclass, field

from .sequence import IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one forward pass computes. R = its rows, B = the tokens it samples."""

    slots_R: IntArray
    """The slot of each row; rows of one token come first."""
    counts_R: IntArray
    """How many tokens each row computes, from its slot's ``computed`` on."""
    num_single: int
    """How many rows compute one token: they attend through the page table."""
    sample_slots_B: IntArray
    """The slots that get a token."""
    sample_rows_B: IntArray
    """The row whose last token predicts it; forked slots repeat their leader's row."""
    copies: list[tuple[int, int]]
    """Pages (source, destination) to copy after the pass, before anything else is computed."""


@dataclass(slots=True)
class Stats:
    """Counts since the engine was made."""

    steps: int = 0
    computed_tokens: int = 0
    """Tokens that went through the model."""
    cached_tokens: int = 0
    """Tokens that did not have to, because their pages were found or forked."""
    sampled_tokens: int = 0
    preemptions: int = 0


@dataclass(slots=True)
class Plan:
    """The rows of a step under construction, within its budget."""

    tokens_left: int
    context_left: int
    rows: list[tuple[int, int]] = field(default_factory=list)
    """(slot, count), in the order they were given room."""

    def add(self, slot: int, *, start: int, length: int) -> bool:
        """Give a slot as many of its tokens as fit; False when that is none.

        Rows longer than one token gather the keys of their whole context, which is bounded too.
        """
        count = min(length - start, self.tokens_left)
        if count > 1:
            count = min(count, self.context_left - start)
        if count < 1:
            return False
        self.rows.append((slot, count))
        self.tokens_left -= count
        self.context_left -= start + count if count > 1 else 0
        return True
