"""One tiny checkpoint for all tests, and transformers' opinion of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanorlhf.nanovllm.testing import TINY_QWEN3, write_checkpoint, write_tokenizer

SCALE = 0.2  # large enough that the next token depends on the whole context


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_checkpoint(path, TINY_QWEN3, seed=0, scale=SCALE)
    write_tokenizer(path)
    return path


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory) -> Path:
    """Other weights, with a head of their own."""
    path = tmp_path_factory.mktemp("other")
    write_checkpoint(path, TINY_QWEN3 | {"tie_word_embeddings": False}, seed=1, scale=SCALE)
    return path


@pytest.fixture(scope="session")
def load_hf() -> Callable:
    """Return a checkpoint as a transformers model, which is loaded once."""
    from transformers import Qwen3ForCausalLM

    models = {}

    def load(path: Path):
        if path not in models:
            models[path] = Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        return models[path]

    return load


@pytest.fixture(scope="session")
def hf_greedy(load_hf) -> Callable:
    """Return what transformers generates greedily, prompt by prompt, without its caches or ours."""
    known = {}

    def greedy(path: Path, prompt: list[int], max_tokens: int, *, eos: int = 1) -> list[int]:
        key = (path, tuple(prompt), max_tokens, eos)
        if key not in known:
            ids = torch.tensor([prompt])
            out = load_hf(path).generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=eos,
                pad_token_id=0,
            )
            known[key] = out[0, len(prompt) :].tolist()
        return known[key]

    return greedy


@pytest.fixture(scope="session")
def hf_logits(load_hf) -> Callable:
    """Return transformers' logits of every token of a sequence, [T, V]."""

    def logits(path: Path, tokens: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return load_hf(path)(torch.tensor([tokens])).logits[0]

    return logits


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Ragged prompts, of one token up, some of whole pages; the last three begin alike."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> list[int]:
        return torch.randint(2, 300, (count,), generator=generator).tolist()

    shared = draw(32)
    return [*map(draw, (1, 2, 16, 31, 70)), shared, shared + draw(1), shared[:20] + draw(13)]
