"""SFT, PPO and GRPO with one-step off-policy rollouts."""

from .advantages import (
    Advantages,
    dr_grpo,
    estimate_advantages,
    gae,
    grpo,
    rewards_to_go,
    rloo,
    token_rewards,
    whiten,
)
from .algo import AlgoConfig, CorrectionConfig, KLConfig
from .config import Layout, OptimConfig, RewardConfig, RLConfig, RolloutConfig, SFTConfig
from .corrections import Correction, importance_weights
from .errors import NanoverlError, RewardError
from .experience import Experience, Sample, concat, load_samples, save_samples, shuffled_parts
from .losses import (
    aggregation,
    cispo_tokens,
    gspo_tokens,
    kl_penalty,
    policy_loss,
    ppo_tokens,
    value_loss,
    value_tokens,
)
from .math_score import equivalent, math_reward
from .rewards import RewardItem, RewardPool, RewardResult, load_reward
from .rl import RLTrainer
from .sft import SFTTrainer
from .step import StepResult

__all__ = [
    "Advantages",
    "AlgoConfig",
    "Correction",
    "CorrectionConfig",
    "Experience",
    "KLConfig",
    "Layout",
    "NanoverlError",
    "OptimConfig",
    "RLConfig",
    "RLTrainer",
    "RewardConfig",
    "RewardError",
    "RewardItem",
    "RewardPool",
    "RewardResult",
    "RolloutConfig",
    "SFTConfig",
    "SFTTrainer",
    "Sample",
    "StepResult",
    "aggregation",
    "cispo_tokens",
    "concat",
    "dr_grpo",
    "equivalent",
    "estimate_advantages",
    "gae",
    "grpo",
    "gspo_tokens",
    "importance_weights",
    "kl_penalty",
    "load_reward",
    "load_samples",
    "math_reward",
    "policy_loss",
    "ppo_tokens",
    "rewards_to_go",
    "rloo",
    "save_samples",
    "shuffled_parts",
    "token_rewards",
    "value_loss",
    "value_tokens",
    "whiten",
]
