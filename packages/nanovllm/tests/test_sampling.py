import math

import pytest
import torch

from nanorlhf.nanovllm import LLM, SamplingParams

PROMPT = [7, 8, 9]
TRUNCATIONS = [
    {"temperature": 0.4},
    {"temperature": 1.5, "top_k": 6},
    {"temperature": 0.7, "top_p": 0.6},
    {"temperature": 1.0, "min_p": 0.3},
    {"temperature": 2.0, "top_k": 40, "top_p": 0.5, "min_p": 0.05},
]


@pytest.fixture(scope="module")
def llm(checkpoint):
    return LLM(checkpoint, skip_tokenizer_init=True)


def distribution(logits, *, temperature, top_k=0, top_p=1.0, min_p=0.0):
    """Probabilities by definition, token by token from the most likely on."""
    p = [math.exp(x) for x in (logits.double() / temperature).log_softmax(0).tolist()]
    ranked = sorted(range(len(p)), key=lambda i: -p[i])
    kept = ranked[: top_k or len(p)]
    mass, nucleus = sum(p[i] for i in kept), []
    for i in kept:
        if sum(p[j] for j in nucleus) < top_p * mass:
            nucleus.append(i)
    nucleus = [i for i in nucleus if p[i] >= min_p * p[ranked[0]]]
    total = sum(p[i] for i in nucleus)
    return {i: p[i] / total for i in nucleus}


@pytest.mark.parametrize("settings", TRUNCATIONS, ids=str)
def test_first_tokens_follow_the_distribution_of_transformers_logits(
    llm, checkpoint, hf_logits, settings
):
    count = 2000
    expected = distribution(hf_logits(checkpoint, PROMPT)[-1], **settings)
    params = SamplingParams(n=count, max_tokens=1, seed=0, ignore_eos=True, **settings)
    [output] = llm.generate([PROMPT], params)
    drawn = [0] * 300
    for response in output.outputs:
        token = response.token_ids[0]
        drawn[token] += 1
        assert response.logprobs[0] == pytest.approx(math.log(expected[token]), abs=1e-3)
    # Each count is binomial; 5 standard deviations, over some hundred counts.
    for token, p in expected.items():
        assert abs(drawn[token] - count * p) < 5 * math.sqrt(count * p) + 1


def test_a_seed_draws_the_same_tokens_alone_in_a_batch_and_preempted(llm, checkpoint, prompts):
    def params(i):
        return SamplingParams(seed=i, max_tokens=20, temperature=0.9, ignore_eos=True)

    many = [params(i) for i in range(len(prompts))]
    together = llm.generate(prompts, many)
    tiny = LLM(checkpoint, skip_tokenizer_init=True, num_pages=6, max_model_len=96)
    squeezed = tiny.generate(prompts, many)
    assert tiny.stats.preemptions > 0
    for i, prompt in enumerate(prompts):
        [alone] = llm.generate([prompt], params(i))
        for output in (together[i], squeezed[i]):
            assert output.outputs[0].token_ids == alone.outputs[0].token_ids
            torch.testing.assert_close(
                torch.tensor(output.outputs[0].logprobs),
                torch.tensor(alone.outputs[0].logprobs),
                atol=1e-4,
                rtol=1e-4,
            )


def test_response_i_of_a_seed_does_not_depend_on_n(llm):
    few, many = (
        llm.generate([PROMPT], SamplingParams(n=n, seed=5, max_tokens=8))[0] for n in (2, 5)
    )
    assert [r.token_ids for r in few.outputs] == [r.token_ids for r in many.outputs[:2]]
    assert len({tuple(r.token_ids) for r in many.outputs}) == 5


def test_each_token_of_a_response_is_a_new_draw(llm):
    [output] = llm.generate([PROMPT], SamplingParams(temperature=1e4, max_tokens=50, seed=1))
    # Uniform over 300: about 46 of 50 differ. The same noise every time gives one token.
    assert len(set(output.outputs[0].token_ids)) > 35


def test_without_a_seed_requests_differ_and_engines_repeat_themselves(checkpoint):
    def draw(seed):
        llm = LLM(checkpoint, skip_tokenizer_init=True, seed=seed)
        outputs = llm.generate([PROMPT] * 3, SamplingParams(max_tokens=8))
        return [tuple(output.outputs[0].token_ids) for output in outputs]

    first = draw(0)
    assert len(set(first)) == 3
    assert draw(0) == first
    assert not set(draw(1)) & set(first)


def test_rows_of_one_batch_are_truncated_each_by_its_own_parameters(llm, checkpoint, hf_logits):
    best = int(hf_logits(checkpoint, PROMPT)[-1].argmax())
    params = [SamplingParams(top_k=1, max_tokens=1), SamplingParams(max_tokens=1, temperature=9.0)]
    outputs = llm.generate([PROMPT] * 40, params * 20)
    firsts = [output.outputs[0].token_ids[0] for output in outputs]
    assert set(firsts[::2]) == {best}
    assert len(set(firsts[1::2])) > 10


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"n": 0}, r"n=0 must be at least 1"),
        ({"temperature": -1}, r"temperature=-1 must be 0 \(greedy\) or more"),
        ({"temperature": math.nan}, r"temperature=nan must"),
        ({"temperature": math.inf}, r"temperature=inf must"),
        ({"top_p": 0.0}, r"top_p=0.0 must lie in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p=1.1 must"),
        ({"top_k": -2}, r"top_k=-2 must be at least 1, or 0 or -1"),
        ({"min_p": -0.1}, r"min_p=-0.1 must lie in \[0, 1\]"),
        ({"max_tokens": 0}, r"max_tokens=0 must be at least 1, or None"),
        ({"stop": ["a", ""]}, r"stop=\['a', ''\] must hold no empty string"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_rule(bad, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**bad)


def test_both_zero_and_minus_one_switch_top_k_off(llm):
    draws = [
        llm.generate([PROMPT], SamplingParams(top_k=k, seed=1, max_tokens=8))[0] for k in (0, -1)
    ]
    assert draws[0].outputs == draws[1].outputs
