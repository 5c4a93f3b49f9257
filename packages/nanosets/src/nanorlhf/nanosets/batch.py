"""Token columns of several sequences, packed end to end, as varlen attention takes them.

Shape legend: S = sequences, T = tokens of all of them, L = tokens of the longest.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .gather import Ints, Ragged

if TYPE_CHECKING:
    from .dataset import Dataset


class Batch(Mapping[str, NDArray[Any]]):
    """Packed columns by name, each [T], with the bounds of the sequences that they share.

    Args:
        values: The columns, all of T values.
        offsets: int64 [S + 1], from 0 to T.

    >>> batch = Batch({"tokens": np.array([5, 6, 7])}, np.array([0, 1, 3]))
    >>> batch.position_ids
    array([0, 0, 1])
    >>> batch.padded("tokens", pad_value=-1).tolist()
    [[5, -1], [6, 7]]
    """

    def __init__(self, values: Mapping[str, NDArray[Any]], offsets: Ints) -> None:
        self._values = dict(values)
        self.offsets = offsets

    @classmethod
    def of(cls, ds: "Dataset", rows: Ints, columns: Sequence[str]) -> "Batch":
        """Return rows of list columns, each row a sequence.

        Raises:
            TypeError: A column does not hold lists of numbers or bools.
            ValueError: Two columns of a row differ in length.
        """
        found = {name: ds.gather(name, rows) for name in columns}
        first = found[columns[0]].offsets
        for name, (_, offsets) in found.items():
            wrong = np.flatnonzero(np.diff(offsets) != np.diff(first))
            if len(wrong):
                refuse_lengths(int(rows[wrong[0]]), columns[0], name)
        return cls({name: values for name, (values, _) in found.items()}, first)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        sizes = f"{self.num_sequences} sequences, {int(self.offsets[-1])} tokens"
        return f"Batch({list(self._values)}, {sizes})"

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """Tokens of each sequence, int64 [S]."""
        return np.diff(self.offsets)

    @property
    def cu_seqlens(self) -> NDArray[np.int32]:
        """The offsets as varlen attention takes them, int32 [S + 1].

        Raises:
            ValueError: There are more tokens than int32 counts.
        """
        if self.offsets[-1] > np.iinfo(np.int32).max:
            raise ValueError(
                f"{self.offsets[-1]} tokens are too many for int32; use smaller batches"
            )
        return self.offsets.astype(np.int32)

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.lengths.max(initial=0))

    @property
    def position_ids(self) -> Ints:
        """Place of each token in its sequence, int64 [T]."""
        return np.arange(self.offsets[-1]) - np.repeat(self.offsets[:-1], self.lengths)

    def ragged(self, name: str) -> Ragged:
        """Return a column with its bounds."""
        return Ragged(self._values[name], self.offsets)

    def padded(
        self, name: str, *, pad_value: float = 0, length: int | None = None, left: bool = False
    ) -> NDArray[Any]:
        """Return a column as a rectangle [S, L]; see ``Ragged.padded``."""
        return self.ragged(name).padded(pad_value=pad_value, length=length, left=left)

    def torch(self, device: Any = None) -> dict[str, Any]:  # noqa: ANN401 - torch.device or str
        """Return the columns, ``cu_seqlens`` and ``position_ids`` as tensors on a device."""
        import torch

        arrays = {**self._values, "cu_seqlens": self.cu_seqlens, "position_ids": self.position_ids}
        found = {}
        for name, array in arrays.items():
            # A tensor cannot be read-only; only a view of a file is.
            owned = array if array.flags.writeable else array.copy()
            found[name] = torch.from_numpy(owned).to(device)
        return found


def refuse_lengths(row: int, one: str, other: str) -> None:
    """Say that two columns of a row differ in length.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"row {row}: {other!r} is not as long as {one!r}; give one value a token")
