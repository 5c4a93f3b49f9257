"""Checksums of large buffers, computed by another thread while their bytes are written.

Neither holds up Python meanwhile. What the thread has not begun when all is written is computed by
whoever asks for the sum; a crc32, which takes longer than the write, is cut into spans for that.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from .checksum import OF_PIECES, Checksum, crc32_joined

ASIDE_BYTES: dict[Checksum, int] = {"crc32": 512 << 10, "xxh3_64": 4 << 20}
"""Bytes of a buffer from which its checksum takes longer than to hand it to another thread."""
SPAN_BYTES = 4 << 20
"""Bytes of a span: a millisecond. All but the last are of one size, so that what it takes to join
crc32s of that size is worked out once."""

Pieces = Sequence[memoryview]


class Aside:
    """One thread that computes checksums."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)

    def begin(self, kind: Checksum, data: Pieces) -> Callable[[], int]:
        """Begin with the checksum of bytes in pieces; return what waits for it and returns it.

        Args:
            kind: Which checksum.
            data: The bytes, end to end; they must not change before the checksum is there.
        """
        of, size = OF_PIECES[kind], sum(map(len, data))
        if size < ASIDE_BYTES[kind]:
            found = of(data)
            return lambda: found
        spans = spans_of(data, SPAN_BYTES) if kind == "crc32" else [data]
        begun = [self._thread.submit(of, span) for span in spans]

        def checksum() -> int:
            found = _shared(of, spans, begun)
            if len(found) == 1:
                return found[0]
            return crc32_joined(found, [sum(map(len, span)) for span in spans])

        return checksum

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()


def _shared(
    of: Callable[[Pieces], int], spans: Sequence[Pieces], begun: Sequence["Future[int]"]
) -> list[int]:
    """Return the checksum of each span; those that still wait are computed here, last first."""
    last: list[int] = []
    for span, future in zip(reversed(spans), reversed(begun), strict=True):
        if not future.cancel():
            break
        last.append(of(span))
    first = [future.result() for future in begun[: len(begun) - len(last)]]
    return first + last[::-1]


def spans_of(data: Pieces, size: int) -> list[list[memoryview]]:
    """Return bytes in pieces as spans of ``size`` bytes, the last one of what is left.

    >>> [[bytes(piece) for piece in span] for span in spans_of([memoryview(b"abcd")] * 2, 3)]
    [[b'abc'], [b'd', b'ab'], [b'cd']]
    """
    spans: list[list[memoryview]] = []
    room = 0
    for piece in data:
        while piece:
            if not room:
                spans.append([])
                room = size
            spans[-1].append(piece[:room])
            room -= len(spans[-1][-1])
            piece = piece[len(spans[-1][-1]) :]
    return spans
