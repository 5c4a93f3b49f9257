"""Data, tokenizer and initial model of a run: ``uv run pipelines/prepare.py [key=value ...]``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING

import command
from data import Demonstration, demonstrations, questions
from model import hf_config, pretrained, tokenizer_source, write_generation_config
from rows import local_files
from run import Run
from stage import Stage
from template import Example, Prompt, Template
from tokenizer import Codec, copy_tokenizer, save_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from config import Config, SourceConfig
EXAMPLE = {"tokens": "list<int32>", "loss_mask": "list<bool>"}
PROMPT = {"prompt_tokens": "list<int32>", "prompt": "utf8", "answer": "utf8"}
"""Columns of the files, in the order of the fields of `Example` and `Prompt`."""


def prepare_sft(run: Run, config: Config) -> None:
    """Write the tokenizer, the initial model, and the SFT and evaluation sets."""
    check_inputs(config)
    codec = prepare_tokenizer(run, config)
    if config.model.path is None:
        prepare_model(run, config, codec)
    check_layouts(run, config)
    template = Template(config.template, codec)
    save_examples(run, config, template)
    save_questions(run, config, template, role="eval")


def prepare_rl(run: Run, config: Config) -> None:
    """Write the RL set."""
    template = Template(config.template, Codec(run.folder / "tokenizer"))
    save_questions(run, config, template, role="rl")


def check_inputs(config: Config) -> None:
    """Raise ValueError for a missing file or model, before anything is written."""
    pretrained(config)
    tokenizer_source(config)
    for role in ("sft", "rl", "eval"):
        source: SourceConfig = getattr(config.data, role)
        if source.path != "arithmetic":
            local_files(source, config.data, key=f"data.{role}")


def check_layouts(run: Run, config: Config) -> None:
    """Raise ValueError for a layout that the model cannot be cut into, before hours of training."""
    from nanorlhf.nanotron import ModelConfig, check_split

    shape = ModelConfig.from_pretrained(pretrained(config) or run.folder / "model")
    for layout in (config.sft.layout, config.rl.layout):
        check_split(shape, pp=layout.pp, tp=layout.tp)


def prepare_tokenizer(run: Run, config: Config) -> Codec:
    """Copy the tokenizer, or train one on the front of the SFT set."""
    folder = run.folder / "tokenizer"
    source = tokenizer_source(config)
    if source is not None:
        copy_tokenizer(source, folder)
    else:
        front = islice(demonstrations(config), config.tokenizer.train_rows)
        vocab_size = config.tokenizer.vocab_size
        save_tokenizer(train_tokenizer(corpus(front), vocab_size=vocab_size), folder)
    return Codec(folder)


def corpus(rows: Iterable[Demonstration]) -> Iterator[str]:
    """Yield every turn of ``rows``."""
    return (message.content for message in chain.from_iterable(row.messages for row in rows))


def prepare_model(run: Run, config: Config, codec: Codec) -> None:
    """Write a model with random weights, tokenizer beside it."""
    import torch

    from nanorlhf.nanotron import init_checkpoint

    folder = run.folder / "model"
    shape = hf_config(config.model, codec)
    init_checkpoint(shape, folder, seed=config.run.seed, dtype=torch.float32)
    copy_tokenizer(codec.folder, folder)
    write_generation_config(folder, codec)


def save_examples(run: Run, config: Config, template: Template) -> None:
    """Write the demonstrations, the first of them for validation."""
    settings = config.data
    whole = Sieve(template.examples(demonstrations(config)), limit=settings.max_tokens)
    valid = save(run, "valid", EXAMPLE, islice(whole, settings.valid_rows))
    train = save(run, "sft", EXAMPLE, whole)
    if not train:
        raise ValueError(
            f"data.sft.path={settings.sft.path!r} gives {valid} demonstrations of at most "
            f"data.max_tokens={settings.max_tokens} tokens; wanted more than "
            f"data.valid_rows={settings.valid_rows}"
        )
    print(
        f"prepare_sft: {train:,} demonstrations, {valid:,} more for validation, {whole.dropped:,} "
        f"too long; {whole.tokens:,} tokens of a vocabulary of {len(template.codec):,}"
    )


def save_questions(run: Run, config: Config, template: Template, *, role: str) -> None:
    """Write the problems of ``role``."""
    limit = config.data.max_prompt_tokens
    whole = Sieve(template.prompts(questions(config, role=role)), limit=limit)
    count = save(run, role, PROMPT, whole)
    if not count:
        source: SourceConfig = getattr(config.data, role)
        raise ValueError(
            f"data.{role}.path={source.path!r} gives no problem of at most "
            f"data.max_prompt_tokens={limit} tokens; raise it or look at the file"
        )
    print(f"data/{role}: {count:,} problems, {whole.dropped:,} too long")


class Sieve:
    """The rows of at most ``limit`` tokens, one after the other, and a count of the others."""

    def __init__(self, rows: Iterator[Example] | Iterator[Prompt], *, limit: int) -> None:
        self.rows = rows
        self.limit = limit
        self.dropped = self.tokens = 0

    def __iter__(self) -> Iterator[Example | Prompt]:
        for row in self.rows:
            if len(row.tokens) > self.limit:
                self.dropped += 1
                continue
            self.tokens += len(row.tokens)
            yield row


def save(run: Run, name: str, features: dict[str, str], rows: Iterable[Example | Prompt]) -> int:
    """Write ``rows`` to ``data/<name>.nano`` as they come; return their number."""
    from nanorlhf.nanosets import Writer

    with Writer(run.folder / "data" / f"{name}.nano", features=features) as writer:
        for row in rows:
            writer.write(dict(zip(features, row, strict=True)))
    return writer.rows


PREPARE_SFT = Stage(name="prepare_sft", needs=(), work=prepare_sft)
PREPARE_RL = Stage(name="prepare_rl", needs=("prepare_sft",), work=prepare_rl)

if __name__ == "__main__":
    sys.exit(command.main([PREPARE_SFT, PREPARE_RL]))
