import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, interleave_datasets, mix_datasets
from nanorlhf.nanosets.mix import blend


def blend_by_definition(weights, num_rows):
    """Whose next turn is due first, one row at a time."""
    counts = [0] * len(weights)
    datasets, turns = [], []
    for _ in range(num_rows):
        due = [(count + 0.5) / weight for count, weight in zip(counts, weights, strict=True)]
        chosen = due.index(min(due))
        datasets.append(chosen)
        turns.append(counts[chosen])
        counts[chosen] += 1
    return datasets, turns


@pytest.mark.parametrize("weights", [[1], [1, 1], [3, 1], [0.7, 0.2, 0.1], [5, 1, 1, 1, 0.01]])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 500])
def test_a_blend_takes_the_turn_that_is_due(weights, num_rows):
    found = blend(weights, num_rows)
    # Weights that sum to 1 in both, so that ties are ties in both.
    scaled = (np.array(weights) / np.sum(weights)).tolist()
    assert [part.tolist() for part in found] == list(blend_by_definition(scaled, num_rows))


def test_every_prefix_follows_the_weights():
    weights = np.array([0.61, 0.3, 0.07, 0.02])
    found = blend(weights, 5000).datasets
    counts = np.cumsum(found[:, None] == np.arange(4), axis=0)
    wanted = np.arange(1, 5001)[:, None] * weights
    assert (np.abs(counts - wanted) <= (1 + weights * 4) / 2).all()


def lengths_of(counts):
    return [Dataset.from_dict({"a": [100 * d + i for i in range(n)]}) for d, n in enumerate(counts)]


def test_a_dataset_that_runs_out_starts_over_in_another_order():
    found = mix_datasets(lengths_of([3, 50]), [1, 1], num_rows=40, seed=2)
    values = np.array(found["a"][:])
    first, second = values[values < 100], values[values >= 100]
    assert len(first) == len(second) == 20
    rounds = [first[k : k + 3].tolist() for k in range(0, 18, 3)]
    assert all(sorted(round_) == [0, 1, 2] for round_ in rounds)
    assert len(set(map(tuple, rounds))) > 1
    assert len(set(second.tolist())) == 20
    again = mix_datasets(lengths_of([3, 50]), [1, 1], num_rows=40, seed=2)
    assert again["a"][:] == values.tolist()
    assert mix_datasets(lengths_of([3]), [1], num_rows=5)["a"][:] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, float("nan")], []])
def test_weights_that_are_not_positive_are_refused(weights):
    with pytest.raises(ValueError, match="are not all positive; leave those datasets out"):
        blend(weights, 5)


def test_an_empty_dataset_cannot_be_mixed():
    with pytest.raises(ValueError, match="an empty one has none to give; drop it"):
        mix_datasets(lengths_of([3, 0]), [1, 1], num_rows=2)


def test_interleaving_in_turn_stops_as_asked():
    dsets = lengths_of([3, 2, 4])
    assert interleave_datasets(dsets)["a"][:] == [0, 100, 200, 1, 101, 201]
    found = interleave_datasets(dsets, stopping_strategy="all_exhausted")
    assert found["a"][:] == [0, 100, 200, 1, 101, 201, 2, 100, 202, 0, 101, 203]
    found = interleave_datasets(dsets, stopping_strategy="all_exhausted_without_replacement")
    assert found["a"][:] == [0, 100, 200, 1, 101, 201, 2, 202, 203]


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ([2, 2], {"probabilities": [0.5, 0.6]}, "give each one, >= 0, that sum to 1"),
        ([2, 2], {"probabilities": [1.0]}, "for 2 datasets; give each one"),
        ([2, 2], {"probabilities": [1.5, -0.5]}, "give each one, >= 0"),
        ([2, 0], {"probabilities": [0.5, 0.5]}, "an empty one is drawn; drop it"),
        (
            [2, 2],
            {"probabilities": [1.0, 0.0], "stopping_strategy": "all_exhausted"},
            "a dataset of probability 0 is never exhausted; leave it out",
        ),
        ([2, 0], {"stopping_strategy": "all_exhausted"}, "an empty one has none; drop it"),
        ([2, 2], {"stopping_strategy": "never"}, "stopping_strategy='never' is none of"),
        ([], {}, "holds no dataset; give at least one"),
    ],
)
def test_what_cannot_be_interleaved_is_refused(counts, options, message):
    with pytest.raises(ValueError, match=message):
        interleave_datasets(lengths_of(counts), **options)


def test_a_dataset_of_probability_0_gives_nothing():
    found = interleave_datasets(lengths_of([2, 0, 3]), [0.5, 0.0, 0.5], seed=1)
    assert set(found["a"]) <= {0, 1, 200, 201, 202}
