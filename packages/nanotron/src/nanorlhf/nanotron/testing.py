"""Run a function on several ranks in milliseconds: processes forked from a clean server.

Starting Python and importing torch takes seconds a process; forking a process that has already
imported it takes milliseconds. But forking *this* process is not safe once it ran a backward, a
thread pool or CUDA. So a fork server imports torch once, does nothing else, and every rank of
every call is forked from it.
"""

import faulthandler
import importlib.util
import inspect
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from .errors import RankFailed

T = TypeVar("T")

# What test modules import; a name that is not installed is skipped by the server.
_PRELOAD = [
    "torch",
    "torch.distributed",
    "numpy",
    "safetensors.torch",
    "nanorlhf.nanotron",
    __name__,
    "pytest",
]


class _Task(NamedTuple):
    """What a rank runs: a function found by file and name, so test modules need no import path."""

    file: str
    name: str
    module: str
    args: tuple[Any, ...]
    store: str
    world_size: int
    timeout_s: float


def run_ranks(fn: Callable[..., T], n: int, *args: object, timeout_s: float = 60.0) -> list[T]:
    """Return ``[fn(rank, *args) for rank in range(n)]``, each in a process of its own.

    The processes form a gloo process group of ``n`` ranks with one thread each. Nothing outlives
    the call: on an error or timeout all ranks are killed.

    Args:
        fn: A module-level function; its file is loaded in each rank.
        n: Number of ranks.
        args: Picklable, as is what ``fn`` returns.
        timeout_s: For everything, the start included.

    Raises:
        RankFailed: A rank raised or died (with its traceback), or time ran out (with the stacks
            of the ranks that were still running).
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        task = _Task(
            file=inspect.getfile(fn),
            name=fn.__qualname__,
            module=fn.__module__,
            args=args,
            store=f"{folder}/store",
            world_size=n,
            timeout_s=timeout_s,
        )
        ranks = [_start(context, task, rank, Path(folder)) for rank in range(n)]
        try:
            return _collect(ranks, time.monotonic() + timeout_s)
        finally:
            for rank in ranks:
                rank.stop()


class _Rank:
    """One running rank as its parent sees it."""

    def __init__(self, index: int, process: BaseProcess, pipe: Connection, stacks: Path) -> None:
        self.index, self.process, self.pipe, self.stacks = index, process, pipe, stacks

    def stop(self) -> None:
        """End the process if it still runs, and free it."""
        if self.process.is_alive():
            self.process.join(timeout=0.5)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()

    def dump(self) -> str:
        """Return the stacks of all threads of the process."""
        if not self.stacks.exists():
            return "it had not started yet"
        if self.process.pid is not None:
            _signal(self.process.pid, signal.SIGUSR1)
        time.sleep(0.2)
        return self.stacks.read_text() or "it did not answer"


def _signal(pid: int, number: signal.Signals) -> None:
    """Send a signal; nothing happens when the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _start(context: ForkServerContext, task: _Task, rank: int, folder: Path) -> _Rank:
    """Fork one rank."""
    receiver, sender = context.Pipe(duplex=False)
    stacks = folder / f"stacks-{rank}"
    process = context.Process(
        target=_run, args=(rank, pickle.dumps(task), sender, str(stacks)), daemon=True
    )
    process.start()
    sender.close()
    return _Rank(rank, process, receiver, stacks)


class _Outcome(NamedTuple):
    """What a rank sends back."""

    ok: bool
    value: Any
    """The result, or the traceback."""
    at: float
    """System-wide monotonic time: the first failure is the cause of the others."""


def _collect(ranks: list[_Rank], deadline: float) -> list[Any]:
    """Return what the ranks send, in rank order."""
    results: dict[int, Any] = {}
    while len(results) < len(ranks):
        running = [rank for rank in ranks if rank.index not in results]
        ready = wait([rank.pipe for rank in running], max(0.0, deadline - time.monotonic()))
        if not ready:
            stacks = "\n".join(f"-- rank {rank.index}:\n{rank.dump()}" for rank in running)
            raise RankFailed(f"ranks {[r.index for r in running]} ran out of time\n{stacks}")
        outcomes = {rank.index: _receive(rank) for rank in running if rank.pipe in ready}
        failures = {i: outcome for i, outcome in outcomes.items() if not outcome.ok}
        if failures:
            first = min(failures, key=lambda i: failures[i].at)
            raise RankFailed(f"rank {first} {failures[first].value}")
        results |= {i: outcome.value for i, outcome in outcomes.items()}
    return [results[rank.index] for rank in ranks]


def _receive(rank: _Rank) -> _Outcome:
    """Return what one rank sent, or what became of it."""
    try:
        outcome = pickle.loads(rank.pipe.recv_bytes())
        assert isinstance(outcome, _Outcome), "the child sends nothing else"
        return outcome
    except EOFError:
        rank.process.join(timeout=5)
        message = f"died without a result, exit code {rank.process.exitcode}"
        return _Outcome(False, message, time.monotonic())


def _run(rank: int, payload: bytes, pipe: Connection, stacks: str) -> None:
    """Be one rank: join the group, run the function, send its result or traceback."""
    with open(stacks, "w") as sink:
        faulthandler.register(signal.SIGUSR1, file=sink, all_threads=True)
        try:
            outcome = _Outcome(True, _work(rank, pickle.loads(payload)), time.monotonic())
            message = pickle.dumps(outcome)
        except Exception:  # noqa: BLE001  (a process boundary: the parent raises it again)
            failure = f"raised\n{traceback.format_exc()}"
            message = pickle.dumps(_Outcome(False, failure, time.monotonic()))
        pipe.send_bytes(message)
        pipe.close()
        # Only now: leaving the group makes the other ranks fail, which would hide the cause.
        if dist.is_initialized():
            dist.destroy_process_group()


def _work(rank: int, task: _Task) -> object:
    """Run the task inside a gloo group."""
    torch.set_num_threads(1)
    fn = _find(task)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{task.store}",
        rank=rank,
        world_size=task.world_size,
        timeout=timedelta(seconds=task.timeout_s),
    )
    return fn(rank, *task.args)


def _find(task: _Task) -> Callable[..., Any]:
    """Return the function, loading its file under its module's name."""
    module = sys.modules.get(task.module) if task.module != "__main__" else None
    if module is None:
        name = "__ranks_main__" if task.module == "__main__" else task.module
        spec = importlib.util.spec_from_file_location(name, task.file)
        assert spec is not None, f"{task.file} is not a Python file"
        assert spec.loader is not None, f"{task.file} cannot be loaded"
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    found: Any = module
    for part in task.name.split("."):
        found = getattr(found, part)
    result: Callable[..., Any] = found
    return result
