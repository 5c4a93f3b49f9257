import re
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arithmetic import ArithmeticConfig, demonstration, draw, is_held_out, problems, work

CONFIG = ArithmeticConfig()
STEPS = st.lists(st.tuples(st.sampled_from("+-*"), st.integers(1, 9)), min_size=1, max_size=8)


def by_definition(text):
    """Left to right without precedence: every prefix in brackets, worked out by Python."""
    parts = re.findall(r"\d|[-+*]", text.rstrip("="))
    nested = parts[0]
    for operator, operand in zip(parts[1::2], parts[2::2], strict=True):
        nested = f"({nested}{operator}{operand})"
    return str(eval(nested) % 10)


@given(st.integers(0, 9), STEPS)
def test_the_answer_is_that_of_an_independent_evaluator(first, steps):
    problem = work(first, steps)
    assert problem.answer == by_definition(problem.text)


@given(st.integers(0, 9), STEPS)
def test_every_line_of_the_thinking_is_true_and_the_last_is_the_answer(first, steps):
    problem = work(first, steps)
    totals = [int(total) for total in re.findall(r"=(\d)", problem.thinking)]
    assert len(totals) == len(steps)
    assert problem.thinking.endswith(f"={problem.answer}")
    for i, total in enumerate(totals):
        prefix = str(first) + "".join(f"{o}{n}" for o, n in steps[: i + 1])
        assert str(total) == by_definition(prefix)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_held_out_problems_are_never_among_the_others(seed):
    held_out = {
        p.text
        for p in islice(problems(CONFIG, seed=f"eval-{seed}", held_out=True, unique=True), 500)
    }
    for other in (0, 1, 2):
        for name in ("sft", "rl"):
            drawn = problems(CONFIG, seed=f"{name}-{other}", held_out=False, unique=name == "rl")
            assert held_out.isdisjoint(p.text for p in islice(drawn, 3000))


def test_about_one_problem_in_eight_is_held_out():
    import random

    source = random.Random(0)
    share = sum(is_held_out(draw(CONFIG, source).text) for _ in range(8000)) / 8000
    assert share == pytest.approx(1 / 8, abs=0.015)  # four standard errors


def test_problems_are_a_function_of_the_seed():
    def first(seed):
        return list(islice(problems(CONFIG, seed=seed, held_out=False, unique=True), 50))

    assert first("a") == first("a")
    assert first("a") != first("b")


def test_unique_problems_are_unique_and_run_out_with_an_explanation():
    small = ArithmeticConfig(operands_min=2, operands_max=2, add_max=2, mul_max=2)
    drawn = problems(small, seed="x", held_out=False, unique=True)
    found = [problem.text for problem in islice(drawn, 30)]
    assert len(set(found)) == 30
    with pytest.raises(ValueError, match="raise operands_max"):
        list(drawn)


def test_problems_keep_to_their_ranges():
    config = ArithmeticConfig(operators="*-", operands_min=3, operands_max=5, add_max=4, mul_max=6)
    for problem in islice(problems(config, seed="x", held_out=False, unique=False), 500):
        found = re.fullmatch(r"\d((?:\*[2-6]|-[1-4]){2,4})=", problem.text)
        assert found, problem.text


def test_demonstrations_differ_in_the_thinking_only():
    problem = work(7, [("+", 4), ("*", 3)])
    assert demonstration(problem, thinks=True) == "<think>7+4=1*3=3</think>\\boxed{3}"
    assert demonstration(problem, thinks=False) == "<think></think>\\boxed{3}"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"operators": "+/"}, r"operators='\+/'"),
        ({"operands_min": 1}, "operands_min=1"),
        ({"operands_max": 3}, "operands_max=3"),
        ({"add_max": 10}, "add_max=10; wanted 1 to 9"),
        ({"think_fraction": 1.5}, "think_fraction=1.5; wanted 0 to 1"),
    ],
)
def test_impossible_settings_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        ArithmeticConfig(**changed)
