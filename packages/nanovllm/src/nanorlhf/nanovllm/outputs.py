"""What the engine answers."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One response. Index t of every per-token list describes sampled token t."""

    index: int
    """Which of the ``n`` responses to its prompt this is."""
    text: str
    """The decoded tokens without special ones, cut before a stop string; "" with no tokenizer."""
    token_ids: list[int]
    """The sampled tokens, with the end-of-sequence or stop token if one ended the response."""
    logprobs: list[float]
    """Log-probability in the distribution the token was drawn from: after the temperature, and
    renormalised over what top-k, top-p and min-p kept. 0 when greedy."""
    raw_logprobs: list[float]
    """Log-probability at temperature 1 over the whole vocabulary."""
    versions: list[int]
    """The version of the weights that drew each token."""
    finish_reason: FinishReason
    """``stop``: end-of-sequence, stop token or stop string. ``length``: out of tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """A prompt and its ``n`` responses, in order of their index."""

    request_id: int
    """Counts the requests of an engine."""
    prompt: str | None
    """The prompt as text; None when it was given as token ids."""
    prompt_token_ids: list[int]
    """The prompt as the model saw it."""
    outputs: list[CompletionOutput]
    """One per response."""
