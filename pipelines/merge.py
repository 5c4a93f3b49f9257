"""Checkpoints into self-contained Hugging Face folders: ``uv run pipelines/merge.py [...]``."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import command
from model import write_generation_config
from run import Run
from stage import Stage
from tokenizer import Codec, copy_tokenizer

if TYPE_CHECKING:
    from config import Config

WEIGHTS = {"sft": "model", "rl": "actor"}
"""Where a checkpoint of each stage keeps the language model."""


def merge(run: Run, config: Config, *, of: str) -> None:
    """Write ``merged/<of>/``: weights in the asked dtype, tokenizer, generation config."""
    import torch

    from nanorlhf.nanotron import merge_checkpoint

    target = run.folder / "merged" / of
    whole = target.with_name(f"{of}.tmp")
    for leftover in (target, whole):
        shutil.rmtree(leftover, ignore_errors=True)
    whole.parent.mkdir(exist_ok=True)
    source = latest(run.folder / of) / WEIGHTS[of]
    merge_checkpoint(source, whole, dtype=getattr(torch, config.merge.dtype))
    codec = Codec(run.folder / "tokenizer")
    copy_tokenizer(codec.folder, whole)
    write_generation_config(whole, codec)
    whole.rename(target)
    print(f"merge_{of}: {target}")


def latest(out: Path) -> Path:
    """Return the newest whole checkpoint in ``out``.

    Raises:
        ValueError: There is none.
    """
    marker = out / "latest"
    if not marker.is_file():
        raise ValueError(f"{out} holds no checkpoint; train first")
    return out / str(json.loads(marker.read_text())["path"])


MERGE_SFT = Stage(name="merge_sft", needs=("sft",), work=functools.partial(merge, of="sft"))
MERGE_RL = Stage(name="merge_rl", needs=("rl",), work=functools.partial(merge, of="rl"))

if __name__ == "__main__":
    sys.exit(command.main([MERGE_SFT, MERGE_RL]))
