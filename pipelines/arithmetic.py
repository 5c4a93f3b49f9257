r"""The generated task: chains of single digits, worked from left to right modulo 10.

    problem    7+4*3-3+5=
    thinking   <think>7+4=1*3=3-3=0+5=5</think>\boxed{5}
    direct     <think></think>\boxed{5}

Demonstrations show both ways. The direct way is short and mostly wrong, because a small model
cannot do the whole chain in its head; the thinking way is long and right. So a supervised model
does some of each, and reinforcement has something to find out.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

OPERATORS = "+-*"
HELD_OUT = 8
"""One problem in this many is held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArithmeticConfig:
    """Which problems there are and how many are drawn."""

    operators: str = OPERATORS
    """Those to draw from."""
    operands_min: int = 4
    """Digits of the shortest chain."""
    operands_max: int = 6
    """Digits of the longest chain."""
    add_max: int = 5
    """Largest digit added or subtracted, from 1."""
    mul_max: int = 3
    """Largest digit multiplied by, from 2."""
    think_fraction: float = 0.5
    """Share of demonstrations that think."""
    sft_examples: int = 60_000
    """Demonstrations; a problem may come twice, thinking and not."""
    rl_problems: int = 16_384
    """Different problems for reinforcement."""
    eval_problems: int = 512
    """Different held-out problems."""

    def __post_init__(self) -> None:
        if not self.operators or set(self.operators) - set(OPERATORS):
            raise ValueError(f"operators={self.operators!r}; choose some of {OPERATORS!r}")
        if not 2 <= self.operands_min <= self.operands_max:
            raise ValueError(
                f"operands_min={self.operands_min} and operands_max={self.operands_max}; "
                "wanted 2 <= operands_min <= operands_max"
            )
        for name, low in (("add_max", 1), ("mul_max", 2)):
            if not low <= getattr(self, name) <= 9:
                raise ValueError(f"{name}={getattr(self, name)}; wanted {low} to 9")
        if not 0.0 <= self.think_fraction <= 1.0:
            raise ValueError(f"think_fraction={self.think_fraction}; wanted 0 to 1")


class Problem(NamedTuple):
    """A chain and its worked solution."""

    text: str
    """``7+4*3=``"""
    thinking: str
    """``7+4=1*3=3``"""
    answer: str
    """``3``"""


def work(first: int, steps: list[tuple[str, int]]) -> Problem:
    """Return the problem that applies ``steps`` to ``first``, one after the other.

    >>> work(7, [("+", 4), ("*", 3)])
    Problem(text='7+4*3=', thinking='7+4=1*3=3', answer='3')
    """
    total, text, thinking = first, str(first), str(first)
    for operator, operand in steps:
        if operator == "+":
            total += operand
        elif operator == "-":
            total -= operand
        else:
            total *= operand
        total %= 10
        text += f"{operator}{operand}"
        thinking += f"{operator}{operand}={total}"
    return Problem(f"{text}=", thinking, str(total))


def is_held_out(text: str) -> bool:
    """Return whether the problem ``text`` is for evaluation only; depends on nothing else."""
    return hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % HELD_OUT == 0


def draw(config: ArithmeticConfig, source: random.Random) -> Problem:
    """Return a random problem, held out or not."""
    steps = []
    for _ in range(source.randint(config.operands_min, config.operands_max) - 1):
        operator = source.choice(config.operators)
        low, high = (2, config.mul_max) if operator == "*" else (1, config.add_max)
        steps.append((operator, source.randint(low, high)))
    return work(source.randint(0, 9), steps)


def problems(
    config: ArithmeticConfig, *, seed: str, held_out: bool, unique: bool
) -> Iterator[Problem]:
    """Yield problems without end; the same for the same ``seed``.

    Args:
        config: Which chains there are.
        seed: Of the random numbers.
        held_out: Yield held-out problems only, or the others only.
        unique: No problem twice.

    Raises:
        ValueError: ``unique`` problems have run out.
    """
    source = random.Random(seed)
    seen: set[str] = set()
    misses = 0
    while misses < 10_000:
        problem = draw(config, source)
        if is_held_out(problem.text) == held_out and problem.text not in seen:
            misses = 0
            if unique:
                seen.add(problem.text)
            yield problem
        else:
            misses += 1
    raise ValueError(
        f"arithmetic has only about {len(seen)} different problems "
        f"{'held out' if held_out else 'to train on'}; raise operands_max or ask for fewer"
    )


def demonstration(problem: Problem, *, thinks: bool) -> str:
    r"""Return a response to imitate.

    >>> demonstration(work(7, [("+", 4)]), thinks=False)
    '<think></think>\\boxed{1}'
    """
    return f"<think>{problem.thinking if thinks else ''}</think>\\boxed{{{problem.answer}}}"
