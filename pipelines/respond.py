"""Responses of a checkpoint to the held-out problems, from an engine in this process."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

from run import Run

if TYPE_CHECKING:
    from config import Config
    from nanorlhf.nanovllm import LLM, SamplingParams


class Response(NamedTuple):
    """One answer to a held-out problem."""

    row: int
    text: str
    tokens: int
    finish_reason: str


def ways(config: Config, count: int) -> dict[str, list[SamplingParams]]:
    """Return how to answer each of ``count`` problems: greedily, and sampled at temperature 1."""
    from nanorlhf.nanovllm import SamplingParams

    limit, samples = config.eval.max_new_tokens, config.eval.samples
    # Responses drawn from one seed share their random numbers, so each problem has its own.
    seeds = [random.Random(f"{config.run.seed}-{row}").getrandbits(40) for row in range(count)]
    return {
        "greedy": [SamplingParams(temperature=0.0, max_tokens=limit) for _ in range(count)],
        "sampled": [
            SamplingParams(temperature=1.0, max_tokens=limit, n=samples, seed=seed)
            for seed in seeds
        ],
    }


def generate(
    run: Run, config: Config, rows: list[dict[str, Any]], *, of: str
) -> dict[str, list[Response]]:
    """Return the responses of ``merged/<of>/`` to ``rows``, by way of answering."""
    import torch

    from nanorlhf.nanovllm import LLM

    torch.set_num_threads(config.eval.threads)
    llm = LLM(
        str(run.folder / "merged" / of),
        dtype=config.eval.dtype,
        device=config.run.device,
        max_model_len=config.eval.max_model_len,
        max_num_seqs=config.eval.max_num_seqs,
        gpu_memory_utilization=config.eval.gpu_memory_utilization,
        seed=config.run.seed,
    )
    try:
        prompts = [[int(token) for token in row["prompt_tokens"]] for row in rows]
        return {
            way: respond(llm, prompts, params) for way, params in ways(config, len(rows)).items()
        }
    finally:
        del llm
        release_memory()


def respond(llm: LLM, prompts: list[list[int]], params: list[SamplingParams]) -> list[Response]:
    """Return every response to ``prompts``."""
    return [
        Response(row, answer.text, len(answer.token_ids), str(answer.finish_reason))
        for row, output in enumerate(llm.generate(prompts, params))
        for answer in output.outputs
    ]


def release_memory() -> None:
    """Give the engine's device memory back, for the trainer that comes next."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
