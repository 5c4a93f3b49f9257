"""A driver of a cluster: one more process of its machine, attached to the daemon there.

Shared memory passes between the driver and the workers of its machine as between the workers
themselves. One thread reads the socket; when the driver leaves, the cluster goes on.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .address import parse_address
from .client import Client, driver_context
from .connection import Connection
from .daemons import Daemon, find_daemon, peer_uid
from .driver_link import DriverLink
from .environment import Environment, environment
from .errors import AuthenticationError, NanoRayError
from .handshake import DIALECT, wrong_dialect
from .refs import HoldLog
from .views import Reader
from .wire import Message

_PATIENCE_S = 30.0


def attach(
    address: str,
    *,
    root: Path | None = None,
    runtime_env: Mapping[str, Any] | None,
    log_to_driver: bool,
) -> Client:
    """Return the client of a driver that joins a running cluster.

    Args:
        address: "auto", or "nano://host:port" of the head; a daemon of that cluster must run on
            this machine, as this user. Or the directory where the daemon keeps its files.
        root: Where the daemons keep their files.
        runtime_env: What calls of this driver find around them.
        log_to_driver: Whether to show what workers print.

    Raises:
        NanoRayError: There is no such daemon, or it does not answer.
        ValueError: The address or ``runtime_env`` is wrong.
    """
    inherited = environment(runtime_env)
    inherited.check_folders()
    if address.startswith("/"):
        root, address = Path(address), "auto"
    head = None if address == "auto" else parse_address(address)
    daemon = find_daemon(head, root=root)
    connection = Connection(_connect(daemon))
    setup, rest = _receive_setup(connection)
    return _client(connection, setup, rest, inherited, log_to_driver=log_to_driver)


def _client(
    connection: Connection,
    setup: dict[str, Any],
    rest: list[Message],
    inherited: Environment,
    *,
    log_to_driver: bool,
) -> Client:
    """Return the client over a socket whose other end is the daemon."""
    holds = HoldLog()
    reader = Reader(holds)
    link = DriverLink(connection, holds, reader, log_to_driver=log_to_driver)
    client = Client(
        link,
        process=setup["process"],
        holds=holds,
        reader=reader,
        totals=setup["totals"],
        context=driver_context(setup["node"]),
        environment=inherited,
    )
    link.start(rest, take_back=client.writer.take, refuse=client.allowance.refuse)
    return client


def _connect(daemon: Daemon) -> socket.socket:
    """Return a socket to a daemon, which is surely one of this user."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(str(daemon.socket_path))
    except OSError as error:
        sock.close()
        raise NanoRayError(f"daemon {daemon.pid} does not answer: {error}; try again") from error
    if peer_uid(sock) != os.geteuid():
        sock.close()
        raise AuthenticationError(f"{daemon.socket_path} is not served by uid {os.geteuid()}")
    return sock


def _receive_setup(connection: Connection) -> tuple[dict[str, Any], list[Message]]:
    """Return the daemon's first message, and those that came with it."""
    deadline = time.monotonic() + _PATIENCE_S
    try:
        while time.monotonic() < deadline:
            messages = connection.receive(deadline - time.monotonic())
            if messages:
                assert messages[0][0] == "setup", f"setup comes first, not {messages[0][0]!r}"
                _check_dialect(connection, tuple(messages[0][1]["dialect"]))
                return messages[0][1], messages[1:]
    except EOFError:
        pass
    connection.close()
    raise NanoRayError("the daemon of this machine is leaving its cluster; try again")


def _check_dialect(connection: Connection, dialect: tuple[int, ...]) -> None:
    if dialect != DIALECT:
        connection.close()
        raise NanoRayError(f"the daemon of this machine is another: {wrong_dialect(dialect)}")
