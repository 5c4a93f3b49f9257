"""How one prompt is to be sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to draw the response to a prompt; names and meanings are vLLM's.

    The order is temperature, then top-k, then top-p and min-p on the renormalised rest. Sampled
    tokens depend on the prompt, the weights, these values and the seed alone: not on the other
    requests of the batch, and not on whether the engine had to preempt the request.

    >>> SamplingParams(temperature=0.6, top_p=0.95, max_tokens=256).top_k
    0
    >>> SamplingParams(top_p=0)
    Traceback (most recent call last):
    ValueError: top_p=0 must lie in (0, 1]; 1 keeps the whole vocabulary
    """

    n: int = 1
    """Responses per prompt; the prompt is computed once for all of them."""
    temperature: float = 1.0
    """Softmax temperature; 0 is greedy."""
    top_p: float = 1.0
    """Keep the most likely tokens whose probabilities reach this sum; 1 keeps all."""
    top_k: int = 0
    """Keep this many most likely tokens; 0 or -1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this likely relative to the most likely one; 0 keeps all."""
    seed: int | None = None
    """Fixes the draw; response ``i`` of ``n`` has its own stream. None takes the engine's next."""
    max_tokens: int | None = 16
    """Most tokens in the response, end-of-sequence included; None: up to ``max_model_len``."""
    stop: str | Sequence[str] | None = None
    """End when the text holds one of these; the text is cut before it, the tokens are not."""
    stop_token_ids: Sequence[int] = ()
    """End after one of these tokens; it stays in the output, as end-of-sequence does."""
    ignore_eos: bool = False
    """Go on past the model's end-of-sequence tokens."""
    logprobs: bool = True
    """Return the log-probabilities of the sampled tokens; False leaves both lists empty."""

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ValueError: One is out of range.
        """
        for name, value, holds, rule in (
            ("n", self.n, self.n >= 1, "be at least 1"),
            ("temperature", self.temperature, 0 <= self.temperature < inf, "be 0 (greedy) or more"),
            (
                "top_p",
                self.top_p,
                0 < self.top_p <= 1,
                "lie in (0, 1]; 1 keeps the whole vocabulary",
            ),
            ("top_k", self.top_k, self.top_k >= -1, "be at least 1, or 0 or -1 to keep all tokens"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "lie in [0, 1]; 0 keeps all tokens"),
            (
                "max_tokens",
                self.max_tokens,
                self.max_tokens is None or self.max_tokens >= 1,
                "be at least 1, or None to fill the model's length",
            ),
            (
                "stop",
                self.stop,
                all(self.stop_strings),
                "hold no empty string; an empty string is everywhere",
            ),
        ):
            if not holds:
                raise ValueError(f"{name}={value!r} must {rule}")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple, empty without any."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
