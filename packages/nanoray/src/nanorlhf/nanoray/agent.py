"""A machine of a cluster that is not its head: it does what the head says with its processes.

An agent that is cut off from its head, or that was stopped for longer than the head waits, has
been given up: its tasks run elsewhere by now. So it ends its processes and joins as a new machine.
"""

import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .address import Address
from .channel import Channel
from .connection import Connection
from .daemons import Daemon
from .dial import call
from .errors import NanoRayError
from .handshake import DIALECT
from .local import own_pool
from .station import Announce, MachineConfig, Station, StopSignal
from .token import default_token_path, load_token
from .value import Block
from .wire import Message

log = logging.getLogger(__name__)

_UPLINK = -2
_RETRY_S = 0.5


def run_agent(head: Address, config: MachineConfig, *, on_ready: Callable[[Daemon], None]) -> None:
    """Be a machine of a cluster until SIGTERM, SIGINT or the end of the cluster.

    Call in the main thread.

    Args:
        head: Where the head listens.
        config: How this machine takes part.
        on_ready: Called each time the machine has joined, so again after it was cut off.

    Raises:
        AuthenticationError: This machine has no token, or one of another cluster.
        NanoRayError: Nobody answers at ``head``, or not again within ``rejoin_s``.
        ValueError: The config asks for what this machine has not.
    """
    stop = StopSignal()
    token = load_token(config.token_path or default_token_path())
    deadline = 0.0
    while not stop.is_set:
        try:
            agent = Agent(head, config, token, stop)
        except NanoRayError:
            # Also AuthenticationError: a head that is going down hangs up in mid-handshake.
            if time.monotonic() >= deadline:
                raise
            stop.wait(_RETRY_S)
            continue
        try:
            is_over = agent.serve(on_ready)
        finally:
            agent.close()
        if is_over:
            return
        deadline = time.monotonic() + config.rejoin_s


