r"""What counts as the same answer: tables, MATH-500 as it is, and MATH-500 made wrong."""

import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nanorlhf.nanoverl import equivalent, math_reward, math_score

EQUAL = r"""
\frac{1}{2} @ 1/2
\frac12 @ 0.5
.5 @ \dfrac{1}{2}
\tfrac{1}{2} @ \frac{2}{4}
-\frac{1}{2} @ \frac{-1}{2}
0.3333 @ \frac{1}{3}
0.50 @ 0.5
+3 @ 3
1\frac{4}{5} @ \frac{9}{5}
1 4/5 @ 1.8
\frac\pi2 @ \frac{\pi}{2}
\sqrt2 @ \sqrt{2}
\frac{\sqrt{2}}{2} @ \frac{1}{\sqrt{2}}
2\sqrt{13} @ \sqrt{52}
\left( 3, \frac{\pi}{2} \right) @ (3,\pi/2)
(3,\,4) @ (3, 4)
5\text{ cm} @ 5
5 \mathrm{cm} @ 5
10 \text{ square units} @ 10
10 square units @ 10
12 cm^2 @ 12
5\text{ cm}^{2} @ 5
864 \text{ in}^2 @ 864 \mbox{ inches}^2
5.4\text{ cents} @ 5.4
90^\circ @ 90
90^{\circ} @ 90
90 degrees @ 90^\circ
\frac{270}{7}^\circ @ \frac{270}7\text{ degrees}
20\% @ 20
20 percent @ 20\%
\$18.90 @ 18.9
$36 @ \$36
36\text{ dollars} @ \$36
1,234,567 @ 1234567
10{,}080 @ 10,\!080
10\,080 @ 10080
58500 @ 58,500
\{1,2,3\} @ \{3,2,1\}
1,2 @ 2,1
\{1, 2\} @ 1, 2
x=5 @ 5
5 @ x=5
x=2+3=5 @ 5
x=1\text{ or }x=-2 @ 1,-2
x=1, x=-2 @ -2,1
1-\sqrt{19}, 1+\sqrt{19} @ 1 \pm \sqrt{19}
\pm 3 @ 3,-3
-2, 1\pm\sqrt5 @ \{1\pm\sqrt{5},-2\}
(2,\infty) @ (2,+\infty)
[-2,7] @ x \in [-2,7]
-2 \le x \le 7 @ [-2,7]
x \leq 7 @ x\le 7
(3,\infty)\cup(-\infty,2) @ (-\infty, 2) \cup (3, \infty)
\text{Evelyn} @ Evelyn
evelyn @ \text{Evelyn}
\textbf{(C)} @ \text{(C)}
C @ \text{(C)}
x^2+2x+1 @ (x+1)^2
2k+2 @ 2(k+1)
\frac{11+9a}{20} @ \frac{9a+11}{20}
y=2x+3 @ y = 3 + 2x
2x - y + 3 = 0 @ y=2x+3
52_{8} @ 52_8
6-5i @ -5i+6
\begin{bmatrix} 1/5 \\ -18/5 \end{bmatrix} @ \begin{pmatrix} 0.2 \\ -3.6 \end{pmatrix}
\frac{1}{\tan x} @ \cot x
(5) @ 5
5. @ 5
\(5\) @ 5
\boxed{5} @ 5
2^{10} @ 1024
1.5\times10^3 @ 1500
\text{no solution} @ \text{No solution}
10^{1000000000} @ 10^{1000000000}
5! @ 120
\displaystyle\frac{3}{4} @ 0.75
n(n+1)/2 @ \frac{n(n+1)}{2}
"""

