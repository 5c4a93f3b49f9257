import json
import os
import signal
import subprocess
import sys

import pytest

import command
from prepare import PREPARE_RL, PREPARE_SFT
from run import ORDER
from stage import Stage

SMALL = ["arithmetic.sft_examples=64", "arithmetic.eval_problems=8", "data.valid_rows=8"]


@pytest.fixture(autouse=True)
def _signals():
    """Give the test runner its own handler back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def stage(name, work, *, needs=()):
    return Stage(name=name, needs=needs, work=lambda run, config: work())


def error_of(stages, words, capsys):
    """Return the one line that a refused command prints."""
    assert command.main(stages, words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1, printed
    return printed


def test_a_typo_names_the_nearest_key_and_makes_nothing(tmp_path, capsys):
    line = error_of([PREPARE_SFT], ["rl.rollout.temprature=1"], capsys)
    assert "unknown key rl.rollout.temprature" in line
    assert "nearest: rl.rollout.temperature" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "none.yaml"], "config='none.yaml' is not a file"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["sft.steps=many"], "sft.steps='many' is of type str; wanted int"),
        (["rl.rollout.top_p=2"], "rl.rollout: top_p=2.0 is outside"),
        (["data.eval.path=x.jsonl"], "data.eval.path='x.jsonl': no file x.jsonl"),
        (["model.path=/nowhere/model"], "model.path='/nowhere/model' is neither a folder"),
        (["tokenizer.vocab_size=9"], "tokenizer.vocab_size=9; wanted at least"),
        (["data.valid_rows=99"], "gives 64 demonstrations"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_no_folder(tmp_path, capsys, words, message):
    assert message in error_of([PREPARE_SFT], [*SMALL, *words], capsys)
    assert not (tmp_path / "runs" / "arithmetic-seed0").exists()


def test_a_model_folder_without_weights_is_refused(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    line = error_of([PREPARE_SFT], [*SMALL, "model.path=model"], capsys)
    assert "model.path='model' holds no *.safetensors" in line


def test_a_malformed_row_is_named_and_the_corrected_file_is_taken(tmp_path, capsys):
    good = json.dumps({"problem": "1+1=", "solution": "\\boxed{2}"})
    (tmp_path / "set.jsonl").write_text(f"{good}\n{{}}\n")
    words = [*SMALL, "data.sft.path=set.jsonl", "run.dir=here"]
    line = error_of([PREPARE_SFT], words, capsys)
    assert "set.jsonl:2: field 'problem' is missing" in line
    assert not (tmp_path / "here").exists()


def test_ctrl_c_says_how_to_go_on_and_keeps_what_is_done(tmp_path, capsys):
    def interrupt():
        raise KeyboardInterrupt

    stages = [stage("prepare_sft", lambda: None), stage("sft", interrupt)]
    assert command.main(stages, ["run.dir=here"]) == 130
    assert "go on from the last checkpoint" in capsys.readouterr().err
    ran = []
    stages = [stage("prepare_sft", lambda: ran.append(1)), stage("sft", lambda: ran.append(2))]
    assert command.main(stages, ["run.dir=here"]) == 0
    assert ran == [2]


def test_a_bug_keeps_its_traceback(tmp_path):
    def bug():
        raise ZeroDivisionError("division by zero")

    with pytest.raises(ZeroDivisionError):
        command.main([stage("prepare_sft", bug)], ["run.dir=here"])


def test_traceback_shows_where_an_explained_error_comes_from():
    def wrong():
        raise ValueError("x=1; wanted 2")

    with pytest.raises(ValueError, match="x=1"):
        command.main([stage("prepare_sft", wrong)], ["run.dir=here", "--traceback"])


def test_a_stage_whose_inputs_are_missing_names_them(capsys):
    line = error_of([stage("sft", lambda: None, needs=("prepare_sft",))], ["run.dir=here"], capsys)
    assert "stage sft needs prepare_sft, which has not finished in here" in line


def test_a_script_of_two_stages_does_the_one_whose_inputs_are_there():
    ran = []
    first = stage("merge_sft", lambda: ran.append("sft"))
    second = stage("merge_rl", lambda: ran.append("rl"), needs=("rl",))
    assert command.main([first, second], ["run.dir=here"]) == 0
    assert ran == ["sft"]


def test_dry_run_prints_the_resolved_configuration_and_makes_nothing(tmp_path, capsys):
    assert command.main([], ["--dry-run", "run.seed=3", "sft.optim.lr=5e-6"]) == 0
    printed = capsys.readouterr().out
    assert "name: arithmetic-seed3" in printed
    assert "lr: 5.0e-06" in printed
    assert list(tmp_path.iterdir()) == []


def test_help_lists_every_section(capsys):
    assert command.main([], ["--help"]) == 0
    printed = capsys.readouterr().out
    for key in ("run.fresh: bool = false", "rl.algo.kl.coef: float", "data.root:", "usage:"):
        assert key in printed


@pytest.fixture
def finished(tmp_path, pipelines):
    """Return the command that shows a finished run, and an environment without torch."""
    words = [f"run.dir={tmp_path / 'here'}"]
    assert command.main([stage(name, lambda: None) for name in ORDER[:-1]], words) == 0
    state = tmp_path / "here" / "state.json"
    told = json.loads(state.read_text())
    told["stages"][ORDER[-1]] = {"seconds": 1.0, "finished": True}
    state.write_text(json.dumps(told))
    scores = {"accuracy_greedy": 0.5, "accuracy_sampled": 0.25, "response_tokens": 12.5}
    seconds = dict.fromkeys(ORDER, 1.5)
    result = {"sft": scores, "rl": scores, "seconds": seconds, "seed": 0, "config": {}}
    (tmp_path / "here" / "result.json").write_text(json.dumps(result))
    (tmp_path / "torch.py").write_text("raise ImportError('a finished run needs no torch')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    return [sys.executable, str(pipelines / "rl.py"), *words], environment


def test_a_finished_run_prints_its_table_at_once_without_torch(finished):
    words, environment = finished
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "after SFT" in done.stdout
    assert "25.0%" in done.stdout
    assert "12.0" in done.stdout  # eight stages of 1.5 s


@pytest.mark.parametrize("buffers", ["0", ""])
def test_a_reader_that_has_left_is_no_error(finished, buffers):
    words, environment = finished
    environment["PYTHONUNBUFFERED"] = buffers  # empty: nothing is written before the end
    ours, theirs = os.pipe()
    os.close(ours)  # as `head` does when it has its lines
    pipe = subprocess.PIPE
    with open(theirs, "w") as output:
        done = subprocess.run(
            words, env=environment, stdout=output, stderr=pipe, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("script", ["prepare", "sft", "merge", "rl", "evaluate"])
def test_every_script_refuses_a_missing_config_with_exit_code_2(pipelines, script):
    done = subprocess.run(
        [sys.executable, str(pipelines / f"{script}.py"), "--config", "none.yaml"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: config='none.yaml' is not a file; give one with --config PATH\n"


def test_prepare_again_is_not_done_again(tmp_path, capsys):
    words = [*SMALL, "run.dir=here", "arithmetic.rl_problems=16"]
    assert command.main([PREPARE_SFT, PREPARE_RL], words) == 0
    before = (tmp_path / "here" / "data" / "sft.nano").stat().st_mtime_ns
    assert command.main([PREPARE_SFT, PREPARE_RL], words) == 0
    assert "prepare_sft: finished before" in capsys.readouterr().out
    assert (tmp_path / "here" / "data" / "sft.nano").stat().st_mtime_ns == before


def test_a_stage_that_prints_to_nobody_ends_quietly(tmp_path, capsys):
    ours, theirs = os.pipe()
    os.close(ours)
    before = os.dup(1)
    os.dup2(theirs, 1)
    try:
        work = [stage(ORDER[0], lambda: os.write(1, b"a line"))]
        assert command.main(work, [f"run.dir={tmp_path / 'here'}"]) == 141
    finally:
        os.dup2(before, 1)
        os.close(before)
        os.close(theirs)
    assert not capsys.readouterr().err


def test_a_pipe_that_breaks_elsewhere_is_a_bug_with_its_traceback(tmp_path):
    def work():
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        command.main([stage(ORDER[0], work)], [f"run.dir={tmp_path / 'here'}"])
