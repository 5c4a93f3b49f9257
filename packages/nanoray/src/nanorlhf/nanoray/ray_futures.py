"""Futures of ours over those of Ray, whose errors are Ray's."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from .ray_errors import from_ray


def future_of(theirs: "Future[Any]", value_of: Callable[[Any], Any]) -> "Future[Any]":
    """Return a future of ``value_of(value)``; cancelling it leaves the call alone."""
    ours: Future[Any] = Future()

    def settle(done: "Future[Any]") -> None:
        if not ours.set_running_or_notify_cancel():
            return
        error = done.exception()
        if error is None:
            ours.set_result(value_of(done.result()))
        else:
            ours.set_exception(from_ray(error))

    theirs.add_done_callback(settle)
    return ours
