"""From responses to advantages without a model: score a few answers, compare them, weigh them.

Two prompts with four responses each. The math reward runs in processes of its own; GRPO compares
the responses to one prompt with each other; the importance weights correct for an engine that
sampled with slightly other probabilities than the trainer computes.
"""

from nanorlhf.nanoverl import (
    AlgoConfig,
    Experience,
    RewardConfig,
    RewardItem,
    RewardPool,
    Sample,
    estimate_advantages,
    importance_weights,
)

PROBLEMS = [
    ("What is 3/4 - 1/4?", r"\frac{1}{2}"),
    ("Solve x^2 = 9.", r"\pm 3"),
]
RESPONSES = [
    [r"It is \boxed{0.5}.", r"\boxed{\frac{2}{4}}", r"\boxed{1}", "It is one half."],
    [r"\boxed{3, -3}", r"\boxed{3}", r"\boxed{x = 3 \text{ or } x = -3}", r"\boxed{3}\boxed{-3}"],
]


def main():
    asked = [(g, r) for g, responses in enumerate(RESPONSES) for r in responses]
    items = [RewardItem(PROBLEMS[g][0], r, PROBLEMS[g][1], row={}) for g, r in asked]
    with RewardPool(RewardConfig(workers=2, timeout_s=20.0)) as pool:
        results = pool.score(items)

    samples = []
    for (group, response), result in zip(asked, results, strict=True):
        tokens = list(response.encode())  # bytes stand in for a tokenizer
        samples.append(
            Sample(
                prompt_tokens=list(PROBLEMS[group][0].encode()),
                response_tokens=tokens,
                logprobs=[-0.5] * len(tokens),
                versions=[0] * len(tokens),
                finish_reason="stop",
                group=group,
                text=response,
                reward=result.reward,
            )
        )
    experience = Experience.from_samples(samples)
    experience = estimate_advantages(experience, AlgoConfig(advantage="grpo"))
    correction = importance_weights(
        experience.rollout_logprobs + 0.05 * experience.response,  # the trainer's own view
        experience.rollout_logprobs,
        response_T=experience.response,
        lengths_N=experience.lengths,
        mode="tis",
        cap=2.0,
    )

    print(f"{'reward':>6} {'advantage':>9}  response")
    last = experience.cu_seqlens[1:] - 1
    for sample, advantage in zip(samples, experience.advantages[last].tolist(), strict=True):
        print(f"{sample.reward:6.1f} {advantage:9.3f}  {sample.text}")
    print({name: round(value, 4) for name, value in correction.metrics.items()})


if __name__ == "__main__":
    main()
