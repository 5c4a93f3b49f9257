"""The stream of a remote generator on Ray: its items one by one, as numbers."""

import asyncio
from concurrent.futures import Future
from typing import Any

from .errors import GetTimeoutError
from .ray_errors import from_ray, translated
from .ray_holds import Native, RayHolds


class RayStream:
    """A generator of Ray's, and the last item that was taken from it.

    Args:
        native: Ray's ObjectRefGenerator.
        holds: Where the last item is held until the next one is asked for.
    """

    def __init__(self, native: Native, holds: RayHolds) -> None:
        self._native, self._holds = native, holds
        self._index = -1
        self._item: int | None = None

    def completed(self) -> Native:
        """Return Ray's ref of the generator's end."""
        return self._native.completed()

    def next(self, index: int, *, timeout: float | None) -> int | None:
        """Return the number of item ``index``: the one after the last, or the last again."""
        import ray  # an extra: only whoever runs on Ray has it

        if index == self._index:
            return self._item
        with translated():
            ready, _ = ray.wait([self._native], timeout=timeout, fetch_local=False)
            if not ready:
                raise GetTimeoutError(
                    f"item {index} of a generator had not come after timeout={timeout} s; the "
                    f"work goes on: ask again, or drop the generator"
                )
            return self._took(index, next(self._native, None))

    def next_future(self, index: int) -> "Future[int | None]":
        """Return a future of what ``next`` returns; needs a running event loop."""
        ours: Future[int | None] = Future()
        task = asyncio.get_running_loop().create_task(self._next(index))

        def settle(done: "asyncio.Task[int | None]") -> None:
            if done.cancelled() or not ours.set_running_or_notify_cancel():
                return
            error = done.exception()
            if error is None:
                ours.set_result(done.result())
            else:
                ours.set_exception(from_ray(error))

        task.add_done_callback(settle)
        ours.add_done_callback(lambda done: task.cancel() if done.cancelled() else None)
        return ours

    async def _next(self, index: int) -> int | None:
        if index == self._index:
            return self._item
        try:
            return self._took(index, await self._native.__anext__())
        except StopAsyncIteration:
            return self._took(index, None)

    def _took(self, index: int, native: Any) -> int | None:  # noqa: ANN401  Ray's ref
        """Note the item, and let the one before go."""
        self._release()
        self._index = index
        self._item = None if native is None else self._holds.keep(native)
        return self._item

    def _release(self) -> None:
        if self._item is not None:
            self._holds.drop(self._item)

    def __del__(self) -> None:
        self._release()
