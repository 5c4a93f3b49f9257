"""Errors of this package that are about the world, not about an argument.

::

    NanotronError
    |-- CheckpointError       a directory that is not a usable checkpoint
    |-- NonFiniteGradient     the global gradient norm is inf or nan; weights are untouched
    `-- RankFailed            a rank started by ``testing.run_ranks`` raised or hung
"""


class NanotronError(Exception):
    """Base of every error of this package."""


class CheckpointError(NanotronError):
    """A directory lacks weights, config or optimizer state, or they do not fit the model."""


class NonFiniteGradient(NanotronError, FloatingPointError):
    """The global gradient norm is not a number; the weights were not changed."""

    def __init__(self, norm: float, loss: float) -> None:
        super().__init__(
            f"grad_norm={norm} with loss={loss}: no step was taken; lower lr, or look for the "
            f"token fields that are not finite"
        )


class RankFailed(NanotronError):
    """One of the ranks of ``testing.run_ranks`` raised, died or ran out of time."""
