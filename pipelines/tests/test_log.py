import json

import pytest

from log import JsonLines, Log, read_lines


class Quiet:
    wandb = None
    samples = 2


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def open_log(folder, *, stage="rl", start=0):
    return Log(folder, stage=stage, start=start, config=Quiet(), settings={})


def test_each_step_is_a_line_and_samples_are_limited(tmp_path):
    with open_log(tmp_path) as log:
        log.write(1, {"reward/mean": 0.5}, [{"reward": float(i)} for i in range(5)])
    assert lines(tmp_path / "metrics.jsonl") == [{"stage": "rl", "step": 1, "reward/mean": 0.5}]
    assert lines(tmp_path / "samples.jsonl") == [
        {"stage": "rl", "step": 1, "reward": 0.0},
        {"stage": "rl", "step": 1, "reward": 1.0},
    ]


def test_a_line_is_readable_before_the_next_one_is_written(tmp_path):
    with open_log(tmp_path) as log:
        log.write(1, {"loss": 1.0}, [])
        assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1]


@pytest.mark.parametrize("torn", ["", '{"stage": "rl", "st', '{"stage": "rl", "step": 9}'])
def test_a_resumed_stage_has_neither_gap_nor_double(tmp_path, torn):
    with open_log(tmp_path, stage="sft") as log:
        for step in (1, 2):
            log.write(step, {}, [])
    with open_log(tmp_path) as log:
        for step in range(1, 8):
            log.write(step, {"attempt": 1.0}, [{}])
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write(torn)  # the process was killed inside this line
    with open_log(tmp_path, start=5) as log:
        for step in range(6, 10):
            log.write(step, {"attempt": 2.0}, [{}])
    written = [(line["stage"], line["step"]) for line in lines(tmp_path / "metrics.jsonl")]
    assert written == [("sft", 1), ("sft", 2), *(("rl", step) for step in range(1, 10))]
    assert [line["attempt"] for line in lines(tmp_path / "metrics.jsonl")[2:]] == [1.0] * 5 + [
        2.0
    ] * 4
    assert [line["step"] for line in lines(tmp_path / "samples.jsonl")] == list(range(1, 10))


def test_rewinding_one_stage_leaves_the_others(tmp_path):
    file = JsonLines(tmp_path / "metrics.jsonl")
    file.append([{"stage": stage, "step": step} for stage in ("sft", "rl") for step in (1, 2, 3)])
    file.rewind("sft", 1)
    file.append([{"stage": "sft", "step": 2}])
    file.close()
    assert [(line["stage"], line["step"]) for line in read_lines(file.path)] == [
        ("sft", 1),
        ("rl", 1),
        ("rl", 2),
        ("rl", 3),
        ("sft", 2),
    ]


def test_a_missing_file_has_no_lines(tmp_path):
    assert list(read_lines(tmp_path / "none.jsonl")) == []
