"""Calling a job on shares of the rows in several processes.

A job travels in one of two ways. If pickle can name its function in a module that another process
can import, workers are *fresh*: forks of an interpreter that has done nothing but import this
package (see ``zygote``), which inherit no locks and no threads; columns in memory are written to a
temporary file that all of them map. Else (a lambda, a closure, a function of ``__main__``) workers
are *forks* of this process, which have everything already; where the system has no fork, such a
function is an error. A worker counts the ranges that it has done where all can see it and sends one
message at the end; the end of its pipe without that is its death, so nothing can hang.
"""

import gc
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .blocks import Range
from .errors import WorkerError
from .sink import version
from .tally import Tally
from .zygote import forked, serve

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class Share(NamedTuple):
    """What one worker does."""

    ranges: list[Range]
    part: str
    """Path of the file that it may write."""


Done = Callable[[Range], object]
"""What a job calls after each of its ranges."""
Job = Callable[[Share, Done], Any]
LOOK_S = 0.1
"""Seconds between two looks at how far the workers are."""


class Result(NamedTuple):
    """The last message of a worker that did its share."""

    value: Any


class Failure(NamedTuple):
    """The last message of a worker whose job raised."""

    summary: str
    error: bytes | None
    """The exception, if it can be pickled."""


class Process(Protocol):
    """What there is to do with a running worker."""

    @property
    def exitcode(self) -> int | None:
        """How it ended; None while it runs."""

    def kill(self) -> None:
        """End it at once."""

    def join(self) -> None:
        """Wait for its end."""


@dataclass
class Worker:
    """A process at work on its share."""

    process: Process
    pipe: "Connection"
    share: Share
    tally: Callable[[], int]
    """Returns how many of its ranges are done."""
    seen: int = 0
    """Ranges that were known to be done at the last look."""
    result: Result | None = None

    def look(self) -> list[Range]:
        """Return the ranges that were done since the last look."""
        before, self.seen = self.seen, self.tally()
        return self.share.ranges[before : self.seen]

    def hear(self) -> None:
        """Take its only message.

        Raises:
            WorkerError: The job raised, or the process died.
        """
        try:
            message = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise WorkerError(self._where(), _death(self.process.exitcode)) from None
        if isinstance(message, Failure):
            cause = None if message.error is None else pickle.loads(message.error)
            raise WorkerError(self._where(), message.summary) from cause
        self.result = message

    def _where(self) -> Range:
        """Return the range that it is at."""
        ranges, done = self.share.ranges, self.tally()
        if done < len(ranges):
            return ranges[done]
        return Range(ranges[0].start, ranges[-1].stop)


