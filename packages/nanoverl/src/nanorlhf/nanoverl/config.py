"""What a training run can be told, as frozen dataclasses of plain values.

They check arithmetic only: no files, devices or network. Every message names the value, the rule
and the fix. Defaults are those of PPO on a small language model with mathematical rewards.
"""

from dataclasses import dataclass, field
from typing import Literal

from .algo import AlgoConfig as AlgoConfig
from .algo import CorrectionConfig as CorrectionConfig
from .algo import KLConfig as KLConfig
from .bounds import above, at_least, within

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the trainer's ranks share the work: data, pipeline and tensor parallel sizes."""

    dp: int | Literal["auto"] = "auto"
    """Replicas; auto takes the devices that are free."""
    pp: int = 1
    """Pipeline stages."""
    tp: int = 1
    """Tensor slices."""
    zero: Literal[0, 1] = 1
    """1 shards the optimizer state over the replicas, 0 repeats it in each."""

    def __post_init__(self) -> None:
        at_least(1, pp=self.pp, tp=self.tp)
        if self.dp != "auto":
            at_least(1, dp=self.dp)

    @property
    def world(self) -> int:
        """Ranks in all, once ``dp`` is a number.

        Raises:
            ValueError: ``dp`` is still ``"auto"``.
        """
        if self.dp == "auto":
            raise ValueError("dp='auto' has no size yet; replace it by a number first")
        return self.dp * self.pp * self.tp


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """AdamW and its learning rate over time."""

    lr: float = 1e-6
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    """Shape after the warm-up."""
    warmup_steps: int = 0
    """Steps of linear rise from zero."""
    min_ratio: float = 0.1
    """Learning rate of the last step, as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; None for no clipping."""

    def __post_init__(self) -> None:
        at_least(0, lr=self.lr, warmup_steps=self.warmup_steps, weight_decay=self.weight_decay)
        above(0, eps=self.eps, clip_norm=self.clip_norm)
        within(0, 1, min_ratio=self.min_ratio)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas}: each must be in [0, 1); 0.9 and 0.95 are usual")

    def check_steps(self, steps: int) -> None:
        """Raise ValueError when the warm-up does not end within ``steps``."""
        if self.warmup_steps > steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} is more than steps={steps}; lower it or train "
                "for longer"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTConfig:
    """Supervised fine-tuning."""

    steps: int = 2000
    """Optimizer steps in all."""
    batch_size: int = 256
    """Sequences a step, over all replicas."""
    max_tokens: int = 16_384
    """Tokens of a microbatch; a longer sequence gets one of its own."""
    seed: int = 0
    """Of the order of the rows."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-5, schedule="cosine", warmup_steps=50)
    )
    layout: Layout = field(default_factory=Layout)
    dtype: Dtype = "float32"
    """Of the parameters; the optimizer's copy is float32 in any case."""
    eval_every: int = 100
    """Steps between validation losses, where there is validation data."""
    save_every: int = 500
    """Steps between checkpoints; the last step always writes one."""
    keep: int = 2
    """Newest checkpoints that stay."""
    timeout_s: float = 3600.0
    """Deadline of any one call to a worker."""

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, batch_size=self.batch_size, max_tokens=self.max_tokens)
        self.optim.check_steps(self.steps)
        at_least(1, eval_every=self.eval_every, save_every=self.save_every, keep=self.keep)
        above(0, timeout_s=self.timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """How responses are sampled from the policy, and by how large an engine."""

    prompts: int = 256
    """Prompts a step."""
    samples: int = 1
    """Responses to each prompt; the group that group estimators compare within."""
    temperature: float = 1.0
    """Softmax temperature; the trainer divides its logits by the same."""
    top_p: float = 1.0
    """Nucleus mass; 1 is off."""
    top_k: int = 0
    """Candidates kept; 0 is off."""
    min_p: float = 0.0
    """Smallest probability kept, as a share of the largest; 0 is off."""
    max_new_tokens: int = 1536
    """Tokens of a response at most, end of sequence included."""
    max_model_len: int | None = None
    """Tokens of prompt and response at most; default: what the model was made for."""
    max_num_seqs: int = 256
    """Responses an engine decodes at once."""
    max_num_batched_tokens: int = 8192
    """Tokens an engine takes in one forward pass at most."""
    replicas: int = 1
    """Engines."""
    gpu_memory_utilization: float = 0.5
    """Share of the GPU memory that is free when an engine starts, its weights loaded, that its KV
    cache takes; lower it where the trainer, which starts after the engines, shares the GPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the engine's weights; auto is the checkpoint's."""

    def __post_init__(self) -> None:
        at_least(1, prompts=self.prompts, samples=self.samples, replicas=self.replicas)
        at_least(1, max_new_tokens=self.max_new_tokens, max_model_len=self.max_model_len)
        at_least(1, max_num_seqs=self.max_num_seqs)
        at_least(1, max_num_batched_tokens=self.max_num_batched_tokens)
        at_least(0, temperature=self.temperature, top_k=self.top_k)
        above(0, top_p=self.top_p, gpu_memory_utilization=self.gpu_memory_utilization)
        within(0, 1, top_p=self.top_p, min_p=self.min_p)
        within(0, 1, gpu_memory_utilization=self.gpu_memory_utilization)
        if self.max_model_len is not None and self.max_new_tokens >= self.max_model_len:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} leaves no room for a prompt in "
                f"max_model_len={self.max_model_len}; raise max_model_len or lower max_new_tokens"
            )

    @property
    def truncates(self) -> bool:
        """Whether tokens are drawn from less than the full distribution."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """The reward function and the processes it runs in."""

    function: str = "nanorlhf.nanoverl:math_reward"
    """``package.module:name`` or ``path/to/file.py:name``."""
    workers: int = 2
    """Processes that score at once."""
    timeout_s: float = 10.0
    """Time for one response; then its process is killed and the reward is 0."""
    start_timeout_s: float = 120.0
    """Time for importing the function."""

    def __post_init__(self) -> None:
        at_least(1, workers=self.workers)
        above(0, timeout_s=self.timeout_s, start_timeout_s=self.start_timeout_s)
        module, _, name = self.function.rpartition(":")
        if not module or not name.isidentifier():
            raise ValueError(
                f"function={self.function!r} names no function; "
                f"use 'package.module:name' or 'path/to/file.py:name'"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RLConfig:
    """Reinforcement learning."""

    steps: int = 200
    """Batches of responses in all."""
    lag: Literal[0, 1] = 1
    """1: the next batch is sampled while this one is trained on, by weights one step old;
    0: sampling waits for training."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    critic_optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-5))
    critic_warmup: int = 0
    """Steps in which the critic learns and the policy does not."""
    minibatches: int = 4
    """Optimizer steps an epoch."""
    epochs: int = 1
    """Passes over each batch."""
    max_tokens: int = 16_384
    """Tokens of a microbatch; a longer sequence gets one of its own."""
    layout: Layout = field(default_factory=Layout)
    dtype: Dtype = "float32"
    """Of the trainer's parameters; the optimizer's copy is float32 in any case."""
    save_every: int = 50
    """Steps between checkpoints; the last step always writes one."""
    keep: int = 2
    """Newest checkpoints that stay."""
    seed: int = 0
    """Of the order of the prompts, the sampling and the minibatches."""
    timeout_s: float = 3600.0
    """Deadline of any one call to a worker."""

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, minibatches=self.minibatches, epochs=self.epochs)
        self.optim.check_steps(self.steps)
        self.critic_optim.check_steps(self.steps)
        at_least(1, max_tokens=self.max_tokens, save_every=self.save_every, keep=self.keep)
        at_least(0, critic_warmup=self.critic_warmup)
        above(0, timeout_s=self.timeout_s)
        self._check_batch()
        self._check_sampling()

    def _check_batch(self) -> None:
        rollout, batch = self.rollout, self.rollout.prompts * self.rollout.samples
        if self.minibatches > batch:
            raise ValueError(
                f"minibatches={self.minibatches} cannot each get one of prompts*samples="
                f"{rollout.prompts}*{rollout.samples}={batch} responses; use at most {batch}"
            )
        if self.critic_warmup and not self.algo.needs_critic:
            raise ValueError(
                f"critic_warmup={self.critic_warmup} but advantage={self.algo.advantage!r} trains "
                f"no critic; use critic_warmup=0 or advantage='gae'"
            )

    def _check_sampling(self) -> None:
        if self.rollout.temperature <= 0:
            raise ValueError(
                f"rollout.temperature={self.rollout.temperature} explores nothing; use 1.0"
            )
        # The trainer's log-probabilities are of the full distribution (verl issue 6240).
        if self.rollout.truncates and self.algo.correction.mode != "none":
            raise ValueError(
                f"correction.mode={self.algo.correction.mode!r} compares full distributions, and "
                f"rollout.top_p={self.rollout.top_p}, top_k={self.rollout.top_k}, "
                f"min_p={self.rollout.min_p} cut theirs; use 1, 0 and 0, or correction.mode='none'"
            )
