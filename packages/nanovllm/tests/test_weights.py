import pytest
import torch

from nanorlhf.nanovllm import LLM, RequestsRunning, SamplingParams, WeightsError
from nanorlhf.nanovllm.testing import TINY_QWEN3, random_weights
from nanorlhf.nanovllm.weights import read_weights

GREEDY = SamplingParams(temperature=0, max_tokens=10)


@pytest.fixture
def llm(checkpoint):
    return LLM(checkpoint, skip_tokenizer_init=True)


@pytest.fixture
def new_weights():
    return random_weights(TINY_QWEN3, seed=2, scale=0.2)


def tokens(outputs):
    return [output.outputs[0].token_ids for output in outputs]


def test_updated_weights_generate_what_the_new_model_does_and_find_no_old_prefix(
    llm, new_weights, prompts, hf_greedy, tmp_path
):
    from nanorlhf.nanovllm.testing import write_checkpoint

    write_checkpoint(tmp_path, TINY_QWEN3, seed=2, scale=0.2)
    old = tokens(llm.generate(prompts, GREEDY))
    storage = llm._engine.runner.model.embed.data_ptr()
    llm.update_weights(new_weights.items(), 7)
    assert llm.version == 7
    assert llm._engine.runner.model.embed.data_ptr() == storage
    # One by one, so that none finds the pages of another.
    for prompt in prompts[:6]:
        cached = llm.stats.cached_tokens
        [output] = llm.generate([prompt], GREEDY)
        assert llm.stats.cached_tokens == cached
        assert output.outputs[0].token_ids == hf_greedy(tmp_path, prompt, 10)
        assert set(output.outputs[0].versions) == {7}
    assert tokens(llm.generate(prompts, GREEDY)) != old


def test_the_same_version_twice_still_finds_no_old_prefix(llm, new_weights, prompts):
    for seed in (2, 3):
        llm.update_weights(random_weights(TINY_QWEN3, seed=seed, scale=0.2).items(), 1)
        fresh = LLM(llm._path, skip_tokenizer_init=True, enable_prefix_caching=False)
        fresh.update_weights(random_weights(TINY_QWEN3, seed=seed, scale=0.2).items(), 1)
        assert tokens(llm.generate(prompts, GREEDY)) == tokens(fresh.generate(prompts, GREEDY))


def test_weights_of_another_dtype_are_cast_and_a_tied_head_is_passed_over(
    llm, new_weights, prompts
):
    wide = {name: tensor.double() for name, tensor in new_weights.items()}
    llm.update_weights([*wide.items(), ("lm_head.weight", torch.zeros(1))], 1)
    first = tokens(llm.generate(prompts, GREEDY))
    llm.update_weights(reversed(list(new_weights.items())), 2)
    assert tokens(llm.generate(prompts, GREEDY)) == first


def test_a_misfit_is_named_and_leaves_an_engine_that_refuses_until_a_full_update(
    llm, new_weights, prompts
):
    name = "model.layers.1.self_attn.k_proj.weight"
    for bad, message in (
        ({name: torch.zeros(3, 64)}, r"k_proj.weight' is torch.float32\[3, 64\], the model has"),
        ({name: torch.zeros(32, 64, dtype=torch.int32)}, r"is torch.int32\[32, 64\]"),
        ({"score.weight": torch.zeros(1, 64)}, r"weight 'score.weight' is not part of this model"),
    ):
        with pytest.raises(WeightsError, match=message):
            llm.update_weights((new_weights | bad).items(), 1)
    with pytest.raises(
        WeightsError, match=r"1 of 24 weights are missing, such as model\.layers\.1\.s"
    ):
        llm.update_weights([item for item in new_weights.items() if item[0] != name], 1)
    assert llm.version == 0
    with pytest.raises(WeightsError, match=r"failed half-way.*repeat it in full"):
        llm.generate(prompts, GREEDY)
    llm.update_weights(new_weights.items(), 1)
    assert llm.generate(prompts, GREEDY)[0].outputs[0].versions == [1] * 10


def test_a_busy_engine_refuses_new_weights(llm, new_weights):
    llm._engine.add([5, 6], SamplingParams(n=3))
    with pytest.raises(RequestsRunning, match="3 sequences are unfinished"):
        llm.update_weights(new_weights.items(), 1)
    llm._engine.abort()
    llm.update_weights(new_weights.items(), 1)


def test_a_directory_without_weights_says_what_it_lacks(tmp_path):
    with pytest.raises(WeightsError, match=r"neither model\.safetensors nor model"):
        next(read_weights(tmp_path))