def shares(ranges: Sequence[Range], num_proc: int, folder: str) -> list[Share]:
    """Return ranges dealt to at most ``num_proc`` workers, consecutive ones to each."""
    count = min(num_proc, len(ranges))
    edges = [len(ranges) * i // count for i in range(count + 1)]
    return [
        Share(list(ranges[edges[i] : edges[i + 1]]), os.path.join(folder, f"part-{i:05d}.nano"))
        for i in range(count)
    ]


def is_importable(function: Any, *others: Any) -> bool:  # noqa: ANN401 - what a job is made of
    """Return whether a fresh interpreter can get ``function`` and the others by pickle."""
    while isinstance(function, partial):
        function, others = function.func, (*others, function.args, function.keywords)
    owner = function if hasattr(function, "__module__") else type(function)
    top = str(owner.__module__).partition(".")[0]
    if not any(finder.find_spec(top, None) for finder in sys.meta_path):
        return False
    try:
        return b"__main__" not in pickle.dumps((function, others))
    except (pickle.PicklingError, AttributeError, TypeError):
        return False


def run(job: Job, dealt: Sequence[Share], *, fresh: bool, done: Done) -> list[Any]:
    """Return what ``job`` returns for each share, each in a process of its own.

    Args:
        job: Called with a share and what it calls after each range.
        dealt: The shares, none of them empty.
        fresh: Start fresh interpreters rather than forks.
        done: Called here for each range that any worker has done.

    Raises:
        ValueError: A fork is needed, and this system has none.
        WorkerError: A job raised or a process died; then all of them are ended.
    """
    from multiprocessing import get_all_start_methods  # 10 ms that one process never needs

    if not fresh and "fork" not in get_all_start_methods():
        raise ValueError(
            "num_proc needs a function that another process can import, since this system has no "
            "fork; define it at the top of a module other than __main__"
        )
    folder = os.path.dirname(dealt[0].part)
    tally = Tally.create(_tally_in(folder), len(dealt))
    workers: list[Worker] = []
    try:
        if fresh:
            _write(folder, job, dealt)
        for index, share in enumerate(dealt):
            start = partial(_fresh, folder) if fresh else partial(_forked, job, share, tally)
            workers.append(Worker(*start(index), share, partial(tally.of, index)))
        _hear_all(workers, done)
        return [worker.result.value for worker in workers if worker.result is not None]
    finally:
        for worker in workers:
            if worker.result is None:
                worker.process.kill()
            worker.process.join()
            worker.pipe.close()
        os.unlink(_tally_in(folder))
        if fresh:
            os.unlink(_job_in(folder))


def _tally_in(folder: str) -> str:
    return os.path.join(folder, "tally")


def _job_in(folder: str) -> str:
    return os.path.join(folder, "job.pickle")


def _hear_all(workers: Sequence[Worker], done: Done) -> None:
    from multiprocessing.connection import Connection, wait

    busy = {worker.pipe: worker for worker in workers}
    while busy:
        for pipe in wait(list(busy), timeout=LOOK_S):
            assert isinstance(pipe, Connection)
            busy.pop(pipe).hear()
        for worker in workers:
            for rows in worker.look():
                done(rows)


def _death(exitcode: int | None) -> str:
    how = f"exit code {exitcode}"
    if exitcode is not None and exitcode < 0:
        how = f"signal {signal.Signals(-exitcode).name}"
    return f"the worker died of {how}; if memory ran out, ask for a lower num_proc or batch_size"


def _forked(job: Job, share: Share, tally: Tally, index: int) -> "tuple[Process, Connection]":
    from multiprocessing import get_context
    from multiprocessing.connection import Pipe

    here, there = Pipe(duplex=False)
    process = get_context("fork").Process(
        target=_serve, args=(job, share, partial(tally.add, index), there, here), daemon=True
    )
    process.start()
    # The pipe ends with its worker only if nobody else, later workers included, holds that end.
    there.close()
    return process, here


def _fresh(folder: str, index: int) -> "tuple[Process, Connection]":
    from multiprocessing.connection import Pipe

    here, there = Pipe(duplex=False)
    process = forked([_job_in(folder), str(index)], there.fileno())
    there.close()
    return process, here


def _write(folder: str, job: Job, dealt: Sequence[Share]) -> None:
    with open(_job_in(folder), "wb") as handle:
        # The shares come first: a worker whose job cannot be loaded can still say so.
        pickle.dump(list(dealt), handle)
        pickle.dump(job, handle)


def main() -> None:
    """Be the process that fresh workers are forked from."""
    import multiprocessing.connection  # noqa: F401 - which every worker needs

    version()  # which every worker writes, and takes 20 ms to find out
    serve(int(sys.argv[1]), _work)


def _work(arguments: Sequence[str], number: int) -> None:
    """Do one share of a job that the parent process wrote to a file."""
    from multiprocessing.connection import Connection

    path, index = arguments[0], int(arguments[1])
    sys.argv[1:] = arguments
    pipe = Connection(number, readable=False)
    tally = Tally(_tally_in(os.path.dirname(path)))
    with open(path, "rb") as handle:
        share = pickle.load(handle)[index]
        _serve(lambda *args: pickle.load(handle)(*args), share, partial(tally.add, index), pipe)


def _serve(
    job: Job,
    share: Share,
    count: Callable[[], None],
    pipe: "Connection",
    other_end: "Connection | None" = None,
) -> None:
    """Do a share in this process, and say so."""
    if other_end is not None:  # a fork
        other_end.close()
        gc.freeze()  # a collection that looked through what the parent made would copy it all
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends its workers
    try:
        result = job(share, lambda rows: count())
        pipe.send(Result(result))
    except Exception as error:  # noqa: BLE001 - a process boundary, which passes it on
        pipe.send(Failure(_summary(error), _pickled(error)))


def _summary(error: Exception) -> str:
    trace = "".join(traceback.format_exception(error))
    return f"{type(error).__name__}: {error}\n\nIn the worker:\n{trace}"


def _pickled(error: Exception) -> bytes | None:
    """Return an exception as bytes, None when it does not survive that."""
    try:
        found = pickle.dumps(error)
        pickle.loads(found)
    except Exception:  # noqa: BLE001 - its summary travels anyway
        return None
    return found