class Agent:
    """One life of a machine in the cluster: the ``Owner`` of its hub."""

    def __init__(
        self, head: Address, config: MachineConfig, token: bytes, stop: StopSignal
    ) -> None:
        self._head, self._config, self._stop = head, config, stop
        pool = own_pool(config.num_cpus, config.num_gpus, config.resources)
        guest = call(head, "agent", token, tls=config.tls)
        host = guest.sock.getsockname()[0]
        guest.sock.setblocking(False)
        self._lock = threading.Lock()
        self._process = 0
        """Our number as a process that writes copies; 0 until the head has told it."""
        self._knocking: dict[int, Connection] = {}
        self._tickets = itertools.count(1)
        self._to_free: deque[tuple[int, int]] = deque()
        self._heard_s = self._beaten_s = time.monotonic()
        self._end: str | None = None
        """Why this life is over."""
        self._is_over = False
        """Whether the cluster is over too, or does not want this machine."""
        self._refusal = ""
        self._on_ready: Callable[[Daemon], None] = lambda daemon: None
        with self._lock:
            self._station = Station(self, self._lock, config, token, welcome={}, knock=self._knock)
            self._hub = self._station.hub
            bound = self._station.address
            is_any = bound.host in ("0.0.0.0", "::")
            address = (host if is_any else bound.host, bound.port)
            self._hub.watch(stop.fileno(), lambda: None)
            self._hub.attach(_UPLINK, Channel(guest.sock, guest.session, rest=guest.rest))
            self._hub.send(_UPLINK, ("join", DIALECT, tuple(self._station.describe(pool, address))))
            self._hub.flush()

    def serve(self, on_ready: Callable[[Daemon], None]) -> bool:
        """Do what the head says; return whether there is no head to come back to.

        Raises:
            NanoRayError: The head refuses this machine.
        """
        self._on_ready = on_ready
        while self._end is None and not self._stop.is_set:
            events = self._hub.poll(self._config.beat_s / 2)
            with self._lock:
                self._hub.serve(events)
                self._beat()
                self._hub.flush()
            while self._to_free:
                self._station.free(*self._to_free.popleft())
        if self._end is not None:
            log.warning("this machine ends its processes: %s", self._end)
        if self._refusal:
            raise NanoRayError(f"the head {self._head} refuses this machine: {self._refusal}")
        return self._is_over or self._stop.is_set

    def close(self) -> None:
        """End every process of this machine and hang up."""
        for connection in self._knocking.values():
            connection.close()
        self._station.close()

    # -- Owner ---------------------------------------------------------------------------------

    def heard(self, process: int, message: Message) -> None:
        """A process of this machine, or the head, said something."""
        if process == _UPLINK:
            self._heard_s = time.monotonic()
            self._heard_head(message)
        else:
            self._hub.send(_UPLINK, ("up", process, message))

    def exited(self, worker: int, status: int) -> None:
        """A process of this machine is gone."""
        self._hub.send(_UPLINK, ("exited", worker, status, self._hub.tail(worker)))

    def left(self, process: int) -> None:
        """The head or a driver has hung up."""
        if process == _UPLINK:
            self._end = f"the head {self._head} hung up"
        else:
            self._hub.send(_UPLINK, ("left", process))

    def broke_down(self, reason: str) -> None:
        """The zygote is gone."""
        self._end = reason

    def printed(self, worker: int, pid: int, stream: str, lines: list[str]) -> None:
        """Keep what a process printed, and send it to the drivers."""
        self._station.keep_lines(worker, lines)
        self._hub.send(_UPLINK, ("printed", worker, pid, stream, lines))

    # -- the head ------------------------------------------------------------------------------

    def _heard_head(self, message: Message) -> None:
        verb, *fields = message
        if verb == "down":
            self._down(*fields)
        elif verb == "fork":
            self._hub.fork(fields[0], fields[1])
        elif verb == "kill":
            self._hub.kill(fields[0])
        elif verb == "interrupt":
            self._hub.interrupt(fields[0], fields[1])
        elif verb == "close":
            self._hub.close_arena(fields[0])
        elif verb == "fetch":
            number, where, block = fields
            source = self._head if where is None else Address(*where)
            self._station.fetch(number, source, Block(*block))
        elif verb == "lost":
            self._station.forget(Address(*fields[0]))
        elif verb == "attached":
            self._attached(*fields)
        elif verb == "welcome":
            self._joined(fields[0])
        elif verb == "stop":
            self._end, self._is_over = fields[0] or "the cluster was stopped", True
            self._refusal = fields[0]

    def _down(self, process: int, message: Message) -> None:
        """The head says something to a process of this machine."""
        if process != self._process:
            self._hub.send(process, message)
        elif message[0] == "free":  # nobody reads here: our own process only copies
            self._to_free.append((message[1], message[2]))

    def _joined(self, process: int) -> None:
        self._process = process
        numbers = itertools.count((process << 40) + 1)
        announce = Announce(self._announce, self._retire, lambda: next(numbers))
        daemon = self._station.open("agent", self._head, announce=announce, report=self._fetched)
        self._on_ready(daemon)

    def _beat(self) -> None:
        """Give a sign of life, and look for the head's."""
        now = time.monotonic()
        if now - self._beaten_s < self._config.beat_s:
            return
        was_away = now - self._beaten_s > self._config.limit_s / 2
        self._beaten_s = now
        # After a stop of this process itself, what the head said meanwhile is still unread.
        if now - self._heard_s > self._config.limit_s and not was_away:
            self._end = f"no sign of life of the head {self._head} for {self._config.limit_s:g} s"
        else:
            self._hub.send(_UPLINK, ("beat",))

    # -- drivers -------------------------------------------------------------------------------

    def _knock(self, connection: Connection) -> None:
        """A driver of this machine attaches: the head gives it its number."""
        ticket = next(self._tickets)
        self._knocking[ticket] = connection
        self._hub.send(_UPLINK, ("attach", ticket))

    def _attached(self, ticket: int, driver: int, setup: dict[str, Any]) -> None:
        self._hub.attach(driver, self._knocking.pop(ticket))
        self._hub.send(driver, ("setup", setup))

    # -- copies --------------------------------------------------------------------------------

    def _announce(self, arena_id: int, size: int, fd: int) -> None:
        with self._lock:
            self._hub.add_arena(arena_id, os.dup(fd))
            self._say(("arena", arena_id, size))

    def _retire(self, arena_id: int) -> None:
        with self._lock:
            self._say(("retire", arena_id))

    def _fetched(self, number: int, block: Block | None, reason: str) -> None:
        with self._lock:
            where = None if block is None else tuple(block)
            self._hub.send(_UPLINK, ("fetched", number, where, reason))
            self._hub.flush()

    def _say(self, message: Message) -> None:
        """Say something as the process that writes copies."""
        self._hub.send(_UPLINK, ("up", self._process, message))
        self._hub.flush()
