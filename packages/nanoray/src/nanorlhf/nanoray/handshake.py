"""Two machines prove to each other that they have the token, without saying it. No I/O.

Mutual challenge and response with HMAC-SHA256, as in ``multiprocessing.connection``, but with
both nonces, the side, the purpose and both versions under every proof::

    caller                                                    answerer
      | magic, version, purpose, 32 random bytes  -------------> |
      | <------------ magic, version, 32 random bytes, its proof |
      | its proof  --------------------------------------------> |

A proof is made of both sides' random bytes, so one recorded earlier fits no later conversation;
it names its side, so it cannot be sent back to who made it; it names versions, purpose and
transport, so none of them can be changed on the way. Everything has a fixed size: nothing is
parsed, let alone unpickled, before both proofs are checked.

Either side then derives one key for each direction, which ``records.py`` uses.
"""

import hashlib
import hmac
import struct
import sys
from collections.abc import Collection
from typing import Literal, NamedTuple

from .errors import AuthenticationError
from .token import TOKEN_BYTES

VERSION = 1
"""Of everything that machines say to each other; both must speak the same."""

MAX_BYTES = 4096
"""All that an unknown peer may make us keep."""

DIALECT = (VERSION, *sys.version_info[:2])
"""What processes that know each other still must agree on: marshal and pickled code are Python's,
and differ between its versions."""

DEADLINE_S = 5.0
"""All the time that an unknown peer gets."""

NONCE_BYTES = 32

Purpose = Literal["agent", "pull"]

_PURPOSES: dict[int, Purpose] = {1: "agent", 2: "pull"}
_NUMBERS = {purpose: number for number, purpose in _PURPOSES.items()}
_MAGIC = b"nanoray\n"
_HELLO = struct.Struct(f"<8sHB{NONCE_BYTES}s")
_REPLY = struct.Struct(f"<8sH{NONCE_BYTES}s32s")
_TERMS = struct.Struct(f"<HHB?{NONCE_BYTES}s{NONCE_BYTES}s")
_PROOF_BYTES = 32


class Session(NamedTuple):
    """What a finished handshake leaves: the purpose and one key for each direction."""

    purpose: Purpose
    send_key: bytes
    receive_key: bytes


class Caller:
    """The side that connects.

    Args:
        token: The cluster's secret.
        purpose: What the connection is for.
        nonce: ``NONCE_BYTES`` fresh random bytes.
        is_tls: Whether all this happens inside TLS; both sides must agree.
    """

    def __init__(self, token: bytes, purpose: Purpose, *, nonce: bytes, is_tls: bool) -> None:
        self._token, self._purpose = check_token(token), purpose
        self._nonce, self._is_tls = nonce, is_tls
        self._buffer = b""
        self.session: Session | None = None
        """Set once the answerer has proved itself."""
        self.rest = b""
        """Bytes that came after the handshake."""

    def start(self) -> bytes:
        """Return the first bytes to send."""
        return _HELLO.pack(_MAGIC, VERSION, _NUMBERS[self._purpose], self._nonce)

    def feed(self, chunk: bytes) -> bytes:
        """Take what the answerer sent; return what to send.

        Raises:
            AuthenticationError: It is no nanoray, of another version, or has another token.
        """
        self._buffer += chunk
        _check_magic(self._buffer)
        if len(self._buffer) < _REPLY.size:
            return b""
        _, version, nonce, proof = _REPLY.unpack_from(self._buffer)
        _check_version(version)
        number = _NUMBERS[self._purpose]
        terms = _TERMS.pack(VERSION, version, number, self._is_tls, self._nonce, nonce)
        _check_proof(proof, _mac(self._token, b"answerer", terms))
        self.rest, self._buffer = self._buffer[_REPLY.size :], b""
        self.session = _session(self._token, self._purpose, terms, is_caller=True)
        return _mac(self._token, b"caller", terms)


