"""An actor with threads: ``max_concurrency`` calls at a time, begun in the order they came.

The main thread reads the calls and hands them out, so that a full house never stops messages.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from .link import WorkerLink
from .messages import Run
from .performer import Performer


def serve_in_threads(link: WorkerLink, performer: Performer, *, num_threads: int) -> NoReturn:
    """Run the calls of this actor until the engine says, or is gone."""
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="nanoray-call")

    def perform(run: Run) -> None:
        performer.perform(run)
        del run
        performer.flush()

    while True:
        pool.submit(perform, link.next_run())
