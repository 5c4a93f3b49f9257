"""How rewards become gradients, as frozen dataclasses of plain values."""

from dataclasses import dataclass, field
from typing import Literal

from .bounds import above, at_least, within

Advantage = Literal["gae", "grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline"]
PolicyObjective = Literal["ppo", "gspo", "cispo"]
Estimator = Literal["k1", "k2", "k3", "k3+"]
Aggregate = Literal["token", "sequence", "constant"]
CorrectionMode = Literal["none", "tis", "mis", "sequence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KLConfig:
    """The penalty that holds the policy near the model it started from."""

    where: Literal["none", "reward", "loss"] = "none"
    """Taken off the reward of each token, added to the loss of each token, or nowhere."""
    coef: float = 0.001
    """Weight of the penalty."""
    estimator: Estimator = "k3"
    """See `nanoverl.losses.kl_penalty`; k1 is usual in the reward, k3 in the loss."""

    def __post_init__(self) -> None:
        at_least(0, coef=self.coef)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionConfig:
    """Importance weights from the policy that sampled to the policy at the start of the step."""

    mode: CorrectionMode = "tis"
    """none; tis: weights truncated at ``cap``; mis: tokens outside [1/cap, cap] are dropped;
    sequence: sequences whose geometric mean weight is outside [1/cap, cap] are dropped."""
    cap: float = 2.0
    """Largest weight, above 1; for ``sequence`` a value like 1.01."""

    def __post_init__(self) -> None:
        above(1, cap=self.cap)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgoConfig:
    """From rewards to gradients."""

    advantage: Advantage = "gae"
    """gae needs a critic; the others compare responses and need none."""
    loss: PolicyObjective = "ppo"
    """ppo: clipped token ratios; gspo: clipped sequence ratios; cispo: clipped weights."""
    clip_low: float = 0.2
    """The ratio may fall to 1 - clip_low before its gradient stops."""
    clip_high: float = 0.2
    """The ratio may rise to 1 + clip_high before its gradient stops."""
    dual_clip: float | None = None
    """Ratio beyond which a negative advantage counts no further, e.g. 3; None for no such limit."""
    value_clip: float | None = 0.5
    """How far a value may move from its old one, in units of reward; None for any distance."""
    gamma: float = 1.0
    """Discount per token."""
    lam: float = 1.0
    """Bias-variance knob of gae: 1 is Monte Carlo, 0 is TD(0)."""
    normalize: bool = True
    """gae: bring advantages to mean 0 and variance 1 over the batch's response tokens. The
    reinforce++ estimators always do, the group estimators never."""
    kl: KLConfig = field(default_factory=KLConfig)
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    aggregate: Aggregate = "token"
    """token: mean over tokens; sequence: mean over sequences of token means; constant: mean over
    sequences of token sums divided by max_new_tokens (Dr. GRPO)."""
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)

    def __post_init__(self) -> None:
        above(0, clip_low=self.clip_low, clip_high=self.clip_high, value_clip=self.value_clip)
        above(1, dual_clip=self.dual_clip)
        within(0, 1, gamma=self.gamma, lam=self.lam)
        if self.clip_low >= 1:
            raise ValueError(f"clip_low={self.clip_low} allows negative ratios; use less than 1")
        if self.dual_clip is not None and self.loss != "ppo":
            raise ValueError(f"dual_clip={self.dual_clip} is part of loss='ppo', not {self.loss!r}")

    @property
    def needs_critic(self) -> bool:
        """Whether a value model has to be trained."""
        return self.advantage == "gae"

    @property
    def needs_reference(self) -> bool:
        """Whether the frozen initial policy has to be kept."""
        return self.kl.where != "none" and self.kl.coef > 0
