"""AdamW on flat float32 shards, and the learning rate over time."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

_CHUNK = 1 << 25
"""Elements updated at once, so that temporaries of a large shard stay small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamWConfig:
    """Settings of AdamW (Loshchilov and Hutter, arXiv:1711.05101)."""

    lr: float = 1e-5
    """Learning rate where a step does not give its own."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled decay; matrices only, never norms or biases."""

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas}: each must be in [0, 1)")
        if self.lr < 0 or self.eps <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"lr={self.lr}, eps={self.eps}, weight_decay={self.weight_decay}: "
                f"lr and weight_decay must be >= 0 and eps > 0"
            )


class Run(NamedTuple):
    """A range of a flat shard whose elements are treated alike."""

    start: int
    stop: int
    decay: bool
    """Weight decay applies."""
    counted: bool
    """This rank counts them in the global gradient norm; another one does when False."""


class AdamW:
    """AdamW over one flat shard: no loop over parameters.

    Args:
        master: Weights, float32 (or float64) [n]; updated in place.
        runs: Cover of [0, n) saying where weight decay applies.
        config: Settings.
    """

    def __init__(self, master: Tensor, runs: list[Run], config: AdamWConfig) -> None:
        self.master, self.runs, self.config = master, runs, config
        self.exp_avg = torch.zeros_like(master)
        self.exp_avg_sq = torch.zeros_like(master)
        self.steps = 0

    @torch.no_grad()
    def step(self, grad: Tensor, *, lr: float | None = None) -> None:
        """Update the master weights from ``grad`` [n], which is left as it is."""
        lr = self.config.lr if lr is None else lr
        self.steps += 1
        for run in self.runs:
            for start in range(run.start, run.stop, _CHUNK):
                piece = slice(start, min(start + _CHUNK, run.stop))
                self._update(piece, grad[piece], lr, self.config.weight_decay * run.decay)

    def _update(self, piece: slice, grad: Tensor, lr: float, weight_decay: float) -> None:
        """Apply Algorithm 2 of the paper to one range."""
        beta1, beta2 = self.config.betas
        mean, square = self.exp_avg[piece], self.exp_avg_sq[piece]
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        # Both bias corrections: one goes into the step size, the other under the root.
        scale = math.sqrt(1 - beta2**self.steps)
        denominator = square.sqrt().div_(scale).add_(self.config.eps)
        weights = self.master[piece]
        if weight_decay:
            weights.mul_(1 - lr * weight_decay)
        weights.addcdiv_(mean, denominator, value=-lr / (1 - beta1**self.steps))


@dataclass(frozen=True, slots=True)
class LRSchedule:
    """Learning rate by step: linear warm-up, then a shape down to ``min_ratio * lr``.

    Step 0 already learns (``lr / warmup_steps``), and steps past the end stay at the floor.

    >>> rate = LRSchedule(1.0, warmup_steps=2, total_steps=6, min_ratio=0.0, shape="linear")
    >>> [rate(step) for step in range(7)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """

    lr: float
    """Peak."""
    _: KW_ONLY
    warmup_steps: int = 0
    """Steps until the peak."""
    total_steps: int = 1
    """Steps until the floor."""
    min_ratio: float = 0.0
    """The floor as a share of the peak, in [0, 1]."""
    shape: Literal["cosine", "linear", "constant"] = "cosine"
    """How it falls after the warm-up."""

    def __post_init__(self) -> None:
        if self.shape not in ("cosine", "linear", "constant"):
            raise ValueError(f"shape={self.shape!r}: choose cosine, linear or constant")
        if not 0 <= self.min_ratio <= 1 or self.lr < 0:
            raise ValueError(
                f"lr={self.lr}, min_ratio={self.min_ratio}: lr must be >= 0, min_ratio in [0, 1]"
            )
        if not 0 <= self.warmup_steps <= self.total_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} must be between 0 and "
                f"total_steps={self.total_steps}"
            )

    def __call__(self, step: int) -> float:
        """Return the rate of step ``step``, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        span = max(1, self.total_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / span)
        falls = {
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
            "linear": 1 - progress,
            "constant": 1.0,
        }
        return self.lr * (self.min_ratio + (1 - self.min_ratio) * falls[self.shape])
