"""What can go wrong in the world around a run.

::

    NanoverlError
    `-- RewardError          the reward function cannot be loaded, or fails on everything
"""


class NanoverlError(Exception):
    """Base of this package's errors."""


class RewardError(NanoverlError):
    """The reward function cannot be loaded, or no response could be scored."""
