"""Reinforcement learning: one loop for PPO, GRPO and kin, on-policy or one step off-policy.

With ``lag=0`` the loop trains, publishes the new weights and samples the next batch from them.
With ``lag=1`` it publishes and starts the next batch first, and trains while that one is sampled:
batch t is sampled by the weights of step t-1 (batches 0 and 1 both by the first weights). Nothing
else differs, and every token carries the version that drew it.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nanorlhf.nanosets import Dataset

from .config import OptimConfig, RLConfig
from .estimate import estimate
from .experience import Experience, Sample, load_samples, save_samples, shuffled_parts
from .group import TrainGroup
from .order import Order
from .placement import DeviceName, place_here
from .report import sample_metrics, timing
from .rewards import RewardItem, RewardPool
from .rollout import Prompt, Response, RolloutGroup, prompt_seed
from .runtime import RuntimeName, create_runtime
from .sft import lr_schedule
from .step import Checkpoints, StepResult, Trainer
from .worker import Plan, Role

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RLTrainer(Trainer):
    """Improves the policy ``model`` on the rewards of its own responses; resumes from ``out``.

    Args:
        config: How.
        model: A Hugging Face directory with its tokenizer: actor, critic's body and reference.
        train: Columns ``prompt_tokens: list<int32>``, ``prompt: utf8``, ``answer: utf8``; every
            other column is handed to the reward function too.
        out: Folder of the checkpoints; weights lie in ``step_*/actor`` and ``step_*/critic``.
        runtime: Where trainer and rollout live.
        device: Kind of device.

    Raises:
        ValueError: The layout does not fit the model, the data or the runtime.
    """

    def __init__(
        self,
        config: RLConfig,
        *,
        model: Path,
        train: Dataset,
        out: Path,
        runtime: RuntimeName = "nanoray",
        device: DeviceName = "auto",
    ) -> None:
        self.config = config
        self.train = train
        self.model = str(model)
        self.total_steps = config.steps
        self.checkpoints = Checkpoints(out, keep=config.keep)
        self.start_step = int(self.checkpoints.state()["step"])
        self.order = Order(len(train), seed=config.seed)
        self.actor_lr = lr_schedule(config.optim, config.steps)
        self.critic_lr = lr_schedule(config.critic_optim, config.steps)
        self.batch: list[Sample] | None = None
        self.tokenizer = load_tokenizer(self.model)
        self.rewards = RewardPool(config.reward)
        try:
            self.runtime = create_runtime(runtime)
        except BaseException:
            self.rewards.close()
            raise
        try:
            self._build(device)
        except BaseException:
            self.close()
            raise

    def _build(self, device: DeviceName) -> None:
        config = self.config
        placement = place_here(
            config.layout,
            replicas=config.rollout.replicas,
            device=device,
            processes=self.runtime.has_processes,
        )
        self.rollout = RolloutGroup(
            self.runtime,
            self.model,
            config.rollout,
            devices=placement.rollout,
            threads=placement.threads,
            timeout_s=config.timeout_s,
        )
        self.group = TrainGroup(
            self.runtime,
            placement.layout,
            devices=placement.trainer,
            threads=placement.threads,
            max_tokens=config.max_tokens,
            timeout_s=config.timeout_s,
        )
        resumed = self.checkpoints.latest()
        for role, optim in self.roles.items():
            source = str(resumed / role) if resumed and optim else self.model
            self.group.load(role, source, optim, dtype=config.dtype, resume=resumed is not None)
        self.group.set_losses(config.algo)

    @property
    def roles(self) -> dict[Role, OptimConfig | None]:
        """The trainer's models and their optimizers; None for a frozen one."""
        config = self.config
        roles: dict[Role, OptimConfig | None] = {"actor": config.optim}
        if config.algo.needs_critic:
            roles["critic"] = config.critic_optim
        if config.algo.needs_reference:
            roles["ref"] = None
        return roles

    def fit(self) -> Iterator[StepResult]:
        """Yield each step's metrics and samples; write checkpoints between the steps."""
        self._begin()
        for step in range(self.start_step, self.total_steps):
            clock = time.perf_counter()
            samples = self._collect(step)
            waited = time.perf_counter() - clock
            if self.config.lag:
                self._advance(step, launch=step + 1)
            metrics = self._learn(samples, step)
            if not self.config.lag:
                self._advance(step + 1, launch=step + 1)
            metrics |= timing(samples, waited_s=waited, step_s=time.perf_counter() - clock)
            yield StepResult(step + 1, metrics, [sample.as_row() for sample in samples])
            if (step + 1) % self.config.save_every == 0 or step + 1 == self.total_steps:
                self._save(step + 1)

    def _begin(self) -> None:
        """Sample the first batch, or take the one that a resumed checkpoint had pending."""
        folder = self.checkpoints.latest()
        if self.start_step == self.total_steps:
            return
        if folder is None:
            self._advance(0, launch=0)
        else:
            self.batch = load_samples(folder / "pending.jsonl")

    def _advance(self, version: int, *, launch: int) -> None:
        """Publish the trainer's weights as ``version`` and start sampling batch ``launch``."""
        if launch >= self.total_steps:
            return
        if version != self.rollout.version:
            self.rollout.publish(version, self.group.export("actor"))
        self.rollout.submit(self._prompts(launch))

    def _prompts(self, batch: int) -> list[Prompt]:
        """Return the prompts of ``batch``: a pure function of its number."""
        count = self.config.rollout.prompts
        first = batch * count
        return [
            Prompt(
                row,
                [int(token) for token in self.train[row]["prompt_tokens"]],
                prompt_seed(self.config.seed, first + k),
            )
            for k, row in enumerate(self.order.take(first, count))
        ]

    def _collect(self, batch: int) -> list[Sample]:
        """Return ``batch``, scored: what a checkpoint had pending, or what the engines sampled."""
        if self.batch is None:
            responses = self.rollout.collect()
            samples = [
                self._sample(prompt, response)
                for prompt, group in zip(self._prompts(batch), responses, strict=True)
                for response in group
            ]
            self.batch = self._score(samples)
        samples, self.batch = self.batch, None
        return samples

    def _sample(self, prompt: Prompt, response: Response) -> Sample:
        return Sample(
            prompt_tokens=prompt.tokens,
            response_tokens=response.tokens,
            logprobs=response.logprobs,
            versions=response.versions,
            finish_reason=response.finish_reason,
            group=response.prompt,
            text=str(self.tokenizer.decode(response.tokens, skip_special_tokens=True)),
            row={k: v for k, v in self.train[prompt.row].items() if k != "prompt_tokens"},
        )

    def _score(self, samples: list[Sample]) -> list[Sample]:
        """Return ``samples`` with their rewards; one that could not be scored gets 0."""
        items = [
            RewardItem(
                sample.row["prompt"], sample.text, answer=sample.row["answer"], row=sample.row
            )
            for sample in samples
        ]
        for sample, result in zip(samples, self.rewards.score(items), strict=True):
            sample.reward, sample.parts, sample.error = result.reward, result.parts, result.error
        return samples

    def _learn(self, samples: list[Sample], step: int) -> dict[str, float]:
        """Update the models on one batch; return what happened."""
        experience = self._evaluate(Experience.from_samples(samples))
        experience, metrics = estimate(experience, self.config)
        metrics |= sample_metrics(samples, step=step)
        return metrics | self._update(experience, step)

    def _evaluate(self, experience: Experience) -> Experience:
        """Fill in what the models say of the responses before this step's first update."""
        stored = self.runtime.put(experience)
        wanted = {"actor": ("logprobs", "old_logprobs"), "ref": ("logprobs", "ref_logprobs")}
        wanted["critic"] = ("values", "values")
        started = {
            role: self.group.start_forward(
                role, experience, stored, temperature=self.config.rollout.temperature
            )
            for role in self.roles
        }
        for role, forward in started.items():
            output, name = wanted[role]
            setattr(experience, name, self.group.finish_forward(output, experience, forward))
        return experience

    def _update(self, experience: Experience, step: int) -> dict[str, float]:
        """Take the optimizer steps of one batch; return their mean metrics."""
        config = self.config
        minibatches = self._minibatches(experience, step)
        stored = self.runtime.put(experience)
        rates: dict[Role, float] = {"actor": self.actor_lr(step), "critic": self.critic_lr(step)}
        if "critic" not in self.roles:
            del rates["critic"]
        if step < config.critic_warmup:
            del rates["actor"]
        started = {
            role: self.group.start_update(
                role, stored, minibatches, temperature=config.rollout.temperature, lr=lr
            )
            for role, lr in rates.items()
        }
        metrics = {f"{role}/lr": lr for role, lr in rates.items()}
        for role, refs in started.items():
            steps = self.group.wait(refs, f"an update of the {role}")[0]
            metrics |= {
                f"{role}/{name}": sum(s[name] for s in steps) / len(steps)
                for name in steps[0]
                if name not in ("tokens", "weight")
            }
        return metrics

    def _minibatches(self, experience: Experience, step: int) -> list[list[Plan]]:
        """Return, for each optimizer step and data-parallel rank, its microbatches."""
        lengths = experience.lengths.tolist()
        return [
            self.group.plan([lengths[i] for i in rows], rows)
            for epoch in range(self.config.epochs)
            for rows in shuffled_parts(
                len(lengths), self.config.minibatches, seed=(self.config.seed, step, epoch)
            )
        ]

    def _save(self, done: int) -> None:
        """Write a checkpoint; the batch being sampled goes with it, so that resuming loses none."""
        folder = self.checkpoints.begin(done)
        for role, optim in self.roles.items():
            if optim:
                self.group.save(role, str(folder / role))
        if not self.rollout.idle:
            self.batch = self._collect(done)
            save_samples(self.batch, folder / "pending.jsonl")
        self.checkpoints.commit(done, {})

    def close(self) -> None:
        """End trainer, rollout and reward processes."""
        self.rewards.close()
        self.runtime.shutdown()


def load_tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a checkpoint."""
    from transformers import AutoTokenizer  # seconds to import, and workers need none of it

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
    return tokenizer
