"""Documents of any length as samples of one length: cut where a sample is full, or kept whole.

``TokenStream`` puts the documents end to end and cuts the stream every ``length`` tokens, as
Megatron-LM's GPT dataset does (megatron/core/datasets/gpt_dataset.py): nothing is padded, and a
sample may begin and end inside a document. ``WholeDocuments`` puts documents that fit together
into one sample and never splits one, which is what fine-tuning wants. Either is a sequence of
``Batch`` whose bounds are those of the documents, so attention and positions never cross them.

::

    documents   aaaaa bbb ccccccc dd
    stream, 6   aaaaab | bbcccc | cccdd.      whole, 8   aaaaabbb | cccccc.. dd goes with c
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .batch import Batch, refuse_lengths
from .fit import best_fit
from .gather import Ints, expand, offsets_of, resolve

if TYPE_CHECKING:
    from .dataset import Dataset


class Pieces(NamedTuple):
    """Ranges of documents, in order, int64 [P]."""

    documents: Ints
    starts: Ints
    stops: Ints


class Samples(ABC):
    """Packed samples of a dataset: ``samples[i]`` is one, ``samples[[i, j]]`` several as one batch.

    Args:
        ds: The documents, one a row.
        columns: Names of list columns of one value a token; the first counts.
    """

    def __init__(self, ds: "Dataset", columns: str | Sequence[str]) -> None:
        self.ds = ds
        self.columns = [columns] if isinstance(columns, str) else list(columns)

    @abstractmethod
    def batch(self, samples: Ints) -> Batch:
        """Return samples, by number, end to end."""

    @abstractmethod
    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Batch:  # noqa: ANN401 - int, slice, list or array
        """Return one sample, or those that a slice or integer sequence picks, end to end.

        Raises:
            IndexError: There is no such sample.
        """
        if isinstance(key, int | np.integer):
            key = [int(key)]
        return self.batch(resolve(key, len(self)))

    def __iter__(self) -> Iterator[Batch]:
        return (self[number] for number in range(len(self)))


class TokenStream(Samples):
    """All documents end to end, cut every ``length`` tokens; O(documents) to make, vectorised.

    Args:
        ds: The documents, one a row.
        length: Tokens from the start of a sample to the start of the next.
        columns: Names of list columns of one value a token; the first counts.
        overlap: Further tokens of a sample, which the next one starts with; 1 gives inputs and
            labels shifted by one.
        seed: Of the order of the documents; None for the order of the rows.
        epochs: How often every document comes, in another order each time.
        drop_last: Leave out a last sample that is not full.

    Raises:
        ValueError: ``length`` or ``epochs`` is not positive, or ``overlap`` negative.

    >>> from nanorlhf.nanosets import Dataset
    >>> stream = TokenStream(Dataset.from_dict({"tokens": [[1, 2, 3], [4], [5, 6, 7]]}), 3)
    >>> stream[1]["tokens"], stream[1].cu_seqlens
    (array([4, 5, 6]), array([0, 1, 3], dtype=int32))
    """

    def __init__(
        self,
        ds: "Dataset",
        length: int,
        *,
        columns: str | Sequence[str] = "tokens",
        overlap: int = 0,
        seed: int | None = None,
        epochs: int = 1,
        drop_last: bool = True,
    ) -> None:
        super().__init__(ds, columns)
        if length < 1 or overlap < 0 or epochs < 1:
            raise ValueError(f"{length=} and {epochs=} are positive, {overlap=} at least 0")
        self.length = length
        self.overlap = overlap
        lengths = ds[self.columns[0]].lengths()
        filled = np.flatnonzero(lengths)
        self.documents = np.concatenate([_order(filled, seed, epoch) for epoch in range(epochs)])
        self.offsets = offsets_of(lengths[self.documents])
        tokens = max(0, int(self.offsets[-1]) - overlap)
        self._num_samples = tokens // length if drop_last else -(-tokens // length)

    def __len__(self) -> int:
        return self._num_samples

    def pieces(self, samples: Ints) -> Pieces:
        """Return which ranges of which rows samples are made of."""
        begins = samples * self.length
        ends = np.minimum(begins + self.length + self.overlap, self.offsets[-1])
        first = np.searchsorted(self.offsets, begins, side="right") - 1
        last = np.searchsorted(self.offsets, ends, side="left") - 1
        counts = last - first + 1
        places = expand(first, counts)
        starts = np.zeros(len(places), np.int64)
        stops = self.offsets[places + 1] - self.offsets[places]
        edges = offsets_of(counts)
        # Only the first document of a sample starts, and only the last one stops, elsewhere.
        starts[edges[:-1]] = begins - self.offsets[first]
        stops[edges[1:] - 1] = ends - self.offsets[last]
        return Pieces(self.documents[places], starts, stops)

    def batch(self, samples: Ints) -> Batch:
        """Return samples, by number, end to end; a document in two of them is two sequences."""
        pieces = self.pieces(samples)
        values = {name: self._cut(name, pieces) for name in self.columns}
        return Batch(values, offsets_of(pieces.stops - pieces.starts))

    def _cut(self, name: str, pieces: Pieces) -> NDArray[Any]:
        views = self.ds[name].values(pieces.documents)
        ranges = zip(pieces.starts.tolist(), pieces.stops.tolist(), strict=True)
        cut = [_range(view, *ends) for view, ends in zip(views, ranges, strict=True)]
        lengths = np.fromiter(map(len, cut), np.int64, len(cut))
        wrong = np.flatnonzero(lengths != pieces.stops - pieces.starts)
        if len(wrong):
            refuse_lengths(int(pieces.documents[wrong[0]]), self.columns[0], name)
        return np.concatenate(cut) if cut else self.ds.gather(name, []).values


class WholeDocuments(Samples):
    """Documents put together, none of them split, so that samples are as full as can be.

    Best fit, the longest first: a document goes where it leaves the least room (Ding et al.,
    arXiv:2404.10830).

    Args:
        ds: The documents, one a row; those without tokens are left out.
        capacity: Tokens that a sample holds at most.
        columns: Names of list columns of one value a token; the first counts.
        overlong: What becomes of a document with more tokens: an error, or nothing.

    Raises:
        ValueError: ``capacity`` is not positive, or a document is longer.

    >>> from nanorlhf.nanosets import Dataset
    >>> ds = Dataset.from_dict({"tokens": [[1] * 5, [2] * 3, [3] * 6, [4] * 2]})
    >>> WholeDocuments(ds, 8).rows.rows()
    [array([0, 1]), array([2, 3])]
    """

    def __init__(
        self,
        ds: "Dataset",
        capacity: int,
        *,
        columns: str | Sequence[str] = "tokens",
        overlong: Literal["error", "drop"] = "error",
    ) -> None:
        super().__init__(ds, columns)
        lengths = ds[self.columns[0]].lengths()
        if overlong == "drop":
            lengths = np.where(lengths > capacity, 0, lengths)
        self.rows = best_fit(lengths, capacity)
        """Row numbers of the documents of each sample."""

    def __len__(self) -> int:
        return len(self.rows.offsets) - 1

    def batch(self, samples: Ints) -> Batch:
        """Return samples, by number, end to end."""
        rows, offsets = self.rows
        places = expand(offsets[samples], offsets[samples + 1] - offsets[samples])
        return Batch.of(self.ds, rows[places], self.columns)


def _order(documents: Ints, seed: int | None, epoch: int) -> Ints:
    if seed is None:
        return documents
    return np.random.default_rng([seed, epoch]).permutation(documents)


def _range(view: Any, start: int, stop: int) -> NDArray[Any]:  # noqa: ANN401 - array, list or None
    if isinstance(view, np.ndarray):
        return view[start:stop]
    if view is None:
        return np.zeros(0, np.int64)
    raise ValueError("a list has a null inside, or holds no numbers; filter or map it first")
