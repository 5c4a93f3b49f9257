"""What a step reports of its samples and its speed."""

from .experience import Sample


def timing(samples: list[Sample], *, waited_s: float, step_s: float) -> dict[str, float]:
    """Return the speed of a step and how long it waited for its samples."""
    tokens = sum(len(s.prompt_tokens) + len(s.response_tokens) for s in samples)
    return {
        "time/step_s": step_s,
        "time/wait_rollout_s": waited_s,
        "time/tokens_per_s": tokens / step_s,
    }


def sample_metrics(samples: list[Sample], *, step: int) -> dict[str, float]:
    """Return means over a batch of responses.

    Args:
        samples: Scored.
        step: Updates that the policy has had; ``rollout/staleness`` is how many of them the weights
            that drew the oldest token had not.
    """
    count = len(samples)
    lengths = [len(sample.response_tokens) for sample in samples]
    rewards = [sample.reward for sample in samples]
    metrics = {
        "reward/mean": sum(rewards) / count,
        "reward/max": max(rewards),
        "reward/min": min(rewards),
        "reward/errors": float(sum(sample.error is not None for sample in samples)),
        "rollout/response_tokens": sum(lengths) / count,
        "rollout/response_tokens_max": float(max(lengths)),
        "rollout/truncated": sum(s.finish_reason == "length" for s in samples) / count,
        "rollout/staleness": float(step - min(min(sample.versions) for sample in samples)),
    }
    for name in sorted({name for sample in samples for name in sample.parts}):
        metrics[f"reward/parts/{name}"] = (
            sum(sample.parts.get(name, 0.0) for sample in samples) / count
        )
    return metrics
