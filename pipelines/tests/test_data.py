import json
import os
from pathlib import Path

import pytest

from config import Config, DataConfig, RunConfig, SourceConfig
from data import demonstrations, questions
from nanorlhf.nanoverl import RLConfig, SFTConfig

NUMINA = {
    "problem": "What is $1+1$?",
    "solution": "It is $\\boxed{2}$.",
    "messages": [
        {"role": "user", "content": "What is $1+1$?"},
        {"role": "assistant", "content": "It is $\\boxed{2}$."},
    ],
}
DEEPMATH = {
    "question": "Find $x$ if $2x=8$.",
    "final_answer": "4",
    "difficulty": 1.5,
    "topic": "Algebra",
    "r1_solution_1": "Halve both sides.",
    "r1_solution_2": "Divide.",
    "r1_solution_3": "By sight.",
}
MATH500 = {
    "problem": "Simplify $\\frac{2}{4}$.",
    "solution": "It is $\\boxed{\\frac12}$.",
    "answer": "\\frac{1}{2}",
    "subject": "Prealgebra",
    "level": 1,
    "unique_id": "test/prealgebra/1.json",
}
GSM8K = {
    "question": "How many are 40 dozen?",
    "answer": "40*12 = <<40*12=480>>480\nand <<480+1000=1480>>1,480 in all\n#### 1,480",
}


def config(role, source, root):
    data = DataConfig(root=root, **{role: SourceConfig(**source)})
    run = RunConfig(name="t", dir=Path("t"))
    return Config(run=run, data=data, sft=SFTConfig(), rl=RLConfig())


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )


def asked(tmp_path, source, *rows, role="rl"):
    write(tmp_path / "set.jsonl", *rows)
    return list(questions(config(role, {"path": "set.jsonl"} | source, tmp_path), role=role))


def shown(tmp_path, source, *rows):
    write(tmp_path / "set.jsonl", *rows)
    return list(demonstrations(config("sft", {"path": "set.jsonl"} | source, tmp_path)))


def test_numinamath_by_its_columns_and_by_its_messages_is_the_same(tmp_path):
    by_columns = shown(tmp_path, {}, NUMINA)
    by_messages = shown(tmp_path, {"messages": "messages"}, NUMINA)
    assert by_columns == by_messages
    [(messages,)] = by_columns
    assert [(m.role, m.content) for m in messages] == [
        ("user", NUMINA["problem"]),
        ("assistant", NUMINA["solution"]),
    ]


def test_deepmath_rows_with_a_yes_or_no_are_left_out(tmp_path):
    rows = [DEEPMATH | {"final_answer": a} for a in ("4", "Yes", "no", " TRUE ", "False", "None")]
    source = {"prompt": "question", "answer": "final_answer"}
    drop = {"drop_answers": ("yes", "no", "true", "false")}
    assert [q.answer for q in asked(tmp_path, source | drop, *rows)] == ["4", "None"]
    assert len(asked(tmp_path, source, *rows)) == 6


def test_deepmath_solutions_serve_as_demonstrations(tmp_path):
    source = {"prompt": "question", "response": "r1_solution_2"}
    [(messages,)] = shown(tmp_path, source, DEEPMATH)
    assert messages[-1].content == "Divide."


def test_math500_gives_problem_and_answer(tmp_path):
    [question] = asked(tmp_path, {}, MATH500, role="eval")
    assert question == (MATH500["problem"], MATH500["answer"])


def test_gsm8k_loses_its_marks_and_boxes_its_answer(tmp_path):
    source = {"form": "gsm8k", "prompt": "question", "response": "answer"}
    [(messages,)] = shown(tmp_path, source, GSM8K)
    assert messages[-1].content == "40*12 = 480\nand 1,480 in all\n\\boxed{1480}"
    [question] = asked(tmp_path, source, GSM8K)
    assert question == (GSM8K["question"], "1480")


