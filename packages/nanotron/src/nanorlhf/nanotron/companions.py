"""The small files beside the weights of a Hugging Face directory: tokenizer and generation config.

They are read when a model is loaded and written with each of its checkpoints. Kept as bytes and not
as a path: the directory a model was resumed from is deleted when newer checkpoints replace it.
"""

from collections.abc import Mapping
from pathlib import Path

NAMES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


def read_companions(path: str | Path) -> dict[str, bytes]:
    """Return the companion files that ``path`` holds, by name."""
    found = (Path(path) / name for name in NAMES)
    return {file.name: file.read_bytes() for file in found if file.is_file()}


def write_companions(files: Mapping[str, bytes], path: Path) -> None:
    """Write ``files`` into the directory ``path``."""
    for name, content in files.items():
        (path / name).write_bytes(content)
