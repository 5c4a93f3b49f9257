"""Token ids to text, and stop strings in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast


class Tokenizer(Protocol):
    """What the engine needs of a transformers tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Return the text of token ids."""
        ...


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_tokenizer(path: str) -> Tokenizer:
    """Return the tokenizer of a Hugging Face directory; imports transformers, which takes seconds.

    Raises:
        ValueError: The directory holds none.
    """
    # transformers makes an empty tokenizer out of a directory without one.
    if not any((Path(path) / file).is_file() for file in TOKENIZER_FILES):
        raise ValueError(
            f"model={path!r} holds no tokenizer ({', '.join(TOKENIZER_FILES)}); add one, or pass "
            "skip_tokenizer_init=True and prompts of token ids"
        )
    from transformers import AutoTokenizer

    return cast("Tokenizer", AutoTokenizer.from_pretrained(path))


def stop_window(stops: Sequence[str]) -> int:
    """Return how many of the last tokens must be looked at for a stop string that ends now.

    A token spells at least one byte, so a stop string of b bytes lies within b tokens. A few more
    cover a character cut at the front and special tokens, which spell nothing.
    """
    return max(len(stop.encode()) for stop in stops) + 4


def has_stop(tokenizer: Tokenizer, token_ids: list[int], stops: Sequence[str]) -> bool:
    """Return whether the text of the last :func:`stop_window` tokens holds a stop string."""
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    return any(stop in text for stop in stops)


def response_text(tokenizer: Tokenizer, token_ids: list[int], stops: Sequence[str]) -> str:
    """Return the text of a response, without special tokens, cut before the first stop string."""
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    found = [text.find(stop) for stop in stops]
    return text[: min((at for at in found if at >= 0), default=len(text))]
