import json

import pytest
from rich.console import Console

import progress as progress_module
from curves import curve, draw_curves
from log import read_lines
from progress import Progress
from result import print_result
from run import ORDER


def console(*, terminal=False):
    return Console(width=100, force_terminal=terminal, record=True, quiet=False, no_color=True)


def test_without_a_terminal_lines_come_now_and_then_and_the_last_step_always(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    screen = console()
    with Progress("rl", total=100, console=screen) as progress:
        for step in range(1, 101):
            now[0] += 1.0
            progress.update(step, {"reward/mean": step / 100, "time/tokens_per_s": 1234.0})
    printed = screen.export_text().splitlines()
    assert printed[0] == "rl 1/100  reward 0.010  1,234 tok/s  1:39 left"
    assert printed[-1] == "rl 100/100  reward 1.000  1,234 tok/s  0:00 left"
    assert len(printed) == 11


def test_the_time_left_is_that_of_the_resumed_steps_only(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    screen = console()
    with Progress("sft", total=20, start=10, console=screen) as progress:
        now[0] += 5.0
        progress.update(15, {"sft/loss": 0.5})
    assert screen.export_text() == "sft 15/20  loss 0.500  0:05 left\n"


def test_on_a_terminal_there_is_a_bar():
    screen = console(terminal=True)
    with Progress("sft", total=4, console=screen) as progress:
        progress.update(2, {"sft/loss": 0.25})
        progress.bar.refresh()
    assert "2/4 loss 0.250" in screen.export_text()


def test_the_table_shows_both_stages_and_all_times(tmp_path):
    result = {
        "sft": {"accuracy_greedy": 0.5, "accuracy_sampled": 0.25, "response_tokens": 14.75},
        "rl": {"accuracy_greedy": 1.0, "accuracy_sampled": 0.9375, "response_tokens": 23.0},
        "seconds": {name: float(i) for i, name in enumerate(ORDER)},
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    screen = console()
    print_result(tmp_path, console=screen)
    printed = screen.export_text()
    for shown in ("50.0%", "25.0%", "14.8", "100.0%", "93.8%", "23.0", "evaluate_rl", "28.0"):
        assert shown in printed


def test_curves_draw_what_there_is(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    rows = [{"stage": "sft", "step": step, "sft/loss": 1.0 / step} for step in (1, 2, 3)]
    rows += [{"stage": "rl", "step": step, "reward/mean": 0.5} for step in (1, 2)]
    metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    draw_curves(metrics, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert curve(list(read_lines(metrics)), "sft", "sft/loss") == {
        1: 1.0,
        2: 0.5,
        3: pytest.approx(1 / 3),
    }
    assert curve(list(read_lines(metrics)), "rl", "sft/loss") == {}
