"""Token by token what transformers generates, whatever the scheduler had to do."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from nanorlhf.nanovllm import LLM, SamplingParams
from nanorlhf.nanovllm.testing import TINY_QWEN3, random_weights, write_checkpoint

GREEDY = SamplingParams(temperature=0, max_tokens=12)
LONGER = SamplingParams(temperature=0, max_tokens=24)


def tokens(outputs):
    return [response.token_ids for output in outputs for response in output.outputs]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_seqs": 1},
        {"page_size": 64, "max_num_seqs": 3},
        {"max_num_batched_tokens": 8, "max_num_seqs": 8},
        {"max_num_batched_tokens": 5, "max_num_seqs": 3, "enable_prefix_caching": False},
        {"num_pages": 6, "max_model_len": 96},
        {"num_pages": 7, "max_model_len": 96, "enable_prefix_caching": False},
    ],
    ids=str,
)
def test_greedy_tokens_are_those_of_transformers(checkpoint, prompts, hf_greedy, settings):
    llm = LLM(checkpoint, skip_tokenizer_init=True, **settings)
    expected = [hf_greedy(checkpoint, prompt, 24) for prompt in prompts]
    assert tokens(llm.generate(prompts, LONGER)) == expected
    if "num_pages" in settings:
        assert llm.stats.preemptions > 0
    # Again, now that everything that can be cached is.
    before = llm.stats.cached_tokens
    assert tokens(llm.generate(prompts[::-1], LONGER)) == expected[::-1]
    if llm.config.enable_prefix_caching:
        assert llm.stats.cached_tokens > before


def test_a_prompt_whose_every_page_is_cached_is_answered(checkpoint, prompts, hf_greedy):
    llm = LLM(checkpoint, skip_tokenizer_init=True, page_size=16)
    prompt = prompts[5]
    assert len(prompt) % 16 == 0
    for _ in range(2):
        assert tokens(llm.generate([prompt], GREEDY)) == [hf_greedy(checkpoint, prompt, 12)]
    assert llm.stats.cached_tokens == 16


def test_a_head_of_its_own_and_sharded_files_are_read(
    other_checkpoint, prompts, hf_greedy, tmp_path
):
    config = TINY_QWEN3 | {"tie_word_embeddings": False}
    weights = random_weights(config, seed=1, scale=0.2)
    names, files = list(weights), ["a.safetensors", "b.safetensors"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    where = {name: files[i % 2] for i, name in enumerate(names)}
    for file in files:
        save_file({n: weights[n] for n in names if where[n] == file}, tmp_path / file)
    index = {"metadata": {}, "weight_map": where}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = [hf_greedy(other_checkpoint, prompt, 12) for prompt in prompts]
    for path in (other_checkpoint, tmp_path):
        assert tokens(LLM(path, skip_tokenizer_init=True).generate(prompts, GREEDY)) == expected


def test_every_response_of_a_greedy_request_is_the_same(checkpoint, prompts, hf_greedy):
    for slots in (64, 3):
        llm = LLM(checkpoint, skip_tokenizer_init=True, max_num_seqs=slots)
        params = SamplingParams(temperature=0, max_tokens=12, n=4)
        for prompt, output in zip(prompts, llm.generate(prompts, params), strict=True):
            assert [response.index for response in output.outputs] == [0, 1, 2, 3]
            assert tokens([output]) == [hf_greedy(checkpoint, prompt, 12)] * 4
        assert llm.stats.cached_tokens > 3 * sum(map(len, prompts)) // 4


def test_log_probabilities_are_those_of_a_teacher_forced_pass(checkpoint, prompts, hf_logits):
    llm = LLM(checkpoint, skip_tokenizer_init=True, max_num_batched_tokens=32, max_num_seqs=4)
    params = SamplingParams(temperature=0.7, max_tokens=9, seed=3, ignore_eos=True)
    for output in llm.generate(prompts, params):
        response = output.outputs[0]
        sequence = output.prompt_token_ids + response.token_ids
        logits = hf_logits(checkpoint, sequence)[len(output.prompt_token_ids) - 1 : -1]
        picked = torch.tensor(response.token_ids)[:, None]
        for logprobs, temperature in ((response.logprobs, 0.7), (response.raw_logprobs, 1.0)):
            expected = (logits / temperature).log_softmax(-1).gather(1, picked)[:, 0]
            torch.testing.assert_close(torch.tensor(logprobs), expected, atol=2e-4, rtol=1e-4)
        assert response.versions == [0] * 9


def test_greedy_draws_are_certain_and_log_probabilities_can_be_left_out(checkpoint):
    llm = LLM(checkpoint, skip_tokenizer_init=True)
    [output] = llm.generate([[5, 6]], GREEDY)
    assert output.outputs[0].logprobs == [0.0] * 12
    assert min(output.outputs[0].raw_logprobs) < 0
    [output] = llm.generate([[5, 6]], SamplingParams(logprobs=False))
    assert output.outputs[0].logprobs == output.outputs[0].raw_logprobs == []


def test_each_prompt_may_have_its_own_parameters(checkpoint, prompts, hf_greedy):
    params = [SamplingParams(temperature=0, max_tokens=1 + i) for i in range(len(prompts))]
    outputs = LLM(checkpoint, skip_tokenizer_init=True).generate(prompts, params)
    for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        assert output.outputs[0].token_ids == hf_greedy(checkpoint, prompt, 12)[: 1 + i]
        assert output.prompt_token_ids == prompt


def test_text_goes_in_and_comes_out(checkpoint, hf_greedy):
    llm = LLM(checkpoint)
    [output] = llm.generate("to be", SamplingParams(temperature=0, max_tokens=6))
    ids = llm.tokenizer.encode("to be")
    assert (output.prompt, output.prompt_token_ids) == ("to be", ids)
    assert output.outputs[0].token_ids == hf_greedy(checkpoint, ids, 6)
    expected = llm.tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=True)
    assert output.outputs[0].text == expected


def test_the_longest_sequence_fills_the_model_length(checkpoint, prompts, hf_greedy):
    llm = LLM(checkpoint, skip_tokenizer_init=True, max_model_len=40)
    [output] = llm.generate(
        [prompts[5]], SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    )
    assert output.outputs[0].token_ids == hf_greedy(checkpoint, prompts[5], 8, eos=-1)
    assert output.outputs[0].finish_reason == "length"


def test_bf16_runs_on_a_cpu(tmp_path, prompts):
    write_checkpoint(tmp_path, TINY_QWEN3 | {"dtype": "bfloat16"}, seed=0, scale=0.2)
    llm = LLM(tmp_path, skip_tokenizer_init=True, device="cpu")
    assert [len(t) for t in tokens(llm.generate(prompts, GREEDY))] == [12] * len(prompts)


def test_the_model_length_shrinks_to_what_the_pages_hold(checkpoint):
    assert LLM(checkpoint, skip_tokenizer_init=True, num_pages=3).max_model_len == 48
    assert LLM(checkpoint, skip_tokenizer_init=True).max_model_len == 512


def test_importing_the_package_does_not_import_transformers():
    code = "import sys, nanorlhf.nanovllm; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_end_of_sequence_tokens_come_from_both_files(checkpoint, tmp_path, hf_greedy, name):
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    response = hf_greedy(checkpoint, [5, 6, 7], 12)
    eos = response[4]
    raw = TINY_QWEN3 if name == "config.json" else {}
    (tmp_path / name).write_text(json.dumps(raw | {"eos_token_id": [1, eos]}))
    llm = LLM(tmp_path, skip_tokenizer_init=True)
    [output] = llm.generate([[5, 6, 7]], GREEDY)
    assert output.outputs[0].token_ids == response[: response.index(eos) + 1]
    assert output.outputs[0].finish_reason == "stop"
    [output] = llm.generate(
        [[5, 6, 7]], SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    )
    assert output.outputs[0].token_ids == response[:9]
    assert output.outputs[0].finish_reason == "length"


def test_the_triton_kernels_generate_what_the_reference_does(checkpoint, prompts, hf_greedy):
    """On a CPU the kernels are interpreted, hence few tokens."""
    llm = LLM(
        checkpoint,
        skip_tokenizer_init=True,
        impl="triton",
        dtype="float32",
        max_num_seqs=4,
        max_num_batched_tokens=24,
        gpu_memory_utilization=0.05,
    )
    params = SamplingParams(temperature=0, max_tokens=2, n=2)
    outputs = llm.generate([prompts[0], prompts[3]], params)
    expected = [hf_greedy(checkpoint, prompt, 2) for prompt in (prompts[0], prompts[3])]
    assert tokens(outputs) == [expected[0], expected[0], expected[1], expected[1]]
