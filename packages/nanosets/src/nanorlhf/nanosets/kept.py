"""What was read last, up to some bytes."""

from collections.abc import Callable, Hashable

from .arrays import Array


class Kept:
    """Arrays by key; those used least recently go when there are too many bytes.

    Args:
        max_bytes: What to keep at most, but for the last array, which stays whatever its size.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._arrays: dict[Hashable, Array] = {}

    def __len__(self) -> int:
        return len(self._arrays)

    def get(self, key: Hashable, read: Callable[[], Array]) -> Array:
        """Return the array of a key, from ``read`` if it is not kept."""
        found = self._arrays.pop(key, None)
        if found is None:
            found = read()
            self.size_bytes += found.nbytes
        self._arrays[key] = found  # a dict keeps its order, so that the last used stands last
        while self.size_bytes > self.max_bytes and len(self._arrays) > 1:
            self.size_bytes -= self._arrays.pop(next(iter(self._arrays))).nbytes
        return found
