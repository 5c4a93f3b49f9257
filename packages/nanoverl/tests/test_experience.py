"""Packing, alignment, selection, files."""

import itertools
import json

import numpy as np
import pytest
import torch

from nanorlhf.nanoverl import (
    Experience,
    Sample,
    concat,
    load_samples,
    save_samples,
    shuffled_parts,
)


def test_every_per_token_field_describes_the_token_it_stands_beside(ragged):
    experience = Experience.from_samples(ragged)
    starts = experience.cu_seqlens
    for n, sample in enumerate(ragged):
        rows = slice(int(starts[n]), int(starts[n + 1]))
        prompt = len(sample.prompt_tokens)
        chosen = sample.chosen or [True] * len(sample.response_tokens)
        logprobs = [x if c else 0.0 for x, c in zip(sample.logprobs, chosen, strict=True)]
        assert experience.tokens[rows].tolist() == sample.prompt_tokens + sample.response_tokens
        assert experience.response[rows].tolist() == [False] * prompt + chosen
        assert experience.rollout_logprobs[rows].tolist() == [0.0] * prompt + logprobs
        assert not experience.response[rows][0]


def test_a_packed_sequence_keeps_what_is_known_of_its_sample(ragged):
    experience = Experience.from_samples(ragged)
    assert experience.lengths.tolist() == [5, 2, 7, 7, 3]
    assert experience.group.tolist() == [7, 7, 2, 2, 2]
    assert experience.reward.tolist() == [1.0, 0.0, 0.5, 0.25, 1.0]
    assert experience.version.tolist() == [3, 4, 3, 3, 3]  # the oldest of its tokens'
    assert experience.truncated.tolist() == [False, False, True, False, False]
    assert experience.response_lengths.tolist() == [3, 1, 4, 3, 2]


def test_selecting_takes_whole_sequences_in_the_order_asked_for(ragged):
    experience = Experience.from_samples(ragged)
    experience.advantages = torch.arange(float(len(experience.tokens)))
    picked = experience.select([3, 0])
    parts = experience.tokens.split(experience.lengths.tolist())
    marks = experience.advantages.split(experience.lengths.tolist())
    torch.testing.assert_close(picked.tokens, torch.cat([parts[3], parts[0]]))
    torch.testing.assert_close(picked.advantages, torch.cat([marks[3], marks[0]]))
    assert picked.group.tolist() == [2, 7]
    assert picked.values is None


def test_selecting_nothing_gives_an_empty_experience(ragged):
    empty = Experience.from_samples(ragged).select([])
    assert len(empty.tokens) == len(empty.lengths) == 0


def test_splitting_and_joining_again_loses_no_sequence(ragged):
    experience = Experience.from_samples(ragged)
    parts = experience.split(2, seed=5)
    assert sorted(len(part.lengths) for part in parts) == [2, 3]
    joined = concat(parts)
    order = [int((joined.reward == r).nonzero()[0, 0]) for r in (0.0, 0.25, 0.5)]
    torch.testing.assert_close(
        joined.select(order).tokens, experience.select([1, 3, 2]).tokens, rtol=0, atol=0
    )
    assert len(joined.tokens) == len(experience.tokens)


def test_the_split_depends_on_the_seed_alone():
    assert shuffled_parts(100, 3, seed=[1, 2]) == shuffled_parts(100, 3, seed=[1, 2])
    assert shuffled_parts(100, 3, seed=[1, 2]) != shuffled_parts(100, 3, seed=[1, 3])
    assert sorted(itertools.chain(*shuffled_parts(100, 3, seed=0))) == list(range(100))


def test_a_microbatch_carries_the_filled_fields_and_weighs_its_shares(ragged):
    experience = Experience.from_samples(ragged)
    experience.advantages = torch.randn(len(experience.tokens))
    batch = experience.microbatch([2, 1])
    index = experience.token_index([2, 1])
    assert set(batch.fields) == {"advantages"}
    torch.testing.assert_close(batch.fields["advantages"], experience.advantages[index])
    torch.testing.assert_close(batch.mask, experience.response[index])
    assert batch.cu_seqlens.tolist() == [0, 7, 9]
    assert batch.max_seqlen == 7
    assert batch.weight == 5.0  # response tokens
    experience.shares = experience.response / 4
    assert experience.microbatch([2, 1]).weight == pytest.approx(5 / 4)


def test_an_empty_microbatch_weighs_nothing(ragged):
    batch = Experience.from_samples(ragged).microbatch([])
    assert batch.weight == 0.0
    assert batch.num_tokens == 0


def test_an_experience_survives_its_file(ragged, tmp_path):
    experience = Experience.from_samples(ragged)
    experience.values = torch.randn(len(experience.tokens))
    experience.save(tmp_path / "batch.safetensors")
    loaded = Experience.load(tmp_path / "batch.safetensors")
    assert loaded.advantages is None
    for name, value in experience.tensors().items():
        torch.testing.assert_close(loaded.tensors()[name], value, rtol=0, atol=0)


def test_samples_survive_their_file_exactly(ragged, tmp_path):
    ragged[0].parts, ragged[0].error = {"format": 0.1}, "timeout"
    ragged[1].row = {"tokens": np.arange(3), "level": np.int32(4)}
    save_samples(ragged, tmp_path / "samples.jsonl")
    loaded = load_samples(tmp_path / "samples.jsonl")
    assert loaded[1].row == {"tokens": [0, 1, 2], "level": 4}
    ragged[1].row = loaded[1].row
    assert loaded == ragged


def test_a_row_of_a_sample_is_json(ragged):
    assert json.loads(json.dumps(ragged[3].as_row())) == ragged[3].as_row()


def broken(sample, **changes):
    """The sample with some of its fields replaced."""
    return lambda: Sample(**{**sample.as_row(), **changes})


def test_wrong_samples_are_refused(ragged):
    with pytest.raises(ValueError, match="response of 0 tokens: both need at least one"):
        broken(ragged[0], response_tokens=[], logprobs=[], versions=[])()
    with pytest.raises(ValueError, match="2 logprobs for 3 response tokens; give one for each"):
        broken(ragged[0], logprobs=[0.0, 0.0])()
    with pytest.raises(ValueError, match="1 chosen for 3"):
        broken(ragged[0], chosen=[True])()
    with pytest.raises(ValueError, match="0 samples make no experience"):
        Experience.from_samples([])
    ragged[0].row = {"x": object()}
    with pytest.raises(TypeError, match="row holds a object, which JSON has not; remove it"):
        ragged[0].as_row()


def test_wrong_experiences_are_refused(ragged):
    good = Experience.from_samples(ragged).tensors()
    with pytest.raises(ValueError, match=r"response has shape \[3\] beside 5 sequences of 24"):
        Experience(**{**good, "response": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="first token of a sequence, which no policy chose"):
        Experience(**{**good, "response": torch.ones(24, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"reward has shape \[2\].*make it \[5\]"):
        Experience(**{**good, "reward": torch.zeros(2)})
    with pytest.raises(ValueError, match="parts=6 of 5 sequences; use 1 to 5"):
        Experience(**good).split(6, seed=0)
    other = Experience(**good, values=torch.zeros(24))
    with pytest.raises(ValueError, match=r"fields \['values'\] are filled in some"):
        concat([Experience(**good), other])
