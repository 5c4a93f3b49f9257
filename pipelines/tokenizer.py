r"""Text into token ids: a byte-level BPE trained on the task, or one that exists.

A new tokenizer splits numbers into digits, keeps a LaTeX command and its brace together
(``\boxed{`` is one token once it is frequent), and knows ``<think>`` and ``</think>`` as ordinary
tokens. It is written as a Hugging Face folder, so transformers loads it.
"""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, EOS = "<pad>", "<eos>"
THINK = ("<think>", "</think>")
PIECES = r"\\\p{L}+\{?| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\\]+|\\|\s+"
"""A LaTeX command with its brace, a word, one digit, a run of signs, white space."""
CHAT = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


class Codec:
    """A tokenizer folder, as the rest of the pipeline uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        self.eos = token_text(config.get("eos_token")) or ""
        self.eos_id = self._id(self.eos, "eos_token")
        pad = token_text(config.get("pad_token"))
        self.pad_id = self._id(pad, "pad_token") if pad else self.eos_id
        self._chat: Any = None

    def _id(self, token: str, name: str) -> int:
        index = self.tokenizer.token_to_id(token)
        if index is None:
            raise ValueError(f"{name}={token!r} of {self.folder} is not in its vocabulary")
        return int(index)

    def __len__(self) -> int:
        """Return the size of the vocabulary, added tokens included."""
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each of ``texts``, nothing added."""
        batch = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def chat(self, messages: list[dict[str, str]], *, reply: bool, thinking: bool) -> str:
        """Return ``messages`` in the chat template; ``reply`` adds the opening of an answer."""
        if self._chat is None:
            from transformers import AutoTokenizer

            self._chat = AutoTokenizer.from_pretrained(self.folder)
            if self._chat.chat_template is None:
                raise ValueError(f"the tokenizer in {self.folder} has no chat template")
        return str(
            self._chat.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=reply, enable_thinking=thinking
            )
        )


def token_text(value: object) -> str | None:
    """Return a special token as its text; some folders write an object."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE of at most ``vocab_size`` tokens, trained on ``texts``.

    Raises:
        ValueError: ``vocab_size`` leaves no room for the 256 bytes and the named tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + len(THINK) + 2
    if vocab_size < least:
        raise ValueError(f"tokenizer.vocab_size={vocab_size}; wanted at least {least}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(THINK),
        initial_alphabet=alphabet,
        special_tokens=[PAD, EOS],
        show_progress=False,
    )
    # The tags get tokens of their own below: merges that spell them would only fill the vocabulary.
    tags = re.compile("|".join(THINK))
    tokenizer.train_from_iterator((piece for t in texts for piece in tags.split(t)), trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in THINK])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``tokenizer`` as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files from one folder to another.

    Raises:
        ValueError: ``source`` holds no ``tokenizer.json``.
    """
    if not (source / "tokenizer.json").is_file():
        raise ValueError(
            f"{source} holds no tokenizer.json; set tokenizer.path to a folder that does"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
