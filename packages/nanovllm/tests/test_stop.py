import pytest

from nanorlhf.nanovllm import LLM, SamplingParams


@pytest.fixture(scope="module")
def llm(checkpoint):
    return LLM(checkpoint)


class ByteTokenizer:
    """Latin-1, with 99 as a special token that spells nothing."""

    def encode(self, text):
        return list(text.encode("latin-1"))

    def decode(self, token_ids, *, skip_special_tokens):
        return bytes(t for t in token_ids if t != 99).decode("latin-1")


@pytest.fixture
def letters(checkpoint):
    """An engine whose tokens are Latin-1 letters, so that any token can be in a stop string."""
    llm = LLM(checkpoint)
    llm.__dict__["tokenizer"] = ByteTokenizer()
    return llm


def greedy(**more):
    return SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, **more)


def find_prompt(llm):
    """Return a prompt with a greedy response of 16 tokens below 256 none of which is special."""
    for first in range(2, 250):
        [output] = llm.generate([[first]], SamplingParams(temperature=0, max_tokens=16))
        ids = output.outputs[0].token_ids
        if len(ids) == 16 and len(set(ids)) > 10 and max(ids) < 256 and 99 not in ids:
            return [first], ids
    raise AssertionError("no such prompt")


@pytest.fixture
def response(checkpoint):
    plain = LLM(checkpoint, skip_tokenizer_init=True)
    return find_prompt(plain)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_stop_string_ends_the_text_before_it_and_the_tokens_with_it(letters, response, width):
    prompt, ids = response
    text = bytes(ids).decode("latin-1")
    stop = text[6 : 6 + width]
    [output] = letters.generate([prompt], greedy(stop=["never", stop]))
    end = text.index(stop)
    assert output.outputs[0].text == text[:end]
    assert output.outputs[0].token_ids == ids[: end + width]
    assert output.outputs[0].finish_reason == "stop"


def test_a_stop_string_that_never_comes_changes_nothing(letters, response):
    prompt, ids = response
    [output] = letters.generate([prompt], greedy(stop="never comes"))
    assert output.outputs[0].token_ids == ids
    assert output.outputs[0].finish_reason == "length"


def test_a_stop_string_in_the_prompt_does_not_count(letters, response):
    prompt, ids = response
    stop = bytes([*prompt, ids[0]]).decode("latin-1")
    [output] = letters.generate([prompt], greedy(stop=stop))
    assert len(output.outputs[0].token_ids) == 16


def test_only_the_row_that_asks_for_it_stops(letters, response):
    prompt, ids = response
    stop = chr(ids[2])
    stopped, free = letters.generate([prompt, prompt], [greedy(stop=stop), greedy()])
    assert len(stopped.outputs[0].token_ids) == ids.index(ids[2]) + 1
    assert free.outputs[0].token_ids == ids


def test_a_stop_token_ends_the_response_and_stays_in_it(llm, response):
    prompt, ids = response
    for stops in ([ids[3]], [290, 291, ids[3]], [ids[3], ids[9]]):
        [output] = llm.generate([prompt], greedy(stop_token_ids=stops))
        assert output.outputs[0].token_ids == ids[: ids.index(ids[3]) + 1]
        assert output.outputs[0].finish_reason == "stop"
    [output] = llm.generate([prompt], greedy(stop_token_ids=[290]))
    assert output.outputs[0].finish_reason == "length"


def test_a_slot_forgets_the_stop_tokens_of_its_last_sequence(llm, response):
    prompt, ids = response
    llm.generate([prompt], greedy(stop_token_ids=[ids[3], ids[4]]))
    assert llm.generate([prompt], greedy())[0].outputs[0].token_ids == ids


def test_a_stop_at_the_last_token_is_a_stop(llm, response):
    prompt, ids = response
    last = next(i for i in range(5, 16) if ids[i] not in ids[:i])
    params = SamplingParams(temperature=0, max_tokens=last + 1, stop_token_ids=[ids[last]])
    [output] = llm.generate([prompt], params)
    assert len(output.outputs[0].token_ids) == last + 1
    assert output.outputs[0].finish_reason == "stop"
