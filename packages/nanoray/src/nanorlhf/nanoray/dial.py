"""Connecting to another machine, up to the point where both have proved themselves."""

import os
import socket
import time
from typing import NamedTuple

from .address import Address
from .errors import AuthenticationError, NanoRayError
from .handshake import DEADLINE_S, MAX_BYTES, NONCE_BYTES, Caller, Purpose, Session
from .tls import TlsFiles


class Guest(NamedTuple):
    """A peer that has proved itself; its socket blocks and has no timeout."""

    sock: socket.socket
    session: Session
    rest: bytes
    """Bytes that came behind the handshake."""
    peer: Address


def call(
    address: Address,
    purpose: Purpose,
    token: bytes,
    *,
    tls: TlsFiles | None = None,
    timeout_s: float = DEADLINE_S,
) -> Guest:
    """Connect to another machine's door and go through the handshake, in ``timeout_s`` at most.

    Args:
        address: Where the other machine listens.
        purpose: What for.
        token: The cluster's secret.
        tls: This machine's certificate, when the cluster uses TLS.
        timeout_s: For all of it.

    Raises:
        AuthenticationError: One side does not accept the other.
        NanoRayError: Nobody listens there, or not in time.
    """
    deadline = time.monotonic() + timeout_s
    caller = Caller(token, purpose, nonce=os.urandom(NONCE_BYTES), is_tls=tls is not None)
    sock = _connect(address, timeout_s)
    try:
        return _greet(sock, caller, address, tls, deadline)
    except TimeoutError as error:
        raise NanoRayError(f"{address} did not answer within {timeout_s:g} s") from error
    except OSError as error:
        raise AuthenticationError(f"{address} does not accept this machine: {error}") from error


def _connect(address: Address, timeout_s: float) -> socket.socket:
    try:
        return socket.create_connection(address, timeout_s)
    except OSError as error:
        raise NanoRayError(
            f"nobody answers at {address}: {error}; is the head running, and does a firewall let "
            f"this machine through?"
        ) from error


def _greet(
    sock: socket.socket, caller: Caller, address: Address, tls: TlsFiles | None, deadline: float
) -> Guest:
    """Go through TLS and the handshake; the socket is closed when that fails."""
    try:
        if tls is not None:
            sock.settimeout(_left(deadline))
            sock = tls.context("caller").wrap_socket(sock)
        sock.sendall(caller.start())
        while caller.session is None:
            sock.settimeout(_left(deadline))
            chunk = sock.recv(MAX_BYTES)
            if not chunk:
                raise AuthenticationError(f"{address} hung up; is it a nanoray with the same TLS?")
            sock.sendall(caller.feed(chunk))
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return Guest(sock, caller.session, caller.rest, address)


def _left(deadline: float) -> float:
    """Return the seconds that are left, or raise TimeoutError."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is up")
    return left
