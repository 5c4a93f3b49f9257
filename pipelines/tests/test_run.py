import contextlib
import subprocess
import sys

import pytest

from run import ORDER, differences, finished_as_asked, open_run, without_free
from settings import parse_yaml


def config(tmp_path, **changed):
    run = {"name": "demo", "dir": str(tmp_path / "demo"), "fresh": False, "seed": 0}
    return {"run": run | changed, "sft": {"steps": 3}, "log": {"wandb": None}}


def finish(run, *stages):
    for name in stages:
        with run.stage(name):
            pass


def test_a_new_run_saves_its_configuration(tmp_path):
    run = open_run(config(tmp_path))
    assert run.created
    saved = parse_yaml((run.folder / "config.yaml").read_text(), where="saved")
    assert saved == config(tmp_path)
    run.close()


def test_finished_stages_and_their_seconds_are_there_again(tmp_path):
    run = open_run(config(tmp_path))
    finish(run, "prepare_sft")
    run.close()
    again = open_run(config(tmp_path))
    assert again.is_finished("prepare_sft")
    assert not again.is_finished("sft")
    assert not again.created
    again.close()


def test_an_interrupted_stage_is_not_finished_and_its_time_adds_up(tmp_path):
    run = open_run(config(tmp_path))
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt), run.stage("sft"):
            run._since -= 10.0  # ten seconds have passed
            raise KeyboardInterrupt
    assert not run.is_finished("sft")
    assert run.seconds()["sft"] == pytest.approx(20.0, abs=1.0)
    run.close()


def test_a_tick_saves_the_time_of_a_stage_that_is_then_killed(tmp_path):
    run = open_run(config(tmp_path))
    with run.stage("sft"):
        run._since -= 10.0
        run._written -= 10.0
        run.tick("sft")
        state = (run.folder / "state.json").read_text()
    assert parse_yaml(state, where="state")["stages"]["sft"]["seconds"] >= 10.0
    run.close()


def test_another_configuration_is_refused_naming_the_keys_and_both_values(tmp_path):
    run = open_run(config(tmp_path))
    finish(run, "prepare_sft")
    run.close()
    other = config(tmp_path, seed=1) | {"sft": {"steps": 4}}
    with pytest.raises(ValueError, match="has another configuration") as caught:
        open_run(other)
    assert "run.seed was 0, is 1; sft.steps was 3, is 4" in str(caught.value)
    assert "run.fresh=true" in str(caught.value)


def test_another_configuration_may_replace_one_that_made_nothing(tmp_path):
    run = open_run(config(tmp_path))
    with pytest.raises(ValueError, match="no such file"), run.stage("prepare_sft"):
        raise ValueError("no such file")
    run.close()
    again = open_run(config(tmp_path, seed=1))
    assert again.state["stages"] == {}
    again.close()


def test_free_keys_may_differ(tmp_path):
    run = open_run(config(tmp_path))
    finish(run, "prepare_sft")
    run.close()
    again = open_run(config(tmp_path) | {"log": {"wandb": "project"}})
    assert again.is_finished("prepare_sft")
    again.close()


def test_fresh_starts_over(tmp_path):
    run = open_run(config(tmp_path))
    finish(run, "prepare_sft")
    (run.folder / "sft").mkdir()
    (run.folder / "metrics.jsonl").write_text("{}\n")
    run.close()
    again = open_run(config(tmp_path, fresh=True) | {"sft": {"steps": 9}})
    assert sorted(p.name for p in again.folder.iterdir()) == ["config.yaml", "lock", "state.json"]
    assert not again.is_finished("prepare_sft")
    again.close()


def test_a_clearing_cut_short_is_done_again(tmp_path):
    run = open_run(config(tmp_path))
    finish(run, "prepare_sft")
    (run.folder / "state.json").write_text('{"clearing": true}')
    (run.folder / "leftover").write_text("old")
    run.close()
    again = open_run(config(tmp_path, seed=5))
    assert not (again.folder / "leftover").exists()
    again.close()


def test_a_run_killed_while_it_was_made_can_be_made(tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "lock").write_text("1")
    (folder / "state.json.tmp").write_text("{")
    open_run(config(tmp_path)).close()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is no run and not empty"):
        open_run(config(tmp_path, fresh=True))
    assert [p.name for p in (tmp_path / "demo").iterdir()] == ["thesis.tex"]


def test_discard_leaves_nothing(tmp_path):
    run = open_run(config(tmp_path))
    run.discard()
    assert not run.folder.exists()


HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from disk import acquire
from pathlib import Path
lock = acquire(Path(sys.argv[2]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, pipelines):
    folder = tmp_path / "demo"
    command = [sys.executable, "-c", HOLD, str(pipelines), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(ValueError, match=f"is in use by process {holder.pid}"):
                open_run(config(tmp_path))
        finally:
            holder.kill()
    open_run(config(tmp_path)).close()


def test_differences_ignore_free_keys():
    old = {"run": {"dir": "a", "seed": 0}, "data": {"root": "x"}, "log": {"samples": 1}}
    new = {"run": {"dir": "b", "seed": 0}, "data": {"root": "y"}, "log": {"samples": 2}}
    assert differences(old, new) == []


def test_only_a_complete_run_of_the_same_words_is_finished_as_asked(tmp_path):
    asked = config(tmp_path)
    assert not finished_as_asked(asked)
    run = open_run(asked)
    run.state["asked"] = without_free(asked)
    finish(run, *ORDER)
    run.close()
    assert not finished_as_asked(asked)  # the result is not written yet
    (run.folder / "result.json").write_text("{}")
    assert finished_as_asked(asked)
    assert not finished_as_asked(config(tmp_path, fresh=True))
    assert not finished_as_asked(asked | {"sft": {"steps": 4}})