DIFFERENT = r"""
1/3 @ 0.5
0.33 @ \frac{1}{3}
0.3334 @ \frac{1}{3}
2/1 @ 1/2
(2,1) @ (1,2)
(3,4) @ (3,4]
3,4 @ (3,4)
1,2,3 @ 1,2
1,1 @ 1
x=5 @ y=5
-x=5 @ x=5
2x=5 @ 5
52 @ 52_8
52_9 @ 52_8
seat @ \text{east}
east @ \text{west}
B @ \text{(C)}
2m @ 2k
2 t @ 2
5x @ 5
35 @ 3 5
1000001 @ 1000000
0.0000671 @ .0000672
x+1 @ x-1
y=2x-3 @ y=2x+3
(0,9) @ (0,9) \cup (9,36)
\begin{pmatrix} 1 \\ 2 \end{pmatrix} @ \begin{pmatrix} 2 \\ 1 \end{pmatrix}
\begin{pmatrix} 1 & 2 \end{pmatrix} @ \begin{pmatrix} 1 \\ 2 \end{pmatrix}
0.2 @ 20\%
\emptyset @ 0
@ 0
1 @
\text{} @ 0
\frac{1}{0} @ \infty
\infty @ -\infty
\frac{1}{ @ 1
)( @ (
3.14 @ \pi
-1 \pm \sqrt{19} @ 1 \pm \sqrt{19}
6+5i @ 6-5i
"""

HUGE = [
    "9^{9^{9}}",
    "9^{9^{9^9}}",
    "((9^{999})^{999})^{999}",
    "99999999!",
    "10^{1000000000}",
    "9" * 5000,
    "(" * 900 + "1" + ")" * 900,
    r"\frac{1}{" * 100 + "1" + "}" * 100,
]


def pairs(table):
    """Lines ``predicted @ reference`` as parameters."""
    lines = [line.partition("@") for line in table.strip().splitlines()]
    return [(predicted.strip(), reference.strip()) for predicted, _, reference in lines]


@pytest.mark.parametrize(("predicted", "reference"), pairs(EQUAL))
def test_another_way_of_writing_the_answer_is_accepted(predicted, reference):
    assert equivalent(predicted, reference)


@pytest.mark.parametrize(("predicted", "reference"), pairs(DIFFERENT))
def test_another_answer_is_refused(predicted, reference):
    assert not equivalent(predicted, reference)


@pytest.mark.parametrize("predicted", HUGE, ids=range(len(HUGE)))
def test_an_answer_too_large_to_write_out_is_refused_at_once(predicted):
    equivalent("x", "y")  # the import of the parser does not count
    clock = time.process_time()
    assert not equivalent(predicted, "2")
    assert time.process_time() - clock < 5.0


def test_an_answer_of_thousands_of_characters_equals_itself():
    assert math_reward("", rf"\boxed{{{'9' * 5000}}}", "9" * 5000) == 1.0


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        (r"so \boxed{5}", 1.0),
        (r"so \boxed{5}, that is \boxed{5.0}", 1.0),
        (r"so \boxed{4}, no, \boxed{5}", 0.0),
        (r"so \boxed{5}, no, \boxed{4}", 0.0),
        (r"so 5", 0.0),
        (r"so \boxed{}", 0.0),
        (r"so \boxed{5", 0.0),
        (r"so \boxed{5} and \boxed{\frac{1}{2}", 0.0),
        (r"<think>\boxed{4}?</think>so \boxed{5}", 1.0),
        (r"<think>\boxed{5}</think>so 5", 0.0),
        (r"so \boxed {5}", 1.0),
        (r"so \fbox{5}", 1.0),
        (r"so \boxed{\boxed{5}}", 1.0),
        (r"so \boxed{\{5\}}", 1.0),
        ("", 0.0),
    ],
)
def test_the_box_decides(response, reward):
    assert math_reward("", response, "5") == reward


def test_every_answer_of_math_500_equals_itself(math500):
    missed = [a for a in math500 if math_reward("", rf"So it is \boxed{{{a}}}.", a) != 1.0]
    assert missed == []


RESTYLED = {
    "other fractions": lambda a: a.replace(r"\frac", r"\dfrac"),
    "no spacing": lambda a: a.replace(", ", ",").replace(" + ", "+").replace(r"\!", ""),
    "no \\left": lambda a: a.replace(r"\left", "").replace(r"\right", ""),
    "dollars": lambda a: f"${a}$",
    "no degrees": lambda a: a.replace(r"^\circ", ""),
    "a full stop": lambda a: a + ".",
}


@pytest.mark.parametrize("restyle", RESTYLED.values(), ids=RESTYLED.keys())
def test_every_answer_of_math_500_equals_itself_in_another_style(math500, restyle):
    missed = [a for a in math500 if math_reward("", rf"\boxed{{{restyle(a)}}}", a) != 1.0]
    assert missed == []


