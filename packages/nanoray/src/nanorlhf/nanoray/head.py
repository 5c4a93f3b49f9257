"""The head of a cluster: a daemon that holds the tables and speaks with every machine.

::

    driver --- socket --+                            +-- channel --- agent --- its processes
    worker --- socket --+-- Station --- Head --- Node
    zygote --- socket --+                            +-- channel --- agent --- its processes

It is machine 0 itself. To the node, a process of another machine is like one of its own: what is
said to it goes down to its agent, and what it says comes up.
"""

import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from .address import Address
from .channel import Channel
from .connection import Connection
from .daemons import Daemon
from .dial import Guest
from .fleet import Fleet
from .handshake import DIALECT, wrong_dialect
from .local import own_pool
from .machines import About
from .messages import DRIVER
from .node import Node
from .policies import Policy, check_policy
from .resources import CPU, UNIT
from .station import Announce, MachineConfig, Station, StopSignal
from .token import obtain_token
from .value import Block
from .waits import Answer
from .wire import Message

log = logging.getLogger(__name__)

_FAREWELL_S = 2.0
"""How long agents have to hear that the cluster ends."""


def run_head(
    config: MachineConfig,
    *,
    on_ready: Callable[[Daemon], None],
    isolate_gpus: bool = False,
    scheduling_policy: Policy = "default",
) -> None:
    """Be the head of a new cluster until SIGTERM or SIGINT; call in the main thread.

    Args:
        config: How this machine takes part; ``nanoray start --head`` listens on port 6380.
        on_ready: Called once agents can join and drivers can attach.
        isolate_gpus: Whether calls without GPUs see none, on any machine.
        scheduling_policy: Which machine calls go to, and in which order they start.

    Raises:
        AuthenticationError: The token file is not private.
        OSError: The address is not this machine's, or the port is taken.
        ValueError: The config asks for what this machine has not, or the policy is unknown.
    """
    check_policy(scheduling_policy)
    stop = StopSignal()
    head = Head(config, stop, isolate_gpus=isolate_gpus, policy=scheduling_policy)
    try:
        on_ready(head.daemon)
        head.serve()
    finally:
        head.close()