class Answerer:
    """The side that listens.

    Args:
        token: The cluster's secret.
        purposes: What callers may come for.
        nonce: ``NONCE_BYTES`` fresh random bytes.
        is_tls: Whether all this happens inside TLS; both sides must agree.
    """

    def __init__(
        self, token: bytes, purposes: Collection[Purpose], *, nonce: bytes, is_tls: bool
    ) -> None:
        self._token, self._purposes = check_token(token), purposes
        self._nonce, self._is_tls = nonce, is_tls
        self._buffer = b""
        self._terms = b""
        self._purpose: Purpose = "agent"
        self.session: Session | None = None
        """Set once the caller has proved itself."""
        self.rest = b""
        """Bytes that came after the handshake."""

    def feed(self, chunk: bytes) -> bytes:
        """Take what the caller sent; return what to send.

        Raises:
            AuthenticationError: It is no nanoray, of another version, has another token, or wants
                something else.
        """
        self._buffer += chunk
        if not self._terms:
            return self._hello()
        if len(self._buffer) >= _PROOF_BYTES:
            self._prove()
        return b""

    def _hello(self) -> bytes:
        """Answer the caller's challenge with our proof and our challenge."""
        _check_magic(self._buffer)
        if len(self._buffer) < _HELLO.size:
            return b""
        if len(self._buffer) > _HELLO.size:
            raise AuthenticationError("the peer sent more than a hello before it had our answer")
        _, version, number, nonce = _HELLO.unpack(self._buffer)
        purpose = _PURPOSES.get(number)
        if purpose is None or purpose not in self._purposes:
            raise AuthenticationError(f"the peer came for purpose={number}, which is not here")
        if nonce == self._nonce:
            raise AuthenticationError("the peer sent our own challenge back")
        self._buffer, self._purpose = b"", purpose
        self._terms = _TERMS.pack(version, VERSION, number, self._is_tls, nonce, self._nonce)
        # A caller of another version gets its answer too, and can tell its user what is wrong.
        proof = _mac(self._token, b"answerer", self._terms)
        return _REPLY.pack(_MAGIC, VERSION, self._nonce, proof)

    def _prove(self) -> None:
        """Accept the caller if its proof is right."""
        (version,) = struct.unpack_from("<H", self._terms)
        _check_version(version)
        proof = self._buffer[:_PROOF_BYTES]
        _check_proof(proof, _mac(self._token, b"caller", self._terms))
        self.rest, self._buffer = self._buffer[_PROOF_BYTES:], b""
        self.session = _session(self._token, self._purpose, self._terms, is_caller=False)


def wrong_dialect(other: tuple[int, ...]) -> str:
    """Return why a process of another dialect cannot take part.

    >>> wrong_dialect((1, 3, 10)).partition(";")[0]
    'it speaks version 1 of the protocol under Python 3.10'
    """
    version, *python = other
    ours = ".".join(map(str, DIALECT[1:]))
    return (
        f"it speaks version {version} of the protocol under Python {'.'.join(map(str, python))}; "
        f"this cluster speaks {VERSION} under Python {ours}: use the same on all machines"
    )


def check_token(token: bytes) -> bytes:
    """Return the token.

    Raises:
        AuthenticationError: It is not ``TOKEN_BYTES`` long; above all, it is not empty.
    """
    if len(token) != TOKEN_BYTES:
        raise AuthenticationError(
            f"a token has {TOKEN_BYTES} bytes, not {len(token)}; obtain_token() makes one, and "
            f"without it no port is opened"
        )
    return token


def _mac(token: bytes, label: bytes, terms: bytes) -> bytes:
    return hmac.digest(token, label + b"\0" + terms, hashlib.sha256)


def _session(token: bytes, purpose: Purpose, terms: bytes, *, is_caller: bool) -> Session:
    outward, homeward = (_mac(token, label, terms) for label in (b"to answerer", b"to caller"))
    return Session(purpose, *((outward, homeward) if is_caller else (homeward, outward)))


def _check_magic(data: bytes) -> None:
    """Refuse at the first byte that is wrong, before waiting for more."""
    if data[: len(_MAGIC)] != _MAGIC[: len(data)]:
        raise AuthenticationError(
            f"the peer does not speak nanoray: it began with {data[:8]!r}; check the address, "
            f"and that both sides use TLS or neither does"
        )


def _check_version(version: int) -> None:
    if version != VERSION:
        raise AuthenticationError(
            f"the peer speaks version {version} of the protocol, this machine {VERSION}; install "
            f"the same nanoray on both"
        )


def _check_proof(proof: bytes, expected: bytes) -> None:
    if not hmac.compare_digest(proof, expected):
        raise AuthenticationError(
            "the peer has another token; copy ~/.nanoray/token from the head's machine, mode 0600"
        )
