"""Rows of several datasets in turn, by chance or by weight.

``interleave_datasets`` gives the rows that Hugging Face datasets gives for the same seed.
``mix_datasets`` leaves nothing to chance: after any number of rows each dataset has had its part.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from .concat import concatenate_datasets
from .dataset import Dataset
from .gather import Ints, offsets_of

StoppingStrategy = Literal["first_exhausted", "all_exhausted", "all_exhausted_without_replacement"]
DRAW = 1000
"""Datasets drawn at a time; part of what a seed means."""


def interleave_datasets(
    datasets: Sequence[Dataset],
    probabilities: Sequence[float] | None = None,
    seed: int | None = None,
    *,
    stopping_strategy: StoppingStrategy = "first_exhausted",
) -> Dataset:
    """Return the rows of several datasets, one from each in turn or from one drawn at random.

    Args:
        datasets: The datasets; see ``concatenate_datasets`` for how their columns go together.
        probabilities: Chance of each dataset to give the next row; None for in turn.
        seed: Of the draws.
        stopping_strategy: Stop when the first dataset has given all its rows; or when all have,
            those that did before starting over; or when all have, those that did before being
            left out (``"all_exhausted_without_replacement"``).

    Raises:
        ValueError: The probabilities do not fit, a dataset that is to give a row has none, or
            one that is to be exhausted is never drawn.
    """
    lengths = np.array([len(ds) for ds in datasets], np.int64)
    if stopping_strategy not in get_args(StoppingStrategy):
        raise ValueError(f"{stopping_strategy=} is none of {get_args(StoppingStrategy)}")
    whole = concatenate_datasets(datasets)
    if probabilities is None:
        return whole.select(_in_turn(lengths, stopping_strategy))
    chances = np.asarray(probabilities, np.float64)
    _check(lengths, chances, stopping_strategy)
    return whole.select(_at_random(lengths, chances, seed, stopping_strategy))


def mix_datasets(
    datasets: Sequence[Dataset],
    weights: Sequence[float],
    *,
    num_rows: int,
    seed: int | None = None,
) -> Dataset:
    """Return ``num_rows`` rows of several datasets such that every prefix follows the weights.

    A dataset that runs out starts over, in another order.

    Args:
        datasets: The datasets; see ``concatenate_datasets`` for how their columns go together.
        weights: Positive, in any unit.
        num_rows: Rows of the result.
        seed: Of the order of the rows within each dataset; None for the order that they have.

    Raises:
        ValueError: A weight is not positive, or a dataset is empty.

    >>> one, two = Dataset.from_dict({"a": [1, 2]}), Dataset.from_dict({"a": [10, 20, 30]})
    >>> mix_datasets([one, two], [1, 2], num_rows=6)["a"][:]
    [10, 1, 20, 30, 2, 10]
    """
    lengths = [len(ds) for ds in datasets]
    if 0 in lengths:
        raise ValueError(f"datasets of {lengths} rows: an empty one has none to give; drop it")
    found = blend(weights, num_rows)
    rows = np.empty(num_rows, np.int64)
    for number, (start, length) in enumerate(zip(_starts(lengths), lengths, strict=True)):
        at = np.flatnonzero(found.datasets == number)
        rows[at] = start + _over_and_over(length, len(at), seed, number)
    return concatenate_datasets(datasets).select(rows)


class Blend(NamedTuple):
    """Which dataset gives each row, and which of its rows that is, int64 [N]."""

    datasets: Ints
    turns: Ints


def blend(weights: Sequence[float], num_rows: int) -> Blend:
    """Return whose turn it is, such that every prefix of the turns follows the weights.

    The k-th turn of a dataset of weight w is due at time (k + 1/2) / w, and turns come in the
    order of that time. With the weights scaled to the sum 1, after any n turns a dataset of
    weight w has had n w of them, give or take (1 + w D) / 2 for D datasets. The same goal as
    Megatron-LM's blended index (megatron/core/datasets/helpers.cpp), as a sort, not a loop.

    Raises:
        ValueError: A weight is not positive.

    >>> blend([2, 1], 6).datasets.tolist()
    [0, 1, 0, 0, 1, 0]
    """
    given = np.asarray(weights, np.float64)
    if given.ndim != 1 or not len(given) or not (given > 0).all() or not np.isfinite(given).all():
        raise ValueError(f"weights={list(weights)} are not all positive; leave those datasets out")
    scaled = given / given.sum()
    counts = np.ceil(scaled * num_rows + (1 + scaled * len(given)) / 2).astype(np.int64)
    datasets = np.repeat(np.arange(len(given)), counts)
    turns = np.arange(len(datasets)) - np.repeat(offsets_of(counts)[:-1], counts)
    due = np.argsort((turns + 0.5) / scaled[datasets], kind="stable")[:num_rows]
    return Blend(datasets[due], turns[due])


def _over_and_over(length: int, count: int, seed: int | None, number: int) -> Ints:
    """Return ``count`` row numbers below ``length``, every row once before any comes again."""
    rounds = range(-(-count // length))
    if seed is None:
        return np.arange(count) % length
    orders = [np.random.default_rng([seed, number, r]).permutation(length) for r in rounds]
    return np.concatenate([np.zeros(0, np.int64), *orders])[:count]


def _starts(lengths: Sequence[int] | Ints) -> list[int]:
    starts: list[int] = offsets_of(np.asarray(lengths, np.int64))[:-1].tolist()
    return starts


def _check(lengths: Ints, chances: NDArray[np.float64], strategy: StoppingStrategy) -> None:
    if chances.shape != lengths.shape or (chances < 0).any() or not np.isclose(chances.sum(), 1):
        raise ValueError(
            f"probabilities={chances.tolist()} for {len(lengths)} datasets; give each one, >= 0, "
            f"that sum to 1"
        )
    if (lengths[chances > 0] == 0).any():
        raise ValueError(f"datasets of {lengths.tolist()} rows: an empty one is drawn; drop it")
    if strategy != "first_exhausted" and (chances == 0).any():
        raise ValueError("a dataset of probability 0 is never exhausted; leave it out")


def _in_turn(lengths: Ints, strategy: StoppingStrategy) -> Ints:
    rounds = int(lengths.min() if strategy == "first_exhausted" else lengths.max())
    turns = np.arange(rounds)[:, None]
    if strategy == "all_exhausted" and (lengths == 0).any():
        raise ValueError(f"datasets of {lengths.tolist()} rows: an empty one has none; drop it")
    rows = np.array(_starts(lengths)) + (turns % np.maximum(lengths, 1))
    kept: Ints = rows[turns < lengths] if strategy.endswith("replacement") else rows
    return kept.reshape(-1)


def _at_random(
    lengths: Ints, chances: NDArray[np.float64], seed: int | None, strategy: StoppingStrategy
) -> Ints:
    drawn = _draws(lengths, chances, seed, first=strategy == "first_exhausted")
    turns = np.zeros(len(drawn), np.int64)
    for number in range(len(lengths)):
        at = np.flatnonzero(drawn == number)
        turns[at] = np.arange(len(at))
    rows: Ints = np.array(_starts(lengths))[drawn] + turns % np.maximum(lengths, 1)[drawn]
    return rows[turns < lengths[drawn]] if strategy.endswith("replacement") else rows


def _draws(lengths: Ints, chances: NDArray[np.float64], seed: int | None, *, first: bool) -> Ints:
    """Return drawn datasets up to the draw that exhausts the first, or the last, of them."""
    generator = np.random.default_rng(seed)
    drawable = np.flatnonzero(chances > 0)
    drawn = np.zeros(0, np.int64)
    while True:
        more = generator.choice(len(lengths), size=DRAW, p=chances)
        drawn = np.concatenate([drawn, more])
        counts = np.bincount(drawn, minlength=len(lengths))
        full = (counts >= lengths)[drawable]
        if full.any() if first else full.all():
            break
    ends = [
        int(np.flatnonzero(drawn == n)[lengths[n] - 1]) for n in drawable if counts[n] >= lengths[n]
    ]
    return drawn[: (min if first else max)(ends) + 1]
