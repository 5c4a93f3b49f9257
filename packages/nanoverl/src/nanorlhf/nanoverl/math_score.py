r"""Whether the boxed answer of a response equals the reference answer.

The last ``\boxed{...}`` is taken apart by what it is (lists, sets, intervals, tuples, matrices),
and its parts are compared: as strings, then as exact rational numbers, and only then by
math-verify, which parses LaTeX into SymPy. So most answers cost microseconds, and a list is never
mistaken for a number.

math-verify's own time limits use a signal that only a process's main thread may handle, and
elsewhere reward nothing without a word. They are switched off here: what takes too long is the
business of the process that this runs in, see `nanoverl.rewards`.

This file is longer than its neighbours because it imports nothing of its package: the processes
that score load it alone.
"""

import functools
import logging
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

MAX_CHARS = 1000
"""Longer answers are compared as strings only."""
MAX_EXPONENT = 100_000
"""Answers with larger powers are compared as strings only: SymPy would write out the number."""

_PARSER = threading.Lock()  # antlr's prediction tables are shared by all parsers of a process


def math_reward(prompt: str, response: str, answer: str, **row: object) -> float:
    r"""Return 1.0 when the boxed answer of ``response`` equals ``answer``, else 0.0.

    Only what follows the last ``</think>`` counts. A response without a box, with an unfinished
    box or with boxes that differ earns nothing.

    >>> math_reward("What is half of one?", r"So it is $\boxed{\frac12}$.", "0.5")
    1.0
    >>> math_reward("What is half of one?", r"\boxed{1} or \boxed{2}?", "0.5")
    0.0
    """
    boxes = boxed(response.rpartition("</think>")[2])
    if not boxes or not all(equivalent(box, boxes[-1]) for box in set(boxes[:-1])):
        return 0.0
    return float(equivalent(boxes[-1], answer))


def prepare() -> None:
    """Import the parser, once for all processes that are forked from this one."""
    _math_verify()


def boxed(text: str) -> list[str]:
    r"""Return the contents of every ``\boxed{...}``; nothing when one is unfinished.

    >>> boxed(r"\boxed{1}, that is \boxed{\frac{2}{2}}")
    ['1', '\\frac{2}{2}']
    """
    found, at = [], 0
    while match := _BOX.search(text, at):
        end = _closing(text, match.end())
        if end is None:
            return []
        found.append(text[match.end() : end].strip())
        at = end
    return found


_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")


def _closing(text: str, start: int) -> int | None:
    """Return where the brace that was opened before ``start`` is closed."""
    depth = 1
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return brace.start()
    return None


@functools.lru_cache(maxsize=1 << 14)
def equivalent(predicted: str, reference: str) -> bool:
    r"""Return whether two answers, LaTeX or plain, mean the same.

    >>> equivalent(r"x = \tfrac{3}{2}", "1.5"), equivalent("(1, 2)", "(2, 1)")
    (True, False)
    """
    if predicted == reference or max(len(predicted), len(reference)) > MAX_CHARS:
        return predicted == reference != ""
    a, b = normalize(predicted), normalize(reference)
    return bool(a) and bool(b) and _same(a, b)


