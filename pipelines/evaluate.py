"""Held-out accuracy of the merged checkpoints: ``uv run pipelines/evaluate.py [key=value ...]``."""

from __future__ import annotations

import functools
import json
import random
import sys
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import command
from disk import replace_text
from run import Run
from stage import Stage

if TYPE_CHECKING:
    from config import Config, EvalConfig
    from nanorlhf.nanovllm import LLM, SamplingParams


class Response(NamedTuple):
    """One answer to a held-out problem."""

    row: int
    text: str
    tokens: int
    finish_reason: str


class Scores(NamedTuple):
    """Means over all responses of one way of sampling."""

    accuracy: float
    tokens: float
    truncated: float
    """Share cut off at ``eval.max_new_tokens``."""


def evaluate(run: Run, config: Config, *, of: str) -> None:
    """Write ``eval/<of>.json`` and all responses to ``eval/<of>.jsonl``."""
    from nanorlhf.nanosets import load_dataset
    from nanorlhf.nanovllm import SamplingParams

    data = load_dataset(run.folder / "data" / "eval.nano")
    rows: list[dict[str, Any]] = [data[i] for i in range(len(data))]
    limit, samples = config.eval.max_new_tokens, config.eval.samples
    # Responses drawn from one seed share their random numbers, so each problem has its own.
    seeds = [random.Random(f"{config.run.seed}-{row}").getrandbits(40) for row in range(len(rows))]
    ways = {
        "greedy": [SamplingParams(temperature=0.0, max_tokens=limit) for _ in rows],
        "sampled": [
            SamplingParams(temperature=1.0, max_tokens=limit, n=samples, seed=seed)
            for seed in seeds
        ],
    }
    responses = generate(run, config, rows, ways, of=of)
    scores, lines = {}, []
    for way, found in responses.items():
        rewards = score(config.eval, rows, found)
        scores[way] = summary(found, rewards)
        lines += [
            {"way": way, "prompt": rows[r.row]["prompt"], "answer": rows[r.row]["answer"]}
            | {"response": r.text, "tokens": r.tokens, "finish_reason": r.finish_reason}
            | {"reward": reward}
            for r, reward in zip(found, rewards, strict=True)
        ]
    folder = run.folder / "eval"
    folder.mkdir(exist_ok=True)
    replace_text(folder / f"{of}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    report = {way: found._asdict() for way, found in scores.items()}
    replace_text(folder / f"{of}.json", json.dumps({"problems": len(rows), **report}, indent=1))
    greedy, sampled = scores["greedy"], scores["sampled"]
    print(
        f"evaluate_{of}: {greedy.accuracy:.1%} greedy, {sampled.accuracy:.1%} sampled, "
        f"{sampled.tokens:.1f} tokens, {len(rows)} held-out problems"
    )


def generate(
    run: Run,
    config: Config,
    rows: list[dict[str, Any]],
    ways: dict[str, list[SamplingParams]],
    *,
    of: str,
) -> dict[str, list[Response]]:
    """Return the responses to ``rows`` in each of the ``ways``, all from one engine."""
    from nanorlhf.nanovllm import LLM

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
        return {way: respond(llm, prompts, params) for way, params in ways.items()}
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


def score(config: EvalConfig, rows: list[dict[str, Any]], responses: list[Response]) -> list[float]:
    """Return the reward of each response; 0 for one that could not be scored."""
    from nanorlhf.nanoverl import RewardItem, RewardPool

    items = [
        RewardItem(
            prompt=rows[response.row]["prompt"],
            response=response.text,
            answer=rows[response.row]["answer"],
            row={},
        )
        for response in responses
    ]
    pool = RewardPool(config.reward)
    try:
        return [float(result.reward) for result in pool.score(items)]
    finally:
        pool.close()


def summary(responses: list[Response], rewards: list[float]) -> Scores:
    """Return the means."""
    return Scores(
        accuracy=fmean(rewards),
        tokens=fmean(response.tokens for response in responses),
        truncated=fmean(response.finish_reason == "length" for response in responses),
    )


def release_memory() -> None:
    """Give the engine's device memory back, for the trainer that comes next."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


EVALUATE_SFT = Stage(
    name="evaluate_sft",
    needs=("prepare_sft", "merge_sft"),
    work=functools.partial(evaluate, of="sft"),
)
EVALUATE_RL = Stage(
    name="evaluate_rl",
    needs=("prepare_sft", "merge_rl"),
    work=functools.partial(evaluate, of="rl"),
)

if __name__ == "__main__":
    sys.exit(command.main([EVALUATE_SFT, EVALUATE_RL]))
