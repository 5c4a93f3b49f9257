"""The scripts as a user runs them, with settings small enough for a test."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from run import ORDER

TINY = [
    "arithmetic.sft_examples=256",
    "arithmetic.rl_problems=64",
    "arithmetic.eval_problems=16",
    "data.valid_rows=32",
    "sft.steps=6",
    "sft.batch_size=16",
    "sft.eval_every=3",
    "sft.save_every=2",
    "sft.optim.warmup_steps=2",
    "rl.steps=4",
    "rl.save_every=2",
    "rl.rollout.prompts=8",
    "rl.rollout.max_new_tokens=12",
    "eval.max_new_tokens=12",
]
HERE = ["run.runtime=inprocess", "sft.layout.dp=1", "rl.layout.dp=1"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
REAL = Path(os.environ.get("NANORLHF_DATA", Path(__file__).parents[3] / "shared" / "data"))


def run(script, *words, timeout_s=300):
    return subprocess.run(
        [sys.executable, str(script), *words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_artefacts(folder, *, sft_steps, rl_steps):
    """Everything a finished run must hold, and no step missing or twice."""
    result = json.loads((folder / "result.json").read_text())
    assert set(result) == {"sft", "rl", "seconds", "seed", "config"}
    for of in ("sft", "rl"):
        assert set(result[of]) == {"accuracy_greedy", "accuracy_sampled", "response_tokens"}
        assert 0.0 <= result[of]["accuracy_sampled"] <= 1.0
    assert list(result["seconds"]) == list(ORDER)
    steps = [(line["stage"], line["step"]) for line in read(folder / "metrics.jsonl")]
    wanted = [("sft", i + 1) for i in range(sft_steps)] + [("rl", i + 1) for i in range(rl_steps)]
    assert steps == wanted
    sampled = {line["step"] for line in read(folder / "samples.jsonl")}
    assert sampled == set(range(1, rl_steps + 1))
    assert (folder / "curves.png").stat().st_size > 10_000
    return result


def test_the_whole_stack_runs_and_a_finished_run_prints_its_table(tmp_path, pipelines):
    done = run(pipelines / "rl.py", *TINY, *HERE)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "arithmetic-seed0"
    check_artefacts(folder, sft_steps=6, rl_steps=4)
    again = run(pipelines / "rl.py", *TINY, *HERE, timeout_s=30)
    assert again.returncode == 0
    table = again.stdout[again.stdout.index("Held-out") :]
    assert table.strip() == done.stdout[done.stdout.index("Held-out") :].strip()
    check_transformers_loads(folder / "merged" / "rl")
    refused = run(pipelines / "rl.py", *TINY, *HERE, "sft.steps=7")
    assert refused.returncode == 2
    assert "sft.steps was 6, is 7" in refused.stderr


def check_transformers_loads(folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ends = model.generation_config.eos_token_id
    assert (ends if isinstance(ends, list) else [ends]) == [tokenizer.eos_token_id]
    prompt = tokenizer("1+2-3+4=", return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        out = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert out.shape[1] > prompt["input_ids"].shape[1]


@pytest.mark.slow
def test_the_scripts_one_by_one_are_the_whole_stack(tmp_path, pipelines):
    for script in ("prepare", "sft", "merge", "evaluate"):
        done = run(pipelines / f"{script}.py", *TINY, "run.dir=here")
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "here" / "result.json").exists()
    assert run(pipelines / "rl.py", *TINY, "run.dir=here").returncode == 0
    check_artefacts(tmp_path / "here", sft_steps=6, rl_steps=4)


def wait_for(folder, stage, step, process, *, timeout_s=240):
    """Return once the metrics hold ``step`` of ``stage``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        path = folder / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        if any(
            (line := json.loads(t))["stage"] == stage and line["step"] >= step
            for t in text.splitlines(keepends=True)
            if t.endswith("\n")
        ):
            return
        assert process.poll() is None, f"the run ended before {stage} {step}"
        time.sleep(0.02)
    raise AssertionError(f"{stage} {step} did not come within {timeout_s} s")


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_run_stopped_in_every_stage_ends_like_one_that_was_not(tmp_path, pipelines, stop):
    words = [*TINY, "sft.steps=40", "sft.save_every=10", "rl.steps=12", "rl.save_every=3"]
    whole = run(pipelines / "rl.py", *words, "run.dir=whole")
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "cut"
    command = [sys.executable, str(pipelines / "rl.py"), *words, "run.dir=cut"]
    for stage, step in (("sft", 5), ("sft", 25), ("rl", 1), ("rl", 7)):
        with subprocess.Popen(
            command,
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            # A suite run in the background hands down an ignored Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            try:
                wait_for(folder, stage, step, process)
            finally:
                process.send_signal(stop)
            process.communicate(timeout=60)
        assert process.returncode == (130 if stop == signal.SIGINT else -signal.SIGKILL)
    last = run(pipelines / "rl.py", *words, "run.dir=cut")
    assert last.returncode == 0, last.stderr
    cut = check_artefacts(folder, sft_steps=40, rl_steps=12)
    straight = check_artefacts(tmp_path / "whole", sft_steps=40, rl_steps=12)
    assert (cut["sft"], cut["rl"]) == (straight["sft"], straight["rl"])


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="no real data: NANORLHF_DATA names no folder")
def test_gsm8k_smoke_runs_every_stage(tmp_path, pipelines):
    config = pipelines / "configs" / "gsm8k-smoke.yaml"
    words = ["--config", str(config), f"data.root={REAL}"]
    done = run(pipelines / "rl.py", *words, timeout_s=600)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "gsm8k-smoke-seed0"
    result = json.loads((folder / "result.json").read_text())
    settings = result["config"]
    check_artefacts(folder, sft_steps=settings["sft"]["steps"], rl_steps=settings["rl"]["steps"])
    losses = [line["sft/loss"] for line in read(folder / "metrics.jsonl") if line["stage"] == "sft"]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert sum(result["seconds"].values()) < 300


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def write_checkpoint(folder):
    """Write a Qwen3 base model as the hub has it, but tiny, and a chat tokenizer of its format."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from tokenizer import save_tokenizer, train_tokenizer

    tokenizer = train_tokenizer(["What is the sum of $x$ and $y$? \\boxed{1}"] * 9, vocab_size=300)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    save_tokenizer(tokenizer, folder / "chat")
    path = folder / "chat" / "tokenizer_config.json"
    changed = {"eos_token": "<|im_end|>", "chat_template": CHAT}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=320,  # more than the tokenizer has, as in the real one
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(shape).to(torch.bfloat16).save_pretrained(folder / "base")


def write_sets(folder):
    """Write a few rows with the columns of NuminaMath, DeepMath and MATH-500."""
    problem, solution = "What is the sum of $x$ and $y$?", "It is $\\boxed{1}$."
    turns = [{"role": "user", "content": problem}, {"role": "assistant", "content": solution}]
    numina = {"problem": problem, "solution": solution, "messages": turns}
    deepmath = {"question": problem, "difficulty": 1.0, "topic": "x"}
    deepmath |= {f"r1_solution_{i}": solution for i in (1, 2, 3)}
    math500 = {"problem": problem, "solution": solution, "answer": "1", "subject": "x"}
    math500 |= {"level": 1, "unique_id": "x"}
    rows = {
        "numina": [numina] * 24,
        "deepmath": [deepmath | {"final_answer": a} for a in ["1", "No"] * 8],
        "math500": [math500] * 4,
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in lines))


@pytest.mark.slow
def test_the_qwen3_recipe_runs_on_a_tiny_checkpoint_of_its_format(tmp_path, pipelines):
    write_checkpoint(tmp_path)
    write_sets(tmp_path)
    words = [
        *("--config", str(pipelines / "configs" / "qwen3-0.6b.yaml"), "run.device=cpu"),
        *("model.path=base", "tokenizer.path=chat", "data.valid_rows=4"),
        *("data.sft.path=numina.jsonl", "data.rl.path=deepmath.jsonl"),
        *("data.eval.path=math500.jsonl", "data.max_prompt_tokens=256"),
        *("sft.steps=3", "sft.batch_size=4", "sft.optim.warmup_steps=1"),
        "sft.layout={dp: 1, pp: 2, tp: 1}",
        *("rl.steps=2", "rl.minibatches=2", "rl.optim.warmup_steps=1"),
        "rl.critic_optim.warmup_steps=1",
        "rl.layout={dp: 1, pp: 1, tp: 2}",
        *("rl.rollout.prompts=4", "rl.rollout.max_new_tokens=8", "rl.rollout.max_model_len=256"),
        *("rl.rollout.replicas=1", "rl.reward.workers=1", "eval.reward.workers=1"),
        *("eval.max_new_tokens=8", "eval.max_model_len=256"),
    ]
    done = run(pipelines / "rl.py", *words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "qwen3-0.6b-seed0"
    check_artefacts(folder, sft_steps=3, rl_steps=2)
    assert "data/rl: 8 problems" in done.stdout  # half of the answers were a No
    check_transformers_loads(folder / "merged" / "rl")