class Head:
    """The ``Rim`` of the cluster's node and the ``Owner`` of machine 0's hub."""

    def __init__(
        self, config: MachineConfig, stop: StopSignal, *, isolate_gpus: bool, policy: Policy
    ) -> None:
        self._config, self._stop = config, stop
        self._lock = threading.Lock()
        self._tails: dict[int, list[str]] = {}
        self._drivers: set[int] = set()
        self._is_over = False
        self._to_free: deque[tuple[int, int]] = deque()
        pool = own_pool(config.num_cpus, config.num_gpus, config.resources)
        token = obtain_token(config.token_path)
        with self._lock:  # nobody is let in before all is there
            self._station = Station(
                self,
                self._lock,
                config,
                token,
                welcome={"agent": self._welcome},
                knock=self._knock,
            )
            self._hub = self._station.hub
            beats = {"beat_s": config.beat_s, "limit_s": config.limit_s}
            self._fleet = Fleet(self._hub, **beats, now_s=time.monotonic())
            about = self._station.describe(pool, self._station.address)
            cpus = pool.totals.get(CPU, 0) // UNIT
            self.node = Node(
                pool,
                self,
                max_idle=max(1, cpus),
                about=about,
                isolate_gpus=isolate_gpus,
                policy=policy,
            )
            numbers = itertools.count(1)
            announce = Announce(self._announce, self._retire, lambda: next(numbers))
            address = self._station.address
            self.daemon = self._station.open(
                "head", address, announce=announce, report=self._fetched
            )
            self._hub.watch(stop.fileno(), lambda: None)

    def serve(self) -> None:
        """Do what all processes and machines ask, until the signal to stop."""
        while not self._stop.is_set:
            events = self._hub.poll(self._config.beat_s / 2)
            with self._lock:
                self._hub.serve(events)
                self._beat()
                self._settle()
            while self._to_free:
                self._station.free(*self._to_free.popleft())

    def close(self) -> None:
        """End the cluster: agents end, and drivers are hung up on."""
        with self._lock:
            self._is_over = True
            self.node.break_down("the cluster was stopped while this was waiting")
            self._fleet.tell_all(("stop", ""))
            self._hub.flush()
        # Hung up on with something of theirs unread, agents might lose the message to stop.
        deadline = time.monotonic() + _FAREWELL_S
        while self._fleet and time.monotonic() < deadline:
            events = self._hub.poll(deadline - time.monotonic())
            with self._lock:
                self._hub.serve(events)
        self._station.close()

    # -- Rim -----------------------------------------------------------------------------------

    def fork(self, worker: int, setup: dict[str, Any], *, machine: int) -> None:
        """Start a process on a machine."""
        setup = {**setup, "totals": self.node.scheduler.totals()}
        if machine:
            self._fleet.tell(machine, ("fork", worker, setup))
        else:
            self._hub.fork(worker, setup)

    def kill(self, worker: int) -> None:
        """Kill a process."""
        machine = self.node.machines.of(worker)
        if machine:
            self._fleet.tell(machine, ("kill", worker))
        else:
            self._hub.kill(worker)

    def offer(self, worker: int, tickets: Sequence[int]) -> None:
        """Let a process of this machine begin calls sent ahead."""
        self._hub.offer(worker, tickets)

    def recall(self, worker: int) -> list[int]:
        """Take back what a process of this machine has not begun."""
        return self._hub.recall(worker)

    def interrupt(self, worker: int, call_id: int) -> None:
        """Have a process end a call."""
        machine = self.node.machines.of(worker)
        if machine:
            self._fleet.tell(machine, ("interrupt", worker, call_id))
        else:
            self._hub.interrupt(worker, call_id)

    def send(self, process: int, message: Message) -> None:
        """Queue a message for a process, wherever it is."""
        machine = self.node.machines.of(process)
        if machine:
            self._fleet.tell(machine, ("down", process, message))
        elif process != DRIVER:
            self._hub.send(process, message)
        elif message[0] == "free":  # nobody reads here: this machine's own process only copies
            self._to_free.append((message[1], message[2]))

    def answer(self, req: int, payload: Answer) -> None:
        """No code runs in the head itself."""
        raise AssertionError(f"question {req} was asked by nobody: {payload}")

    def tail(self, worker: int) -> list[str]:
        """Return the last lines that a process printed."""
        return self._tails.get(worker) or self._hub.tail(worker)

    def close_arena(self, arena_id: int, machine: int) -> None:
        """Close an arena's file where it is."""
        if machine:
            self._fleet.tell(machine, ("close", arena_id))
        else:
            self._hub.close_arena(arena_id)

    def fetch(self, number: int, source: int, target: int, block: Block) -> None:
        """Have a machine copy a block of another."""
        address = self.node.machines[source].about.address
        if target:
            # The head's own address depends on who asks: an agent knows how it reaches it.
            where = tuple(address) if source and address else None
            self._fleet.tell(target, ("fetch", number, where, tuple(block)))
        else:
            assert address is not None, "every machine of a cluster listens"
            self._station.fetch(number, Address(*address), block)

    # -- Owner ---------------------------------------------------------------------------------

    def heard(self, process: int, message: Message) -> None:
        """A process of this machine, or an agent, said something."""
        if self._is_over:
            return
        if process in self._fleet:
            machine = self._fleet.heard(process, now_s=time.monotonic())
            self._heard_agent(process, machine, message)
        else:
            self.node.handle(process, message)

    def exited(self, worker: int, status: int) -> None:
        """A worker of this machine is gone."""
        if not self._is_over:
            self.node.worker_exited(worker, status)

    def left(self, process: int) -> None:
        """An agent or a driver has hung up."""
        if process in self._fleet:
            self._lose(process, "its connection ended")
        elif not self._is_over:
            self._drivers.discard(process)
            self.node.driver_left(process)

    def broke_down(self, reason: str) -> None:
        """This machine's zygote is gone."""
        log.error("%s", reason)
        self.node.break_down(reason)

    def printed(self, worker: int, pid: int, stream: str, lines: list[str]) -> None:
        """Keep what a worker of this machine printed; show it, and what others did, to drivers."""
        if not self.node.machines.of(worker):
            self._station.keep_lines(worker, lines)
        source = f"({self.node.supervisor.label(worker)} pid={pid})"
        for driver in self._drivers:
            self.send(driver, ("printed", source, stream, lines))

    # -- agents --------------------------------------------------------------------------------

    def _welcome(self, guest: Guest) -> None:
        """An agent has come through the door; called in the door's thread."""
        guest.sock.setblocking(False)
        channel = Channel(guest.sock, guest.session, rest=guest.rest)
        with self._lock:
            process = self.node.supervisor.next_process()
            self._fleet.welcome(process, channel, now_s=time.monotonic())
            self._settle()

    def _heard_agent(self, process: int, machine: int | None, message: Message) -> None:
        verb, *fields = message
        if machine is None:
            if verb == "join":
                self._join(process, tuple(fields[0]), fields[1])
        elif verb == "up":
            self._up(machine, *fields)
        elif verb == "exited":
            self._exited_there(machine, *fields)
        elif verb == "attach":
            driver = self._add_driver(machine)
            setup = self._driver_setup(driver, machine)
            self._hub.send(process, ("attached", fields[0], driver, setup))
        elif verb == "left":
            self._drivers.discard(fields[0])
            self.node.driver_left(fields[0])
        elif verb == "fetched":
            self._note_fetched(*fields)
        elif verb == "printed":
            self.printed(*fields)

    def _join(self, process: int, dialect: tuple[int, ...], about: tuple[Any, ...]) -> None:
        if dialect != DIALECT:
            self._hub.send(process, ("stop", wrong_dialect(dialect)))
            return
        machine = self.node.machine_joined(process, About(*about))
        self._fleet.joined(process, machine)
        log.info("%s joined", self.node.machines[machine])
        self._hub.send(process, ("welcome", process))

    def _up(self, machine: int, process: int, message: Message) -> None:
        """A process of another machine said something."""
        if self.node.machines.of(process) == machine:
            self.node.handle(process, message)

    def _exited_there(self, machine: int, worker: int, status: int, tail: list[str]) -> None:
        if self.node.machines.of(worker) == machine:
            self._tails[worker] = tail
            self.node.worker_exited(worker, status)
            del self._tails[worker]

    def _lose(self, process: int, reason: str) -> None:
        """An agent is gone."""
        machine = self._fleet.drop(process)
        if machine is None or self._is_over:
            return
        lost = self.node.machines[machine]
        log.warning("%s is lost: %s", lost, reason)
        self.node.machine_lost(machine, reason)
        if lost.about.address is not None:
            self._station.forget(Address(*lost.about.address))
            self._fleet.tell_all(("lost", tuple(lost.about.address)))

    def _beat(self) -> None:
        """Exchange signs of life."""
        for process in self._fleet.beat(now_s=time.monotonic()):
            self._lose(process, f"no sign of life for {self._config.limit_s:g} s")

    # -- drivers -------------------------------------------------------------------------------

    def _knock(self, connection: Connection) -> None:
        """A driver of this machine attaches."""
        driver = self._add_driver(0)
        self._hub.attach(driver, connection)
        self._hub.send(driver, ("setup", self._driver_setup(driver, 0)))

    def _add_driver(self, machine: int) -> int:
        driver = self.node.driver_joined(machine)
        self._drivers.add(driver)
        return driver

    def _driver_setup(self, driver: int, machine: int) -> dict[str, Any]:
        return {
            "dialect": DIALECT,
            "process": driver,
            "node": self.node.machines[machine].about.node_id,
            "totals": self.node.scheduler.totals(),
        }

    # -- copies --------------------------------------------------------------------------------

    def _announce(self, arena_id: int, size: int, fd: int) -> None:
        with self._lock:
            self._hub.add_arena(arena_id, os.dup(fd))
            self.node.handle(DRIVER, ("arena", arena_id, size))

    def _retire(self, arena_id: int) -> None:
        with self._lock:
            self.node.handle(DRIVER, ("retire", arena_id))

    def _fetched(self, number: int, block: Block | None, reason: str) -> None:
        with self._lock:
            self._note_fetched(number, block, reason)
            self._settle()

    def _note_fetched(self, number: int, block: tuple[int, int, int] | None, reason: str) -> None:
        if block is None:
            self.node.transfers.failed(number, reason)
        else:
            self.node.transfers.fetched(number, Block(*block))

    def _settle(self) -> None:
        self.node.settle()
        self._hub.flush()
