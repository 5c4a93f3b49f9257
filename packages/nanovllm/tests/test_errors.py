import shutil

import pytest
import torch

from nanorlhf.nanovllm import LLM, SamplingParams
from nanorlhf.nanovllm.cli import main
from nanorlhf.nanovllm.config import EngineConfig, ModelConfig
from nanorlhf.nanovllm.errors import WeightsError
from nanorlhf.nanovllm.testing import TINY_QWEN3


@pytest.fixture(scope="module")
def llm(checkpoint):
    return LLM(checkpoint, skip_tokenizer_init=True, max_model_len=64)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], r"prompts\[1\]: prompt has no tokens; give at least one"),
        ([5] * 64, r"prompts\[1\]: prompt has 64 tokens and max_model_len=64 must leave room"),
        ([5, 300], r"prompts\[1\]: prompt holds token 300, outside the vocabulary \[0, 300\)"),
        ([-1], r"prompts\[1\]: prompt holds token -1"),
        ("text", r"prompts\[1\]: skip_tokenizer_init=True leaves this engine without a tokenizer"),
    ],
)
def test_a_bad_prompt_is_named_before_anything_runs(llm, prompt, message):
    steps = llm.stats.steps
    with pytest.raises(ValueError, match=message):
        llm.generate([[5], prompt])
    assert llm.stats.steps == steps
    assert len(llm.generate([[5]])) == 1


def test_a_bare_list_of_tokens_is_no_list_of_prompts(llm):
    with pytest.raises(
        TypeError, match=r"prompts\[0\]=5 is neither a text nor a list of token ids"
    ):
        llm.generate([5, 6])


def test_parameters_must_be_as_many_as_prompts(llm):
    with pytest.raises(ValueError, match="sampling_params has 1 entries for 2 prompts"):
        llm.generate([[5], [6]], [SamplingParams()])


def test_no_prompts_are_no_outputs(llm):
    assert llm.generate([]) == []


def test_an_interrupted_generation_leaves_an_idle_engine(llm, monkeypatch):
    expected = llm.generate([[5, 6]], SamplingParams(temperature=0))[0].outputs
    run, calls = llm._engine.runner.run, []

    def interrupt(step):
        calls.append(step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(step)

    monkeypatch.setattr(llm._engine.runner, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[5, 6], [7]], SamplingParams(n=2))
    assert llm._engine.scheduler.num_unfinished == 0
    assert llm.generate([[5, 6]], SamplingParams(temperature=0))[0].outputs == expected


def test_aborting_returns_what_was_sampled_so_far(llm):
    engine = llm._engine
    engine.add([5, 6], SamplingParams(n=2, ignore_eos=True))
    engine.step()
    engine.step()
    aborted = engine.abort()
    assert [s.finish_reason for s in aborted] == ["abort", "abort"]
    assert [len(s.tokens) - s.prompt_len for s in aborted] == [2, 2]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs=0 must be at least 1"),
        ({"max_model_len": 0}, "max_model_len=0 must be at least 1, or None"),
        ({"page_size": 24}, "page_size=24 must be a power of two"),
        ({"gpu_memory_utilization": 1.5}, r"gpu_memory_utilization=1.5 must lie in \(0, 1\]"),
        ({"max_num_batched_tokens": 8}, "max_num_batched_tokens=8 is below max_num_seqs=256"),
    ],
)
def test_settings_that_cannot_work_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        EngineConfig(**bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"num_pages": 3, "max_model_len": 49},
            "num_pages=3 of page_size=16 hold 48 tokens, below",
        ),
        ({"max_model_len": 513}, "max_model_len=513 is above the model's max_position_embeddings"),
        (
            {"kv_cache_bytes": 99},
            "kv_cache_bytes=99 leaves 99 bytes, below the 8192 of one KV page",
        ),
    ],
)
def test_memory_that_does_not_hold_one_sequence_is_an_error(checkpoint, bad, message):
    with pytest.raises(ValueError, match=message):
        LLM(checkpoint, device="cpu", **bad)


def test_the_cache_takes_no_more_than_all_slots_can_fill(checkpoint):
    llm = LLM(checkpoint, device="cpu", max_num_seqs=3, max_model_len=40)
    assert llm._engine.scheduler.pool.num_pages == 3 * 3


def test_new_pages_are_zero(checkpoint):
    cache = LLM(checkpoint, dtype="bfloat16")._engine.runner.cache
    assert cache.k.dtype == torch.bfloat16
    assert not cache.k.any()
    assert not cache.v.any()


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"},
        {"attention_bias": True},
        {"use_sliding_window": True},
        {"rope_parameters": {"rope_type": "yarn"}},
        {"rope_scaling": {"type": "linear"}},
    ],
    ids=str,
)
def test_a_model_this_engine_would_run_wrongly_is_refused(change):
    with pytest.raises(ValueError, match=r"config.json is not supported; this engine runs"):
        ModelConfig.from_dict(TINY_QWEN3 | change)


def test_rotary_settings_are_read_in_both_spellings():
    new = {k: v for k, v in TINY_QWEN3.items() if k != "rope_theta"}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 77.0}
    assert ModelConfig.from_dict(new).rope_theta == 77.0
    assert ModelConfig.from_dict(TINY_QWEN3).rope_theta == 1_000_000.0


def test_a_path_that_is_no_checkpoint_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json; give the directory"):
        LLM(tmp_path)


def test_a_checkpoint_without_a_tokenizer_says_so_when_one_is_needed(other_checkpoint):
    llm = LLM(other_checkpoint)
    for prompt in ("hello", [5, 6]):
        with pytest.raises(ValueError, match=r"holds no tokenizer \(.*skip_tokenizer_init=True"):
            llm.generate([prompt])
    assert llm.stats.steps == 0


def test_the_command_line_generates_and_reports_errors_in_one_line(checkpoint, capsys):
    assert main(["generate", str(checkpoint), "ab", "c", "--max-tokens", "3", "--seed", "1"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["generate", str(checkpoint / "no"), "ab"]) == 2
    assert capsys.readouterr().err.startswith("error: model=")


def test_a_damaged_file_of_weights_is_named(checkpoint, tmp_path):
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"model\.safetensors is no whole safetensors file"):
        LLM(broken, skip_tokenizer_init=True)


def test_a_config_without_its_sizes_is_named():
    raw = {name: value for name, value in TINY_QWEN3.items() if name != "num_hidden_layers"}
    with pytest.raises(ValueError, match=r"config\.json lacks num_hidden_layers"):
        ModelConfig.from_dict(raw)


def test_an_end_token_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="eos_token_id=300 is outside vocab_size=300"):
        ModelConfig.from_dict(TINY_QWEN3, eos_token_ids=(1, 300))
