"""Held-out accuracy of the merged checkpoints: ``uv run pipelines/evaluate.py [key=value ...]``."""

from __future__ import annotations

import functools
import json
import sys
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import command
from disk import replace_text
from respond import Response, generate
from run import Run
from stage import Stage

if TYPE_CHECKING:
    from config import Config, EvalConfig


class Scores(NamedTuple):
    """Means over all responses of one way of sampling."""

    accuracy: float
    tokens: float
    truncated: float
    """Share cut off at ``eval.max_new_tokens``."""


def evaluate(run: Run, config: Config, *, of: str) -> None:
    """Write the scores to ``eval/<of>.json`` and all responses to ``eval/<of>.jsonl``."""
    from nanorlhf.nanosets import load_dataset

    data = load_dataset(run.folder / "data" / "eval.nano")
    rows: list[dict[str, Any]] = [data[i] for i in range(len(data))]
    responses = generate(run, config, rows, of=of)
    rewards = score(config.eval, rows, responses)
    scores = {way: summary(found, rewards[way]) for way, found in responses.items()}
    folder = run.folder / "eval"
    folder.mkdir(exist_ok=True)
    lines = transcript(rows, responses, rewards)
    replace_text(folder / f"{of}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    report = {way: found._asdict() for way, found in scores.items()}
    replace_text(folder / f"{of}.json", json.dumps({"problems": len(rows), **report}, indent=1))
    greedy, sampled = scores["greedy"], scores["sampled"]
    print(
        f"evaluate_{of}: {greedy.accuracy:.1%} greedy, {sampled.accuracy:.1%} sampled, "
        f"{sampled.tokens:.1f} tokens, {len(rows)} held-out problems"
    )


def score(
    config: EvalConfig, rows: list[dict[str, Any]], responses: dict[str, list[Response]]
) -> dict[str, list[float]]:
    """Return the reward of each response; 0 for one that could not be scored."""
    from nanorlhf.nanoverl import RewardItem, RewardPool

    with RewardPool(config.reward) as pool:
        return {
            way: [
                result.reward
                for result in pool.score(
                    [
                        RewardItem(rows[r.row]["prompt"], r.text, rows[r.row]["answer"], row={})
                        for r in found
                    ]
                )
            ]
            for way, found in responses.items()
        }


def transcript(
    rows: list[dict[str, Any]],
    responses: dict[str, list[Response]],
    rewards: dict[str, list[float]],
) -> list[dict[str, Any]]:
    """Return every response with its problem and its reward."""
    return [
        {"way": way, "prompt": rows[r.row]["prompt"], "answer": rows[r.row]["answer"]}
        | {"response": r.text, "tokens": r.tokens, "finish_reason": r.finish_reason}
        | {"reward": reward}
        for way, found in responses.items()
        for r, reward in zip(found, rewards[way], strict=True)
    ]


def summary(responses: list[Response], rewards: list[float]) -> Scores:
    """Return the means."""
    return Scores(
        accuracy=fmean(rewards),
        tokens=fmean(response.tokens for response in responses),
        truncated=fmean(response.finish_reason == "length" for response in responses),
    )


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