def test_a_number_is_an_answer_too(tmp_path):
    assert [q.answer for q in asked(tmp_path, {}, MATH500 | {"answer": 7})] == ["7"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", r"set\.jsonl:3: not JSON \("),
        ("[1, 2]", r"set\.jsonl:3: wanted an object of fields, got \[1, 2\]"),
        ({"problem": "x"}, r"set\.jsonl:3: field 'answer' is missing, the row has problem; .*"),
        (MATH500 | {"answer": None}, r"set\.jsonl:3: field 'answer' is of type NoneType"),
        (MATH500 | {"problem": [1]}, r"set\.jsonl:3: field 'problem' is of type list"),
    ],
)
def test_a_malformed_row_names_file_line_and_field(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        asked(tmp_path, {}, MATH500, "", row)  # the empty line counts but is no row


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "no list of messages"),
        ([], "no list of messages"),
        ([{"role": "user"}], "without role or content"),
        ([{"role": "user", "content": "x"}], "does not end with an assistant's turn"),
    ],
)
def test_a_malformed_conversation_is_refused(tmp_path, messages, message):
    with pytest.raises(ValueError, match=rf"set\.jsonl:1: field 'messages' .*{message}"):
        shown(tmp_path, {"messages": "messages"}, NUMINA | {"messages": messages})


def test_a_gsm8k_row_without_a_final_line_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"set\.jsonl:1: field 'answer' has no line '#### answer'"):
        asked(tmp_path, {"form": "gsm8k", "prompt": "question"}, GSM8K | {"answer": "480"})


def test_a_folder_is_read_by_split_and_in_parts(tmp_path, monkeypatch):
    for part in (1, 0):
        write(tmp_path / "math" / f"test-{part}.jsonl", MATH500 | {"answer": str(part)})
    write(tmp_path / "math" / "train.jsonl", MATH500 | {"answer": "no"})
    source = {"path": "math", "split": "test"}
    found = questions(config("eval", source, tmp_path), role="eval")
    assert [q.answer for q in found] == ["0", "1"]
    monkeypatch.setenv("NANORLHF_DATA", str(tmp_path))
    assert len(list(questions(config("eval", source, None), role="eval"))) == 2


def test_limit_takes_from_the_front(tmp_path):
    rows = [MATH500 | {"answer": str(i)} for i in range(5)]
    assert [q.answer for q in asked(tmp_path, {"limit": 2}, *rows)] == ["0", "1"]


@pytest.mark.parametrize("path", ["train.jsonl", "gsm8k/train.jsonl", "gsm8k"])
def test_a_missing_file_names_the_key_the_path_and_the_fix(tmp_path, path):
    with pytest.raises(ValueError, match=rf"data\.rl\.path='{path}': no file .*set data\.root"):
        list(questions(config("rl", {"path": path}, tmp_path), role="rl"))


def test_arithmetic_mixes_both_ways_evenly():
    made = config("sft", {"limit": 100}, None)
    responses = [messages[-1].content for (messages,) in demonstrations(made)]
    assert sum(response.startswith("<think></think>") for response in responses) == 50
    assert sum(response.startswith("<think></think>") for response in responses[:10]) == 5


def test_arithmetic_questions_are_those_of_the_role(tmp_path):
    made = config("rl", {}, None)
    rl = [q.problem for q in questions(made, role="rl")]
    held_out = [q.problem for q in questions(made, role="eval")]
    assert len(set(rl)) == made.arithmetic.rl_problems
    assert len(set(held_out)) == made.arithmetic.eval_problems
    assert set(rl).isdisjoint(held_out)


REAL = Path(os.environ.get("NANORLHF_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data: NANORLHF_DATA names no folder")
def test_every_real_row_of_gsm8k_and_math500_is_read():
    gsm8k = {"path": "gsm8k", "split": "test", "form": "gsm8k", "prompt": "question"}
    found = list(questions(config("eval", gsm8k, REAL), role="eval"))
    assert len(found) == 1319
    assert all(float(question.answer) is not None for question in found)
    math500 = {"path": "math500", "split": "test"}
    assert len(list(questions(config("eval", math500, REAL), role="eval"))) == 500
