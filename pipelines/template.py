"""Problems and conversations as token ids, with the mask of what the model is to say.

The prompt and the response are encoded apart, so that the boundary between them is the same in
supervised training and in sampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from data import Demonstration, Message, Question
from tokenizer import Codec

if TYPE_CHECKING:
    from config import TemplateConfig

BATCH = 4096
"""Rows encoded at once."""


class Example(NamedTuple):
    """A demonstration as tokens."""

    tokens: list[int]
    loss_mask: list[bool]
    """True on the response, its end included."""


class Prompt(NamedTuple):
    """A question as tokens."""

    tokens: list[int]
    text: str
    answer: str


class Halves(NamedTuple):
    """A demonstration as text."""

    prompt: str
    response: str


class Template:
    """How problems are put to the model."""

    def __init__(self, config: TemplateConfig, codec: Codec) -> None:
        self.config = config
        self.codec = codec

    def examples(self, demonstrations: Iterable[Demonstration]) -> Iterator[Example]:
        """Yield each demonstration as tokens."""
        rest = iter(demonstrations)
        while batch := list(islice(rest, BATCH)):
            halves = [self.halves(item.messages) for item in batch]
            prompts = self.codec.encode([half.prompt for half in halves])
            responses = self.codec.encode([half.response for half in halves])
            for prompt, response in zip(prompts, responses, strict=True):
                response.append(self.codec.eos_id)
                mask = [False] * len(prompt) + [True] * len(response)
                yield Example(prompt + response, mask)

    def prompts(self, questions: Iterable[Question]) -> Iterator[Prompt]:
        """Yield each question as tokens."""
        rest = iter(questions)
        while batch := list(islice(rest, BATCH)):
            texts = [self.opening((Message("user", question.problem),)) for question in batch]
            tokens = self.codec.encode(texts)
            for ids, text, question in zip(tokens, texts, batch, strict=True):
                yield Prompt(ids, text, question.answer)

    def opening(self, messages: tuple[Message, ...]) -> str:
        """Return the text after which the model answers the last of ``messages``."""
        if self.config.form == "plain":
            *earlier, last = messages
            before = [
                f"{m.content}{self.codec.eos}" if m.role == "assistant" else m.content
                for m in earlier
            ]
            return "".join([*before, self.ask(last.content)])
        return self.codec.chat(self._turns(messages), reply=True, thinking=self.config.thinking)

    def halves(self, messages: tuple[Message, ...]) -> Halves:
        """Return what comes before the last turn of ``messages``, and that turn without its end.

        Raises:
            ValueError: The chat template renders the turn otherwise than it announces it.
        """
        opening, answer = self.opening(messages[:-1]), messages[-1].content
        if self.config.form == "plain":
            return Halves(opening, answer)
        turns = [*self._turns(messages[:-1]), messages[-1]._asdict()]
        whole = self.codec.chat(turns, reply=False, thinking=self.config.thinking)
        if not whole.startswith(opening):
            raise ValueError(
                f"the chat template of {self.codec.folder} opens an answer with "
                f"{opening[-60:]!r}, which a finished one does not begin with; "
                f"try template.thinking={not self.config.thinking}"
            )
        return Halves(opening, whole[len(opening) :].rstrip().removesuffix(self.codec.eos))

    def ask(self, problem: str) -> str:
        """Return ``problem`` as it is put to the model."""
        return self.config.prompt.replace("{problem}", problem)

    def _turns(self, messages: tuple[Message, ...]) -> list[dict[str, str]]:
        *earlier, last = messages
        asked = {"role": last.role, "content": self.ask(last.content)}
        return [*(message._asdict() for message in earlier), asked]
