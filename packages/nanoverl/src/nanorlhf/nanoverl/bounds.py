"""Checks of single numbers: each message names the value, the rule and the fix."""


def at_least(low: float, **values: float | None) -> None:
    """Raise for the first of ``values`` that is below ``low``; None passes."""
    for name, value in values.items():
        if value is not None and not value >= low:
            raise ValueError(f"{name}={value} is below {low:g}; use {low:g} or more")


def above(low: float, **values: float | None) -> None:
    """Raise for the first of ``values`` that is not above ``low``; None passes."""
    for name, value in values.items():
        if value is not None and not value > low:
            raise ValueError(f"{name}={value} must be above {low:g}; use a larger value")


def within(low: float, high: float, **values: float) -> None:
    """Raise for the first of ``values`` outside ``[low, high]``."""
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(f"{name}={value} is outside [{low:g}, {high:g}]; use a value inside")
