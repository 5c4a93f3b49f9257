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

_HEADER_BYTES = 8
_pack_header = struct.Struct("<Q").pack
_unpack_header = struct.Struct("<Q").unpack_from
_MAX_FRAME = 1 << 40  # a length beyond this is a broken stream, not a message


def pack(message: Message) -> bytes:
    """Return the frame of one message.

    Raises:
        ValueError: The message holds something marshal does not know.

    >>> Unpacker().feed(pack(("get", 1, [2, 3])))
    [('get', 1, [2, 3])]
    """
    body = marshal.dumps(message)
    return _pack_header(len(body)) + body


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
        start, end = 0, len(data)
        while end - start >= _HEADER_BYTES:
            (length,) = _unpack_header(data, start)
            if length > self._max_frame:
                raise ValueError(f"frame length={length} is over {self._max_frame}: broken stream")
            stop = start + _HEADER_BYTES + length
            if stop > end:
                break
            messages.append(marshal.loads(data[start + _HEADER_BYTES : stop]))
            start = stop
        self._rest = data[start:]
        return messages
