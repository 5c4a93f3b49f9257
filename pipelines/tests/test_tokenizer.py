import json
from itertools import islice

import pytest
from transformers import AutoTokenizer

from arithmetic import ArithmeticConfig, demonstration, problems
from config import TemplateConfig
from data import Demonstration, Message, Question
from template import Template
from tokenizer import Codec, copy_tokenizer, save_tokenizer, train_tokenizer

PROBLEM, RESPONSE = "7+4*3-3=", "<think>7+4=1*3=3-3=0</think>\\boxed{0}"

# The parts of Qwen3's template that matter here: an answer opens with an empty thought when
# thinking is off, and a finished last answer shows its thought whether thinking is on or off.
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """Return a tokenizer trained on the arithmetic task."""
    drawn = problems(ArithmeticConfig(), seed="0", held_out=False, unique=False)
    texts = [
        text
        for i, problem in enumerate(islice(drawn, 2000))
        for text in (problem.text, demonstration(problem, thinks=bool(i % 2)))
    ]
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(texts, vocab_size=300), folder)
    return Codec(folder)


@pytest.fixture
def chat_codec(codec, tmp_path):
    """Return the same with a chat template in the manner of Qwen3's."""
    copy_tokenizer(codec.folder, tmp_path / "chat")
    path = tmp_path / "chat" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": CHAT}))
    return Codec(tmp_path / "chat")


def pieces(codec, text):
    [ids] = codec.encode([text])
    return [codec.tokenizer.id_to_token(i) for i in ids]


def test_digits_operators_tags_and_the_box_are_one_token_each(codec):
    assert pieces(codec, PROBLEM) == list(PROBLEM)
    thought = list("7+4=1*3=3-3=0")
    assert pieces(codec, RESPONSE) == ["<think>", *thought, "</think>", "\\boxed{", "0", "}"]
    assert pieces(codec, "123") == ["1", "2", "3"]


def test_any_text_comes_back_as_it_was(codec):
    for text in (PROBLEM, RESPONSE, "Wei\u00df \u4f60\u597d \U0001f600 \\frac{1}{2}\n\t  x", ""):
        [ids] = codec.encode([text])
        assert codec.tokenizer.decode(ids) == text


def test_transformers_loads_it_and_agrees(codec):
    loaded = AutoTokenizer.from_pretrained(codec.folder)
    assert loaded(RESPONSE, add_special_tokens=False)["input_ids"] == codec.encode([RESPONSE])[0]
    assert (loaded.eos_token_id, loaded.pad_token_id) == (codec.eos_id, codec.pad_id)
    assert len(loaded) == len(codec)
    ids = [*codec.encode([RESPONSE])[0], codec.eos_id]
    assert loaded.decode(ids, skip_special_tokens=True) == RESPONSE
    messages = [{"role": "user", "content": "a="}, {"role": "assistant", "content": "b"}]
    assert loaded.apply_chat_template(messages, tokenize=False) == "a=b<eos>"


def test_a_vocabulary_too_small_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match="vocab_size=100; wanted at least 260"):
        train_tokenizer(["x"], vocab_size=100)


def test_a_plain_example_is_prompt_response_and_end_with_loss_on_the_response(codec):
    template = Template(TemplateConfig(), codec)
    shown = Demonstration((Message("user", PROBLEM), Message("assistant", RESPONSE)))
    [example] = template.examples([shown])
    prompt, response = codec.encode([PROBLEM, RESPONSE])
    assert example.tokens == [*prompt, *response, codec.eos_id]
    assert example.loss_mask == [False] * len(prompt) + [True] * (len(response) + 1)
    [asked] = template.prompts([Question(PROBLEM, "0")])
    assert asked == (prompt, PROBLEM, "0")


def test_the_prompt_format_is_the_same_for_demonstrations_and_questions(codec):
    template = Template(TemplateConfig(prompt="Work out {problem}\n"), codec)
    shown = Demonstration((Message("user", PROBLEM), Message("assistant", RESPONSE)))
    [example] = template.examples([shown])
    [asked] = template.prompts([Question(PROBLEM, "0")])
    assert asked.text == f"Work out {PROBLEM}\n"
    assert example.tokens[: len(asked.tokens)] == asked.tokens
    assert not any(example.loss_mask[: len(asked.tokens)])


def test_a_prompt_format_without_a_place_for_the_problem_is_refused():
    with pytest.raises(ValueError, match=r"prompt='Hello'; it needs \{problem\}"):
        TemplateConfig(prompt="Hello")


@pytest.mark.parametrize("thinking", [False, True])
def test_a_chat_example_learns_the_last_turn_after_the_opening_sampled_from(chat_codec, thinking):
    template = Template(TemplateConfig(form="chat", thinking=thinking), chat_codec)
    shown = Demonstration((Message("user", PROBLEM), Message("assistant", RESPONSE)))
    [example] = template.examples([shown])
    [asked] = template.prompts([Question(PROBLEM, "0")])
    learned = [t for t, m in zip(example.tokens, example.loss_mask, strict=True) if m]
    assert example.tokens == asked.tokens + learned
    text = chat_codec.tokenizer.decode(learned, skip_special_tokens=False)
    thought = "<think>\n\n</think>\n\n" if thinking else ""
    # The stand-in's end of text is not its end of turn, so both stand there.
    assert text == f"{thought}{RESPONSE}<|im_end|><eos>"


def test_a_conversation_trains_its_last_turn_with_the_earlier_ones_as_context(chat_codec):
    template = Template(TemplateConfig(form="chat"), chat_codec)
    turns = (("user", "1+1="), ("assistant", "2"), ("user", "2+2="), ("assistant", "4"))
    halves = template.halves(tuple(Message(*turn) for turn in turns))
    assert "assistant\n2<|im_end|>" in halves.prompt
    assert halves.prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert halves.response == "4<|im_end|>"


def test_a_tokenizer_without_end_of_text_is_refused(codec, tmp_path):
    copy_tokenizer(codec.folder, tmp_path / "t")
    (tmp_path / "t" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"eos_token='' of .* is not in its vocabulary"):
        Codec(tmp_path / "t")
