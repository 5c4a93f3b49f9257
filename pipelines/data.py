"""Problems: generated, or read from rows of many shapes, as demonstrations and questions.

A row that lacks a field or holds the wrong kind of value is an error that names the file, the line
and the field; no row is skipped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from arithmetic import ArithmeticConfig, demonstration, problems
from rows import Row, read_rows, text

if TYPE_CHECKING:
    from config import Config, SourceConfig

MARKS = re.compile(r"<<.*?>>")
FINAL = re.compile(r"^#### *(.+?)\s*$", re.MULTILINE)


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


class Demonstration(NamedTuple):
    """A conversation whose last turn is to be imitated."""

    messages: tuple[Message, ...]


class Question(NamedTuple):
    """A problem with its reference answer."""

    problem: str
    answer: str


def demonstrations(config: Config) -> Iterator[Demonstration]:
    """Yield the SFT set of ``config``."""
    source, task = config.data.sft, config.arithmetic
    if source.path == "arithmetic":
        yield from arithmetic_demonstrations(task, seed=config.run.seed, limit=source.limit)
        return
    for row in read_rows(source, config.data, key="data.sft"):
        if source.messages:
            yield Demonstration(conversation(row, source.messages))
        else:
            problem = text(row, source.prompt, key="data.sft.prompt")
            response = text(row, source.response, key="data.sft.response")
            if source.form == "gsm8k":
                response = boxed_solution(response, row.where, field=source.response)
            yield Demonstration((Message("user", problem), Message("assistant", response)))


def questions(config: Config, *, role: str) -> Iterator[Question]:
    """Yield the problems of ``role``, ``rl`` or ``eval``."""
    source: SourceConfig = getattr(config.data, role)
    if source.path == "arithmetic":
        task, seed = config.arithmetic, f"{role}-{config.run.seed}"
        count = task.rl_problems if role == "rl" else task.eval_problems
        drawn = problems(task, seed=seed, held_out=role == "eval", unique=True)
        for problem in islice(drawn, count if source.limit is None else source.limit):
            yield Question(problem.text, problem.answer)
        return
    dropped = {answer.casefold() for answer in source.drop_answers}
    for row in read_rows(source, config.data, key=f"data.{role}"):
        answer = text(row, source.answer, key=f"data.{role}.answer")
        if source.form == "gsm8k":
            answer = final_answer(answer, row.where, field=source.answer)
        if answer.strip().casefold() not in dropped:
            yield Question(text(row, source.prompt, key=f"data.{role}.prompt"), answer)


def arithmetic_demonstrations(
    task: ArithmeticConfig, *, seed: int, limit: int | None
) -> Iterator[Demonstration]:
    """Yield generated demonstrations; how many of them think is spread evenly."""
    drawn = problems(task, seed=f"sft-{seed}", held_out=False, unique=False)
    count = task.sft_examples if limit is None else limit
    for i, problem in enumerate(islice(drawn, count)):
        thinks = int((i + 1) * task.think_fraction) > int(i * task.think_fraction)
        response = demonstration(problem, thinks=thinks)
        yield Demonstration((Message("user", problem.text), Message("assistant", response)))


def conversation(row: Row, column: str) -> tuple[Message, ...]:
    """Return the messages in ``column`` of ``row``; the last must be the assistant's."""
    turns = row.values.get(column)
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{row.where}: field {column!r} is no list of messages")
    for turn in turns:
        if not isinstance(turn, dict) or not all(
            isinstance(turn.get(k), str) for k in Message._fields
        ):
            raise ValueError(f"{row.where}: field {column!r} has a turn without role or content")
    if turns[-1]["role"] != "assistant":
        raise ValueError(f"{row.where}: field {column!r} does not end with an assistant's turn")
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def boxed_solution(solution: str, where: str, *, field: str) -> str:
    r"""Return a GSM8K solution without calculator marks, its last line ``\boxed{72}``.

    >>> boxed_solution("6*2 = <<6*2=12>>12\n#### 12", "row 1", field="answer")
    '6*2 = 12\n\\boxed{12}'
    """
    answer = final_answer(solution, where, field=field)
    return FINAL.sub(lambda _: f"\\boxed{{{answer}}}", MARKS.sub("", solution))


def final_answer(solution: str, where: str, *, field: str) -> str:
    """Return the number after ``####``, without thousands separators."""
    found = FINAL.search(solution)
    if found is None:
        raise ValueError(f"{where}: field {field!r} has no line '#### answer'")
    return found.group(1).replace(",", "")