_WORDS = (
    r"mm|cm|km|ft|inch(?:es)?|foot|feet|yards?|miles?|met(?:er|re)s?|units?|degrees?|deg|dollars?|"
    r"cents?|percent|hours?|minutes?|seconds?|days?|weeks?|months?|years?|kg|grams?|pounds?|lbs?|"
    r"lit(?:er|re)s?|mph"
)
_COMMAND = r"(?:text(?:bf|it|rm|normal|sf|tt)?|mbox|hbox|math(?:rm|bf|it|sf|tt)|operatorname)"
_REWRITES: Sequence[tuple[str, str | Callable[[re.Match[str]], str]]] = (
    # What is not seen on paper.
    (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-zA-Z])", ""),
    (r"(?<!\\)\\[!,;:>]|\\q?quad(?![a-zA-Z])", ""),
    (r"(?<!\\)\\\s|~|\s+", " "),
    (r"\\\(|\\\)|(?<!\\)\\\[|(?<!\\)\\\]", ""),
    (r"(?<!\\)\{\s*,\s*\}", ","),
    # Money, percent, degrees: the number is the answer.
    (r"\\?\$|\\?%|\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])", ""),
    (r"(?<=.)\.\s*$", ""),
    # Words between answers, units behind them, and what is left of text.
    (rf"\\{_COMMAND}\s*\{{\s*(?:and|or)\s*\}}|(?<=\s)(?:and|or)(?=\s)", ","),
    (rf"(?<=[\w}})\]])\s*\\{_COMMAND}\s*\{{[^{{}}]*\}}\s*(?:\^\s*\{{?\d\}}?)?\s*$", ""),
    (rf"\\{_COMMAND}\s*\{{([^{{}}]*)\}}", r"\1"),
    (
        rf"(?<=[\d}}])\s*(?:(?:square|cubic|sq|cu)\.? )?(?:{_WORDS})\.?(?:\s*\^\s*\{{?\d\}}?)?\s*$",
        "",
    ),
    # One way of writing each thing.
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\leq(?:slant)?(?![a-zA-Z])|<=", r"\\le "),
    (r"\\geq(?:slant)?(?![a-zA-Z])|>=", r"\\ge "),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"),
    (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\\(?:cdot|times)(?![a-zA-Z])\s*(?=\d)", r"\\cdot "),
    (r"\b(\d+) (\d+)/(\d+)\b", r"\1\\frac{\2}{\3}"),
    (r"\\frac\s*(\w|\\pi)\s*(?=[\w{\\])", r"\\frac{\1}"),
    (r"(\\frac\s*\{[^{}]*\})\s*(\w|\\pi)", r"\1{\2}"),
    (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
    (r"(\\[a-zA-Z]+) (?=[a-zA-Z])|(?<=\d) (?=\d)", lambda m: (m[1] or "") + "\0"),
    (r" ", ""),
    (r"\0", " "),
    (r"([_^])\{(\w)\}", r"\1\2"),
    (r"(?<!\d)\.(?=\d)", "0."),
    (r"(?<![\w})])\+(?=\\infty)", ""),
    (r"^((?:[a-zA-Z]=)?-?\d{1,3}(?:,\d{3})+)(?=(?:\.\d+)?$)", lambda m: m[1].replace(",", "")),
)
_COMPILED = [(re.compile(pattern), to) for pattern, to in _REWRITES]
_CHARACTERS = str.maketrans(
    {
        "\u2212": "-",
        "\u2013": "-",
        "\u00b0": "",
        "\u00d7": r"\times ",
        "\u00b7": r"\cdot ",
        "\u03c0": r"\pi ",
        "\u221e": r"\infty ",
        "\u2264": r"\le ",
        "\u2265": r"\ge ",
        "\u222a": r"\cup ",
        "\u00b1": r"\pm ",
        "\u20ac": "",
    }
)


def normalize(answer: str) -> str:
    r"""Return ``answer`` without what does not change its meaning: spacing, units, markup.

    >>> normalize(r"\$32,\!348"), normalize(r"\dfrac 59 \text{ cm}^2"), normalize(r"90^\circ")
    ('32348', '\\frac{5}{9}', '90')
    """
    answer = answer.strip()
    if _BOX.match(answer) and answer.endswith("}") and len(inner := boxed(answer)) == 1:
        return normalize(inner[0])
    answer = answer.translate(_CHARACTERS)
    for pattern, replacement in _COMPILED:
        answer = pattern.sub(replacement, answer)
    return answer


class _Group(NamedTuple):
    """An answer of several parts."""

    kind: str
    """Its brackets where their order matters, e.g. ``(]``; empty for a set or a list."""
    parts: list[str]


def _same(a: str, b: str) -> bool:
    """Compare two normalised answers."""
    if a == b:
        return True
    for split in (_union, _rows):
        left, right = split(a), split(b)
        if len(left) > 1 or len(right) > 1:
            return _match(left, right, ordered=split is _rows)
    left_group, right_group = _group(a), _group(b)
    if left_group.kind != right_group.kind:
        return bool(_INEQUALITY.search(a + b)) and _verify(a, b)
    if left_group.parts == [a] and right_group.parts == [b]:
        return _same_single(a, b)
    return _match(left_group.parts, right_group.parts, ordered=bool(left_group.kind))


def _match(a: Sequence[str], b: Sequence[str], *, ordered: bool) -> bool:
    """Return whether the parts of two answers pair up."""
    if len(a) != len(b):
        return False
    if ordered:
        return all(_same(x, y) for x, y in zip(a, b, strict=True))
    rest = list(b)
    for part in a:
        found = next((i for i, other in enumerate(rest) if _same(part, other)), None)
        if found is None:
            return False
        del rest[found]
    return True


_INEQUALITY = re.compile(r"<|>|\\[lg]e(?![a-zA-Z])")
_BRACKET = re.compile(r"\\[{}]|[()\[\]{}]")


def _cut(text: str, separator: str) -> list[str]:
    """Return ``text`` cut at each ``separator`` that stands in no bracket."""
    depth, at, cuts = 0, 0, [-len(separator)]
    while at < len(text):
        bracket = _BRACKET.match(text, at)
        if bracket:
            depth += 1 if bracket.group()[-1] in "([{" else -1
            at = bracket.end()
        elif depth == 0 and text.startswith(separator, at):
            cuts.append(at)
            at += len(separator)
        else:
            at += 1
    cuts.append(len(text))
    return [text[i + len(separator) : j] for i, j in pairwise(cuts)]


def _union(text: str) -> list[str]:
    return [part.strip() for part in _cut(_without_name(text), r"\cup")]


def _rows(text: str) -> list[str]:
    """Return the entries of a matrix, row by row, with its shape before them."""
    found = re.fullmatch(r"\\begin\{([a-zA-Z]*matrix)\}(.*)\\end\{\1\}", _without_name(text))
    if not found:
        return [text]
    rows = [row.split("&") for row in re.sub(r"\\\\$", "", found[2]).split(r"\\")]
    return [str([len(row) for row in rows]), *(entry for row in rows for entry in row)]


def _group(text: str) -> _Group:
    """Return the parts of a list, set, tuple or interval; a single answer is a list of one."""
    parts = [both for part in _cut(text, ",") for both in _plus_minus(part)]
    if len(parts) > 1:
        return _Group("", parts)
    inner = _inside(_without_name(text))
    if inner is None:
        return _Group("", [text])
    if inner.kind == r"\{\}":
        return _Group("", [both for part in inner.parts for both in _plus_minus(part)])
    if inner.kind == "()" and len(inner.parts) == 1:
        return _group(inner.parts[0])
    return inner


def _inside(text: str) -> _Group | None:
    """Return what the bracket around all of ``text`` holds, None where there is no such bracket."""
    opening = re.match(r"\\\{|[(\[]", text)
    closing = re.search(r"(?:\\\}|[)\]])$", text)
    if not opening or not closing:
        return None
    depth = 0
    for bracket in _BRACKET.finditer(text):
        depth += 1 if bracket.group()[-1] in "([{" else -1
        if depth == 0 and bracket.end() < len(text):
            return None
    body = text[opening.end() : closing.start()]
    return _Group(opening.group() + closing.group(), _cut(body, ","))


def _plus_minus(part: str) -> list[str]:
    r"""Return both values of an expression with one ``\pm``."""
    sides = _cut(part, r"\pm")
    if len(sides) != 2:
        return [part]
    before, after = sides
    return [f"{before}+{after}" if before else after.strip(), f"{before}-{after}"]


_NAME = re.compile(r"([a-zA-Z](?:_\w)?(?:\([a-zA-Z]\))?|\\[a-z]+) ?(?:=|\\in(?![a-zA-Z]) ?)")


def _without_name(text: str) -> str:
    """Return what is said of a variable, ``5`` for ``x=5`` or ``x=2+3=5``; else ``text``."""
    name = _NAME.match(text)
    return text[name.end() :].rpartition("=")[2] if name else text


def _same_single(a: str, b: str) -> bool:
    """Compare two answers of one part each."""
    bare = _without_name(a), _without_name(b)
    named = bare[0] != a, bare[1] != b
    if all(named):
        names = [match[1] for match in (_NAME.match(a), _NAME.match(b)) if match]
        return names[0] == names[1] and _same(*bare)
    equations = "=" in a, "=" in b
    if any(named) and not all(equations):
        return _same(*bare)
    if any(equations):
        return all(equations) and _verify(a, b)
    numbers = _rational(a), _rational(b)
    if numbers[0] and numbers[1]:
        return _same_number(numbers[0], numbers[1])
    if any(re.fullmatch(r"[a-zA-Z'-]{3,}", text) for text in (a, b)):
        return a.casefold() == b.casefold()
    # 52_8 is a numeral in base 8, which only another writing of it equals; "3 5" is no number.
    return not re.search(r"\d_|\d \d", f"{a},{b}") and _verify(a, b)


class _Number(NamedTuple):
    value: Fraction
    decimals: int | None
    """Digits after the point, None where there is no point."""


_DECIMAL = r"\d+(?:\.\d+)?"
_NUMBER = re.compile(
    rf"([+-]?)(?:(?P<n>{_DECIMAL})(?:/(?P<d>{_DECIMAL}))?"
    rf"|(?P<whole>\d*)\\frac\{{(?P<fn>-?{_DECIMAL})\}}\{{(?P<fd>-?{_DECIMAL})\}})"
)


def _rational(text: str) -> _Number | None:
    """Return a number written out as integer, decimal, fraction or mixed number."""
    found = _NUMBER.fullmatch(text)
    if not found:
        return None
    top, bottom = Fraction(found["n"] or found["fn"]), Fraction(found["d"] or found["fd"] or 1)
    if bottom == 0 or (found["whole"] and (top < 0 or bottom < 0)):
        return None
    value = int(found["whole"] or 0) + top / bottom
    point = (found["n"] or "").partition(".")[2] if not found["d"] else ""
    return _Number(-value if found[1] == "-" else value, len(point) or None)


def _same_number(predicted: _Number, reference: _Number) -> bool:
    """Compare exactly; a decimal may be a fraction without end, rounded to four digits or more."""
    if predicted.value == reference.value:
        return True
    ends = reference.value.denominator
    for prime in (2, 5):
        while ends % prime == 0:
            ends //= prime
    if ends == 1 or predicted.decimals is None:
        return False
    digits = abs(predicted.value) * 10**predicted.decimals
    return digits >= 1000 and round(reference.value, predicted.decimals) == predicted.value


def _is_huge(text: str) -> bool:
    """Return whether SymPy might write out more digits than memory holds."""
    if re.search(r"\^(?:\{[^{}]*\^|\w\^)|\d{4,}!|!!|\d{100}", text):
        return True
    powers = [int(n) for n in re.findall(r"\^\{?-?(\d{1,9})", text)]
    stacked = [int(n) for n in re.findall(r"[)}\]]\^\{?-?(\d{1,9})", text)]
    size = max(powers, default=1)
    for power in stacked:
        size *= max(power, 1)
    return size > MAX_EXPONENT


class _Verifier(NamedTuple):
    parse: Callable[..., list[object]]
    verify: Callable[..., bool]
    config: Sequence[object]


@functools.cache
def _math_verify() -> _Verifier:
    """Import math-verify on first use: SymPy takes seconds."""
    from math_verify import LatexExtractionConfig, parse, verify  # type: ignore[import-untyped]

    # It warns on every start that it has no time limit, which is what is wanted here.
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
    config = LatexExtractionConfig()
    # Its own way with units drops the ``t`` of ``2 t``; boxes are open by now.
    plain = replace(config.normalization_config, units=False, boxed="none")
    return _Verifier(parse, verify, (LatexExtractionConfig(normalization_config=plain),))


def _verify(a: str, b: str) -> bool:
    """Compare two expressions, equations or inequalities as SymPy objects."""
    if _is_huge(a) or _is_huge(b):
        return False
    with _PARSER:
        engine = _math_verify()
        predicted, reference = (
            engine.parse(
                f"${text}$",
                extraction_config=engine.config,
                fallback_mode="no_fallback",
                parsing_timeout=None,
            )
            for text in (a, b)
        )
        return engine.verify(
            reference, predicted, timeout_seconds=None, allow_set_relation_comp=True
        )
