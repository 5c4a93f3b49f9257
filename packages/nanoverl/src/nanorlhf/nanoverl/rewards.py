"""Scoring responses in processes of their own, which can be killed.

A reward function is any ``def reward(prompt, response, answer, **row) -> float | dict``; a dict
names parts of the reward, the total as ``reward``. It may hang in a regular expression, exhaust a
parser or exit, so it never runs in the trainer: each response is scored by one of ``workers``
processes, and one that takes longer than ``timeout_s`` is killed and replaced. The response then
gets reward 0 and a note of what happened.

The module of a function is imported once, in the process that workers are forked from. It must not
start threads or touch a GPU on import. If it has a function ``prepare()``, that is called once as
well, before the first fork: the place for slow imports.
"""

import importlib
import inspect
import json
import pickle
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from .config import RewardConfig
from .errors import RewardError
from .reward_worker import load_reward as load_reward

PROGRAM = Path(__file__).with_name("reward_worker.py")


class RewardItem(NamedTuple):
    """What a reward function is called with, by keyword."""

    prompt: str
    response: str
    answer: str
    """The reference."""
    row: Mapping[str, Any]
    """Further columns of the dataset."""


class RewardResult(NamedTuple):
    """What became of one response."""

    reward: float
    """0 where there is an error."""
    parts: dict[str, float]
    """Named parts, where the function returned more than a number."""
    error: str | None
    """None, ``timeout``, or ``error: ...``."""


class _Worker(NamedTuple):
    pid: int
    connection: Connection


class _Nursery:
    """The program that workers are forked from, as the pool sees it; one request at a time.

    Raises:
        RewardError: The function cannot be loaded.
    """

    def __init__(self, config: RewardConfig) -> None:
        self.timeout_s = config.start_timeout_s
        self.lock = threading.Lock()
        self.control, theirs = socket.socketpair()
        self.control.settimeout(config.start_timeout_s)
        with theirs:
            # -P: the program's folder is this package's, whose modules must not shadow others.
            # -u: what a function prints must not be lost when its process is killed.
            self.process = subprocess.Popen(
                [sys.executable, "-uP", str(PROGRAM), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the trainer, which then closes the pool
            )
        try:
            self._load(config.function)
        except BaseException:
            self.process.kill()
            self.close()
            raise

    def _load(self, function: str) -> None:
        setup = {"function": locate(function), "path": sys.path}
        try:
            self.control.sendall(json.dumps(setup).encode())
            answer = self.control.recv(1 << 16)
        except TimeoutError:
            raise RewardError(
                f"function={function!r} was not imported within start_timeout_s="
                f"{self.timeout_s:g} s; raise it or import less"
            ) from None
        error = json.loads(answer)["error"] if answer else "the process ended while importing it"
        if error:
            raise RewardError(f"function={function!r} cannot be loaded: {error}")

    def fork(self) -> _Worker:
        """Return a new worker.

        Raises:
            RewardError: The program is gone.
        """
        with self.lock:
            try:
                self.control.sendall(b"fork")
                pid, descriptors, _, _ = socket.recv_fds(self.control, 64, 1)
            except OSError as error:
                self.control.close()  # a late answer must not be taken for that of a later request
                raise RewardError(f"no reward worker could be started: {error}") from error
        if not descriptors:
            raise RewardError("the process that reward workers are forked from has ended")
        return _Worker(int(pid), Connection(descriptors[0]))

    def end(self, worker: _Worker) -> int:
        """Kill ``worker`` if it still runs; return its exit status, negative for a signal."""
        worker.connection.close()
        with self.lock:
            try:
                self.control.sendall(f"end {worker.pid}".encode())
                return int(self.control.recv(64) or 0)
            except OSError:
                return 0  # the program is gone, and its workers with it

    def close(self) -> None:
        """End the program, which ends its workers."""
        self.control.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class RewardPool:
    r"""Processes that score responses; also a context manager that closes itself.

    Args:
        config: Which function, in how many processes, with how much time.

    Raises:
        RewardError: The function cannot be loaded.

    >>> with RewardPool(RewardConfig(workers=1)) as pool:
    ...     pool.score([RewardItem("1+1=", r"\boxed{2}", "2", row={})])
    [RewardResult(reward=1.0, parts={}, error=None)]
    """

    def __init__(self, config: RewardConfig) -> None:
        self.config = config
        self._closed = False
        self._nursery = _Nursery(config)
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
        for _ in range(config.workers):
            self._idle.put(None)  # forked when first needed, by when the program has prepared
        self._threads = ThreadPoolExecutor(config.workers, thread_name_prefix="reward")

    def submit(self, item: RewardItem) -> Future[RewardResult]:
        """Start scoring one response.

        Raises:
            RewardError: The pool is closed.
        """
        if self._closed:
            raise RewardError("the pool is closed; make a new one")
        arguments = {**item.row, **item._asdict()}  # an item's own fields before a row's columns
        del arguments["row"]
        return self._threads.submit(self._score, pickle.dumps(arguments))

    def gather(self, futures: Iterable[Future[RewardResult]]) -> list[RewardResult]:
        """Return the results of `submit`, in order.

        Raises:
            RewardError: There are some, and not one was scored.
        """
        results = [future.result() for future in futures]
        if results and all(result.error for result in results):
            raise RewardError(
                f"function={self.config.function!r} scored none of {len(results)} responses; "
                f"the last error was {results[-1].error!r}; try it on one of them by hand"
            )
        return results

    def score(self, items: Sequence[RewardItem]) -> list[RewardResult]:
        """Return the results of ``items``, in order.

        Raises:
            RewardError: There are some, and not one was scored.
        """
        return self.gather([self.submit(item) for item in items])

    def _score(self, item: bytes) -> RewardResult:
        worker = self._idle.get()
        try:
            worker, result = self._score_on(worker, item)
        finally:
            self._idle.put(worker)
        return result

    def _score_on(self, worker: _Worker | None, item: bytes) -> tuple[_Worker | None, RewardResult]:
        """Return the worker if it can be used again, and the result."""
        worker = self._send(worker, item)
        try:
            if not worker.connection.poll(self.config.timeout_s):
                self._nursery.end(worker)
                return None, RewardResult(0.0, {}, "timeout")
            answer = json.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            status = self._nursery.end(worker)
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            return None, RewardResult(0.0, {}, f"error: its process ended with {how}")
        if "error" in answer:
            return worker, RewardResult(0.0, {}, f"error: {answer['error']}")
        parts = answer["parts"]
        return worker, RewardResult(parts.pop("reward"), parts, None)

    def _send(self, worker: _Worker | None, item: bytes) -> _Worker:
        """Hand ``item`` to ``worker``, or to a new one when it died while it was idle."""
        if worker is not None:
            try:
                worker.connection.send_bytes(item)
            except OSError:
                self._nursery.end(worker)
            else:
                return worker
        worker = self._nursery.fork()
        worker.connection.send_bytes(item)
        return worker

    def close(self) -> None:
        """End all processes; what has not been scored fails. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._nursery.close()
        self._threads.shutdown(wait=True)
        while not self._idle.empty():
            worker = self._idle.get()
            if worker is not None:
                worker.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def locate(function: str) -> str:
    """Return ``function`` as a worker loads it.

    One of this package is given by its file, because importing the package imports torch.
    """
    place, _, name = function.rpartition(":")
    if place != __package__:
        return function
    found = getattr(importlib.import_module(place), name, None)
    if not inspect.isfunction(found):
        raise RewardError(f"function={function!r}: {place} has no function {name}")
    return f"{inspect.getfile(found)}:{found.__name__}"
