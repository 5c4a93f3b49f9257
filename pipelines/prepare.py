"""Data, tokenizer and initial model of a run: ``uv run pipelines/prepare.py [key=value ...]``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import command
from data import Demonstration, demonstrations, questions
from model import hf_config, pretrained, tokenizer_source, write_generation_config
from rows import local_files
from run import Run
from stage import Stage
from template import Prompt, Template
from tokenizer import Codec, copy_tokenizer, save_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from config import Config, SourceConfig
    from nanorlhf.nanosets import Dataset

Columns = dict[str, list[Any]]


def prepare_sft(run: Run, config: Config) -> None:
    """Write the tokenizer, the initial model, and the SFT and evaluation sets."""
    check_inputs(config)
    codec = prepare_tokenizer(run, config)
    if config.model.path is None:
        prepare_model(run, config, codec)
    template = Template(config.template, codec)
    whole = template.examples(demonstrations(config))
    kept = [row for row in whole if len(row.tokens) <= config.data.max_tokens]
    if len(kept) <= config.data.valid_rows:
        raise ValueError(
            f"data.sft.path={config.data.sft.path!r} gives {len(kept)} demonstrations of at most "
            f"data.max_tokens={config.data.max_tokens} tokens; wanted more than "
            f"data.valid_rows={config.data.valid_rows}"
        )
    valid = config.data.valid_rows
    columns: Columns = {
        "tokens": [row.tokens for row in kept],
        "loss_mask": [row.loss_mask for row in kept],
    }
    save(run, "sft", {name: column[valid:] for name, column in columns.items()})
    if valid:
        save(run, "valid", {name: column[:valid] for name, column in columns.items()})
    save_questions(run, config, template, role="eval")
    total = sum(len(row.tokens) for row in kept)
    print(f"prepare_sft: {len(kept):,} demonstrations, {total:,} tokens, vocabulary {len(codec):,}")


def prepare_rl(run: Run, config: Config) -> None:
    """Write the RL set."""
    template = Template(config.template, Codec(run.folder / "tokenizer"))
    count = save_questions(run, config, template, role="rl")
    print(f"prepare_rl: {count:,} problems")


def check_inputs(config: Config) -> None:
    """Raise ValueError for a missing file or model, before anything is written."""
    pretrained(config)
    tokenizer_source(config)
    for role in ("sft", "rl", "eval"):
        source: SourceConfig = getattr(config.data, role)
        if source.path != "arithmetic":
            local_files(source, config.data, key=f"data.{role}")


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


def save_questions(run: Run, config: Config, template: Template, *, role: str) -> int:
    """Write the problems of ``role`` and return their number."""
    limit = config.data.max_prompt_tokens
    asked = template.prompts(questions(config, role=role))
    kept: list[Prompt] = [row for row in asked if len(row.tokens) <= limit]
    if not kept:
        source: SourceConfig = getattr(config.data, role)
        raise ValueError(
            f"data.{role}.path={source.path!r} gives no problem of at most "
            f"data.max_prompt_tokens={limit} tokens; raise it or look at the file"
        )
    columns: Columns = {
        "prompt_tokens": [row.tokens for row in kept],
        "prompt": [row.text for row in kept],
        "answer": [row.answer for row in kept],
    }
    return len(save(run, role, columns))


def save(run: Run, name: str, columns: Columns) -> Dataset:
    """Write ``columns`` to ``data/<name>.nano``."""
    from nanorlhf.nanosets import Dataset

    folder = run.folder / "data"
    folder.mkdir(exist_ok=True)
    dataset = Dataset.from_dict(columns)
    dataset.save_to_disk(folder / f"{name}.nano")
    return dataset


PREPARE_SFT = Stage(name="prepare_sft", needs=(), work=prepare_sft)
PREPARE_RL = Stage(name="prepare_rl", needs=("prepare_sft",), work=prepare_rl)

if __name__ == "__main__":
    sys.exit(command.main([PREPARE_SFT, PREPARE_RL]))
