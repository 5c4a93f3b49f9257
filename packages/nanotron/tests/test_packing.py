import numpy as np
import pytest
import torch

from nanorlhf.nanotron import Microbatch, balance


def test_sequences_are_laid_end_to_end_with_their_fields():
    mb = Microbatch.from_sequences(
        [[1, 2, 3], [], np.array([4, 5], np.int32)],
        [[1, 0, 1], [], [True, True]],
        {"reward": [[0.5, 1, 2], [], [3, 4]], "version": [[1, 1, 1], [], [2, 2]]},
    )
    assert mb.tokens.tolist() == [1, 2, 3, 4, 5]
    assert mb.tokens.dtype == torch.int64
    assert mb.cu_seqlens.tolist() == [0, 3, 3, 5]
    assert mb.cu_seqlens.dtype == torch.int32
    assert (mb.max_seqlen, mb.num_tokens, mb.weight) == (3, 5, 2.0)
    assert mb.mask.tolist() == [False, False, True, False, True]
    assert mb.targets.tolist() == [2, 4]
    assert mb.fields["reward"].dtype == torch.float32
    assert mb.fields["version"].tolist() == [1, 1, 1, 2, 2]


def test_an_empty_microbatch_weighs_nothing():
    mb = Microbatch.from_sequences([])
    assert (mb.num_tokens, mb.max_seqlen, mb.weight) == (0, 0, 0.0)
    assert mb.cu_seqlens.tolist() == [0]


def test_a_weight_of_its_own_replaces_the_token_count():
    assert Microbatch.from_sequences([[1, 2]], weight=0.25).weight == 0.25


def test_moving_keeps_everything_and_adding_fields_leaves_the_original():
    mb = Microbatch.from_sequences([[1, 2]], weight=0.25)
    assert mb.to("cpu") is mb
    moved = mb.to("meta")
    assert moved.targets.device.type == moved.tokens.device.type == "meta"
    assert moved.weight == 0.25
    more = mb.with_fields(old=torch.zeros(2))
    assert list(more.fields) == ["old"]
    assert not mb.fields
    assert more.weight == 0.25


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"masks has rows of \[2\], sequences have \[3\]"):
        Microbatch.from_sequences([[1, 2, 3]], [[True, True]])
    with pytest.raises(ValueError, match=r"old has rows of \[1\], sequences have \[3\]"):
        Microbatch.from_sequences([[1, 2, 3]], fields={"old": [[0.0]]})


def test_a_mask_on_a_first_token_is_refused():
    with pytest.raises(ValueError, match="first token of a sequence, which nothing predicts"):
        Microbatch(
            tokens=torch.arange(3),
            cu_seqlens=torch.tensor([0, 1, 3], dtype=torch.int32),
            max_seqlen=2,
            mask=torch.tensor([False, True, False]),
        )
    with pytest.raises(ValueError, match="differ from the 3 tokens"):
        Microbatch(
            tokens=torch.arange(3),
            cu_seqlens=torch.tensor([0, 3], dtype=torch.int32),
            max_seqlen=3,
            mask=torch.zeros(2, dtype=torch.bool),
        )


@pytest.mark.parametrize("seed", range(200))
def test_balance_keeps_every_sequence_once_and_the_token_limit(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 50, size=rng.integers(0, 60)).tolist()
    ranks, max_tokens = int(rng.integers(1, 6)), int(rng.integers(1, 81))
    plan = balance(lengths, ranks=ranks, max_tokens=max_tokens)
    assert len(plan) == ranks
    assert len({len(rank) for rank in plan}) == 1
    flat = [mb for rank in plan for mb in rank]
    assert sorted(i for mb in flat for i in mb) == list(range(len(lengths)))
    assert all(len(mb) == 1 or sum(lengths[i] for i in mb) <= max_tokens for mb in flat if mb)


def test_balance_evens_out_tokens_between_ranks():
    lengths = np.random.default_rng(0).integers(10, 200, size=256).tolist()
    plan = balance(lengths, ranks=4, max_tokens=2048)
    loads = [sum(lengths[i] for mb in rank for i in mb) for rank in plan]
    assert max(loads) / (sum(loads) / 4) < 1.01
    assert len(plan[0]) <= -(-sum(lengths) // (4 * 2048)) + 1


def test_balance_refuses_impossible_sizes():
    with pytest.raises(ValueError, match="ranks=0, max_tokens=8: both must be at least 1"):
        balance([1], ranks=0, max_tokens=8)
