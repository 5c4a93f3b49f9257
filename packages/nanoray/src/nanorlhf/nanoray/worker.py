"""A worker process: it becomes what the engine asked for, and runs calls in the order they come.

Tasks, and actors unless they ask for more, need one thread for everything: it reads messages when
it has nothing to run and while user code waits in ``get``.
"""

import faulthandler
import os
import signal
import socket
import sys
from typing import Any, NoReturn

from .backend import Context
from .client import Client
from .connection import Connection
from .coroutines import LoopActor
from .environment import Environment
from .interrupts import Interrupts
from .link import WorkerLink
from .performer import Performer
from .refs import HoldLog
from .session import set_current
from .stack import make_dumpable
from .threads import ThreadedActor
from .tickets import Desk
from .views import Reader
from .wire import Message


class Worker:
    """Runs tasks, or is one actor.

    Args:
        link: The way to the engine.
        client: What user code here calls the engine with.
        performer: Runs each call.
        interrupts: Which calls are cancelled.
        desk: Which calls sent ahead may begin.
        max_concurrency: Calls of the actor at a time.
    """

    def __init__(
        self,
        link: WorkerLink,
        client: Client,
        performer: Performer,
        interrupts: Interrupts,
        desk: Desk,
        *,
        max_concurrency: int,
    ) -> None:
        self._link, self._client, self._performer = link, client, performer
        self._interrupts, self._desk = interrupts, desk
        self._max_concurrency = max_concurrency

    def serve(self) -> NoReturn:
        """Run calls until the engine says, or is gone."""
        while True:
            run = self._link.next_run()
            if run.ticket and not self._desk.claim(run.ticket):
                continue  # the engine has taken it back
            self._client.caller.only_call = run.id
            self._performer.perform(run)
            # The frames of the call are gone: what it dropped is freed before the next one waits.
            del run
            self._performer.flush()
            self._link.look_out()
            if self._max_concurrency > 1:  # the first call was the constructor
                self._client.caller.only_call = 0
                self._serve_in_threads()

    def _serve_in_threads(self) -> NoReturn:
        threads = ThreadedActor(self._performer, self._interrupts, self._max_concurrency)
        while True:
            threads.begin(self._link.next_run())


def main(sock: socket.socket, worker_id: int, interrupts_fd: int) -> None:
    """Be a worker; returns never."""
    orders = Interrupts(interrupts_fd)
    connection = Connection(sock)
    messages: list[Message] = []
    while not messages:
        messages = connection.receive()
    verb, setup = messages[0]
    desk = Desk(socket.socket(fileno=connection.take_fd()))
    assert verb == "setup", f"the first message is setup, not {verb!r}"
    _adopt_environment(setup)
    holds = HoldLog()
    reader = Reader(holds)
    link = WorkerLink(connection, holds, reader, orders)
    context = Context(
        is_driver=False,
        actor_id=setup["actor"] or None,
        name=setup["name"],
        gpu_ids=tuple(setup["gpu_ids"]),
        node_id=setup["node"],
    )
    client = Client(
        link,
        process=worker_id,
        holds=holds,
        reader=reader,
        totals=setup["totals"],
        context=context,
        environment=Environment(*setup["env"]),
    )
    link.take_back, link.refuse = client.writer.take, client.allowance.refuse
    set_current(client)
    link.post(("born", os.getpid()))
    link.take_all(messages[1:])
    performer = Performer(link, client, reader, orders)
    max_concurrency = setup["max_concurrency"]
    if setup["has_loop"]:
        LoopActor(link, client, performer, orders, max_concurrency=max_concurrency).serve()
    Worker(link, client, performer, orders, desk, max_concurrency=max_concurrency).serve()


def _adopt_environment(setup: dict[str, Any]) -> None:
    """Become the process the engine asked for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    faulthandler.enable()
    make_dumpable()
    sys.path[:] = setup["path"]
    Environment(*setup["env"]).enter()
    if setup["gpu_ids"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(setup["gpu_ids"])
    elif setup["isolate_gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()  # forks of one zygote would otherwise all draw the same numbers