def plus_one(answer):
    """The answer and one more."""
    return str(int(answer) + 1) if re.fullmatch(r"-?\d+", answer) else f"{answer}+1"


def flipped(answer):
    """The answer with the other sign."""
    return answer[1:] if answer.startswith("-") else f"-{answer}"


def swapped(answer):
    """The answer with numerators and denominators swapped."""
    part = r"(\{[^{}]*\}|\d)"
    return re.sub(rf"(\\d?frac)\s*{part}\s*{part}", r"\1\3\2", answer)


PERTURBED = {
    "plus one": lambda a: rf"\boxed{{{plus_one(a)}}}",
    "other sign": lambda a: rf"\boxed{{{flipped(a)}}}",
    "swapped": lambda a: rf"\boxed{{{swapped(a)}}}" if swapped(a) != a else "",
    "no box": lambda a: f"The answer is ${a}$.",
    "wrong box first": lambda a: rf"\boxed{{{plus_one(a)}}} \boxed{{{a}}}",
    "wrong box last": lambda a: rf"\boxed{{{a}}} \boxed{{{plus_one(a)}}}",
    "other digit": lambda a: (
        rf"\boxed{{{re.sub(r'[0-8]', lambda m: str(int(m[0]) + 1), a, count=1)}}}"
        if re.search("[0-8]", a)
        else ""
    ),
}
TRULY_EQUAL = {("other sign", "0")}


@pytest.mark.parametrize("name", PERTURBED)
def test_math_500_made_wrong_is_refused(math500, name):
    taken = {a for a in math500 if math_reward("", PERTURBED[name](a), a)}
    assert {(name, a) for a in taken} <= TRULY_EQUAL


def test_the_answer_to_another_problem_is_refused(math500):
    shifts = (1, 7, 31)
    taken = {
        (other, a)
        for k in shifts
        for a, other in zip(math500, math500[k:] + math500[:k], strict=True)
        if other != a and math_reward("", rf"\boxed{{{other}}}", a)
    }
    # 5 for x=5; the others are the same number written twice.
    for other, a in taken - {("5", "x=5"), ("x=5", "5")}:
        assert value(other) == pytest.approx(value(a)), (other, a)


def value(answer):
    r"""The number a simple answer stands for, found another way: as Python arithmetic."""
    answer = re.sub(r"\\d?frac\s*(\{[^{}]*\}|\d)\s*(\{[^{}]*\}|\d)", r"((\1)/(\2))", answer)
    plain = re.sub(r"\\sqrt\s*(\{[^{}]*\}|\d)", r"*(\1)**.5", answer).replace(r"\pi", "*3.14159265")
    plain = re.sub(r"\^\\circ|\\[$!]|\\text\{[^{}]*\}|[,\s]", "", plain)
    plain = plain.replace("{", "(").replace("}", ")").removeprefix("*")
    assert re.fullmatch(r"[\d.()*/+-]+", plain), f"no simple number: {answer}"
    return eval(plain)


def test_it_works_in_threads(math500):
    """math-verify's own time limits reward nothing outside the main thread (verl issue 3407)."""
    hard = [r"\frac{\sqrt{2}}{2}", "(x+1)^2", r"2\sqrt{13}", "2(k+1)"] * 4
    wanted = [r"\frac{1}{\sqrt{2}}", "x^2+2x+1", r"\sqrt{52}", "2k+2"] * 4
    equivalent.cache_clear()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda a, b: math_reward("", rf"\boxed{{{a}}}", b), hard, wanted))
    assert found == [1.0] * 16


def test_plain_numbers_never_reach_the_parser():
    """And the file needs nothing of its package, so that whoever scores imports no torch."""
    program = (
        "import runpy, sys; score = runpy.run_path(sys.argv[1])['math_reward'];"
        r"assert score('', r'\boxed{1{,}024}', '1024') == 1.0;"
        r"assert score('', r'\boxed{0.5}', r'\frac{1}{2}') == 1.0;"
        r"assert score('', r'\boxed{7}', '8') == 0.0;"
        "heavy = {'sympy', 'math_verify', 'torch', 'nanorlhf'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    path = str(Path(math_score.__file__))
    subprocess.run([sys.executable, "-c", program, path], check=True, timeout=60)
