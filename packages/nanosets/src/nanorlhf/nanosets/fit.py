"""Which documents go together: groups of limited size, as full as can be."""

from bisect import bisect_left, insort
from itertools import pairwise

import numpy as np

from .gather import Ints, Ragged, offsets_of


def best_fit(lengths: Ints, capacity: int) -> Ragged:
    """Return the numbers of documents grouped so that no group exceeds ``capacity``.

    Best fit decreasing: the longest document first, each where it leaves the least room. Documents
    of one length are placed together, so the cost is O(N log N) and a loop over distinct lengths.

    Args:
        lengths: int64 [N]; documents of length 0 are in no group.
        capacity: The limit.

    Returns:
        Groups in the order of their first document, each in ascending order.

    Raises:
        ValueError: ``capacity`` is not positive, or a document is longer.
    """
    if capacity < 1:
        raise ValueError(f"capacity={capacity} is not positive; use 1 or more")
    if len(lengths) and lengths.max() > capacity:
        row = int(np.argmax(lengths))
        raise ValueError(
            f"row {row} has {lengths[row]} tokens for a capacity of {capacity}; cut it, raise the "
            f"capacity or pass overlong='drop'"
        )
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    bins = np.zeros(len(order), np.int64)
    room = _Room(capacity)
    found = lengths[order]
    edges = [*np.flatnonzero(np.diff(found, prepend=0)).tolist(), len(order)]
    for start, stop in pairwise(edges):
        bins[start:stop] = room.place(int(found[start]), stop - start)
    return _grouped(order, bins)


class _Room:
    """Bins by the room that they have left."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.opened = 0
        self.rooms: list[int] = []
        """The rooms that some bin has, ascending."""
        self.bins: dict[int, list[Ints]] = {}

    def place(self, length: int, count: int) -> Ints:
        """Return the bins of ``count`` documents of one length, tightest first."""
        placed: list[Ints] = []
        while count:
            room, bins = self._tightest(length, count)
            each = room // length
            taken = min(count, each * len(bins))
            used = bins[: -(-taken // each)]
            rest = taken - each * (len(used) - 1)
            self._put(room, bins[len(used) :])
            self._put(room - each * length, used[:-1])
            self._put(room - rest * length, used[-1:])
            placed.append(np.repeat(used, each)[:taken])
            count -= taken
        return np.concatenate(placed)

    def _tightest(self, length: int, count: int) -> tuple[int, Ints]:
        at = bisect_left(self.rooms, length)
        if at < len(self.rooms):
            room = self.rooms.pop(at)
            return room, np.concatenate(self.bins.pop(room))
        fresh = -(-count // (self.capacity // length))
        self.opened += fresh
        return self.capacity, np.arange(self.opened - fresh, self.opened)

    def _put(self, room: int, bins: Ints) -> None:
        if len(bins) and room:
            if room not in self.bins:
                insort(self.rooms, room)
                self.bins[room] = []
            self.bins[room].append(bins)


def _grouped(documents: Ints, bins: Ints) -> Ragged:
    ascending = np.argsort(documents)
    documents, bins = documents[ascending], bins[ascending]
    # Bins are numbered anew by their first document, which is where each of them first appears.
    _, first, labels = np.unique(bins, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    labels = rank[labels]
    sizes = np.bincount(labels, minlength=len(first)).astype(np.int64)
    return Ragged(documents[np.argsort(labels, kind="stable")], offsets_of(sizes))
