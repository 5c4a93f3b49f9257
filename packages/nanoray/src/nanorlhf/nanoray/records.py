"""Bytes that nobody has changed on the way: numbered records with a MAC each. No I/O.

::

    | length, uint32 little endian | tag, 16 bytes | body, 1 to 65536 bytes | ...

The tag is a keyed BLAKE2b of the record's number and body, with a key that belongs to one
direction of one connection: a record that is changed, lost, repeated, moved or sent back does not
match. Messages are cut into records wherever it suits, so a reader keeps at most one record of
bytes that it has not checked, however long the messages are.
"""

import hashlib
import hmac
import struct

from .errors import AuthenticationError

TAG_BYTES = 16
MAX_BODY = 1 << 16

_LENGTH = struct.Struct("<I")
_NUMBER = struct.Struct("<Q")
_HEAD = _LENGTH.size + TAG_BYTES


class Tags:
    """Makes the tags of one direction: each is used once, in order."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._count = 0

    def start(self) -> "hashlib.blake2b":
        """Return a hash that begins with the next number; ``update`` it with the bytes."""
        number = _NUMBER.pack(self._count)
        self._count += 1
        return hashlib.blake2b(number, key=self._key, digest_size=TAG_BYTES)

    def tag(self, body: bytes | memoryview) -> bytes:
        """Return the next tag."""
        state = self.start()
        state.update(body)
        return state.digest()


class Sealer:
    """Cuts what is sent into records."""

    def __init__(self, key: bytes) -> None:
        self._tags = Tags(key)

    def seal(self, data: bytes) -> bytes:
        """Return ``data`` as records."""
        view = memoryview(data)
        parts: list[bytes | memoryview] = []
        for start in range(0, len(view), MAX_BODY):
            body = view[start : start + MAX_BODY]
            parts += (_LENGTH.pack(len(body)), self._tags.tag(body), body)
        return b"".join(parts)


class Opener:
    """Checks what arrives.

    >>> sealer, opener = Sealer(b"k" * 32), Opener(b"k" * 32)
    >>> first = sealer.seal(b"hello")
    >>> opener.feed(first[:9]), opener.feed(first[9:])
    (b'', b'hello')
    """

    def __init__(self, key: bytes) -> None:
        self._tags = Tags(key)
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> bytes:
        """Return the bytes of the records that ``chunk`` completes.

        Raises:
            AuthenticationError: A record is not what was sent; nothing later can be trusted.
        """
        self._rest += chunk
        bodies: list[bytes] = []
        start = 0
        with memoryview(self._rest) as view:
            while len(view) - start >= _HEAD:
                end = start + _HEAD + self._body_length(view, start)
                if end > len(view):
                    break
                tag, body = view[start + _LENGTH.size : start + _HEAD], view[start + _HEAD : end]
                if not hmac.compare_digest(tag, self._tags.tag(body)):
                    raise AuthenticationError("a record was changed on its way; use a safe network")
                bodies.append(bytes(body))
                start = end
                tag.release()
                body.release()
        del self._rest[:start]
        return b"".join(bodies)

    @staticmethod
    def _body_length(view: memoryview, start: int) -> int:
        (length,) = _LENGTH.unpack_from(view, start)
        if not 1 <= length <= MAX_BODY:
            raise AuthenticationError(f"a record of {length} bytes is not in 1..{MAX_BODY}")
        return int(length)
