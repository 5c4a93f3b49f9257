"""Frames: how control messages become bytes and back.

A message is a tuple of plain values (None, bool, int, float, str, bytes, tuple, list, dict) and
starts with its verb. ``marshal`` encodes it: it is the fastest codec of the standard library, and
it cannot run code, so only user payloads, which travel as opaque bytes, are ever unpickled::

    | length, uint64 little endian | marshal(message) | length | marshal(message) | ...
"""

import marshal
import struct
from typing import Any

Message = tuple[Any, ...]

_HEADER = struct.Struct("<Q")
_MAX_FRAME = 1 << 40  # a length beyond this is a broken stream, not a message


def pack(message: Message) -> bytes:
    """Return the frame of one message.

    Raises:
        ValueError: The message holds something marshal does not know.

    >>> Unpacker().feed(pack(("get", 1, [2, 3])))
    [('get', 1, [2, 3])]
    """
    body = marshal.dumps(message)
    return _HEADER.pack(len(body)) + body


class Unpacker:
    """Cuts a byte stream, which arrives in arbitrary chunks, back into messages.

    Args:
        max_frame: Bytes of one message; a longer one is a broken stream.
    """

    def __init__(self, max_frame: int = _MAX_FRAME) -> None:
        self._rest = b""
        self._max_frame = max_frame

    def feed(self, chunk: bytes) -> list[Message]:
        """Return the messages that ``chunk`` completes, in order.

        Raises:
            ValueError: The stream is not made of frames.
        """
        data = self._rest + chunk if self._rest else chunk
        messages: list[Message] = []
        start = 0
        with memoryview(data) as view:
            while len(data) - start >= _HEADER.size:
                (length,) = _HEADER.unpack_from(data, start)
                if length > self._max_frame:
                    raise ValueError(
                        f"frame length={length} is over {self._max_frame}: broken stream"
                    )
                end = start + _HEADER.size + length
                if end > len(data):
                    break
                messages.append(marshal.loads(view[start + _HEADER.size : end]))
                start = end
        self._rest = data[start:]
        return messages
