"""The same answers on CUDA, where every kernel is Triton's."""

import json

import pytest
import torch

from nanorlhf.nanovllm import LLM, SamplingParams
from nanorlhf.nanovllm.testing import TINY_QWEN3, random_weights, write_checkpoint

pytestmark = pytest.mark.gpu

PLACES = [
    {},
    {"max_num_batched_tokens": 8, "max_num_seqs": 8},
    {"num_pages": 6, "max_model_len": 96},
    {"page_size": 64, "max_num_seqs": 3, "num_pages": 100},
]


def tokens(outputs):
    return [response.token_ids for output in outputs for response in output.outputs]


@pytest.fixture(autouse=True)
def exact_matmul():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("settings", PLACES, ids=str)
def test_fp32_greedy_tokens_are_those_of_transformers(checkpoint, prompts, hf_greedy, settings):
    settings = {"gpu_memory_utilization": 0.05} | settings
    llm = LLM(checkpoint, skip_tokenizer_init=True, **settings)
    assert llm._engine.runner.model.embed.is_cuda
    params = SamplingParams(temperature=0, max_tokens=24, n=2)
    expected = [hf_greedy(checkpoint, prompt, 24) for prompt in prompts for _ in range(2)]
    for _ in range(2):
        assert tokens(llm.generate(prompts, params)) == expected


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 2e-3), ("bfloat16", 0.3)])
@pytest.mark.parametrize("settings", PLACES, ids=str)
def test_log_probabilities_are_those_of_a_teacher_forced_pass(
    checkpoint, prompts, hf_logits, dtype, atol, settings
):
    settings = {"gpu_memory_utilization": 0.05} | settings
    llm = LLM(checkpoint, skip_tokenizer_init=True, dtype=dtype, **settings)
    params = SamplingParams(temperature=0.7, max_tokens=20, seed=3, ignore_eos=True)
    errors = []
    for output in llm.generate(prompts, params):
        response = output.outputs[0]
        sequence = output.prompt_token_ids + response.token_ids
        logits = hf_logits(checkpoint, sequence)[len(output.prompt_token_ids) - 1 : -1]
        picked = torch.tensor(response.token_ids)[:, None]
        for logprobs, temperature in ((response.logprobs, 0.7), (response.raw_logprobs, 1.0)):
            expected = (logits / temperature).log_softmax(-1).gather(1, picked)[:, 0]
            errors.append((torch.tensor(logprobs) - expected).abs())
    error = torch.cat(errors)
    assert error.max() < atol
    assert error.mean() < atol / 6


def test_a_seed_draws_on_cuda_what_it_draws_on_a_cpu(checkpoint, prompts):
    params = SamplingParams(max_tokens=24, seed=1, temperature=0.8, top_p=0.9, ignore_eos=True)
    drawn = [
        tokens(
            LLM(
                checkpoint, skip_tokenizer_init=True, device=device, gpu_memory_utilization=0.05
            ).generate(prompts, params)
        )
        for device in ("cpu", "cuda")
    ]
    assert drawn[0] == drawn[1]


def test_weights_on_the_gpu_or_the_host_are_taken(checkpoint, prompts):
    llm = LLM(checkpoint, skip_tokenizer_init=True, gpu_memory_utilization=0.05)
    weights = random_weights(TINY_QWEN3, seed=2, scale=0.2)
    params = SamplingParams(temperature=0, max_tokens=8)
    old = tokens(llm.generate(prompts, params))
    drawn = []
    for version, move in enumerate((torch.Tensor.cuda, torch.Tensor.pin_memory), start=1):
        llm.update_weights(((name, move(w)) for name, w in weights.items()), version)
        drawn.append(tokens(llm.generate(prompts, params)))
    assert drawn[0] == drawn[1] != old


def test_pages_take_the_share_of_free_memory_asked_for(checkpoint, tmp_path):
    config = TINY_QWEN3 | {"max_position_embeddings": 1 << 20}
    write_checkpoint(tmp_path, config, seed=0)
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    llm = LLM(tmp_path, skip_tokenizer_init=True, gpu_memory_utilization=0.1)
    cache = llm._engine.runner.cache
    taken = cache.k.nbytes + cache.v.nbytes
    assert 0.05 * free < taken < 0.1 * free
