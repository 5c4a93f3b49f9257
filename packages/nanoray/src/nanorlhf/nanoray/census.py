"""The engine's tables as rows of plain values, for whoever looks on. No I/O."""

from collections.abc import Callable
from typing import Any

from .actors import Actors
from .calls import Call, Calls, Worker
from .history import Ran, Timeline
from .machines import Machines
from .objects import Objects

Row = dict[str, Any]

_TYPES = {"task": "NORMAL_TASK", "new": "ACTOR_CREATION_TASK", "method": "ACTOR_TASK"}
_STATES = {
    "waiting": "PENDING_ARGS_AVAIL",
    "queued": "PENDING_NODE_ASSIGNMENT",
    "running": "RUNNING",
}


class Census:
    """Looks into the tables; changes nothing.

    Args:
        calls: The calls under way.
        actors: All actors.
        objects: All objects.
        machines: Where processes are.
        timeline: The calls that have ended.
        workers: Returns every worker process.
    """

    def __init__(
        self,
        *,
        calls: Calls,
        actors: Actors,
        objects: Objects,
        machines: Machines,
        timeline: Timeline,
        workers: Callable[[], list[Worker]],
    ) -> None:
        self._calls, self._actors, self._objects = calls, actors, objects
        self._machines, self._timeline, self._workers = machines, timeline, workers

    def rows(self, kind: str) -> list[Row]:
        """Return the rows of "tasks", "actors", "objects" or "workers"."""
        tables = {
            "actors": self._actor_rows,
            "objects": self._object_rows,
            "tasks": self._task_rows,
            "workers": self._worker_rows,
        }
        return tables[kind]()

    def _task_rows(self) -> list[Row]:
        runs_on = {call: worker.id for worker in self._workers() for call in worker.calls}
        live = [self._live(call, runs_on.get(call.id)) for call in self._calls.live()]
        return [*live, *(self._ended(Ran(*ran)) for ran in self._timeline.last())]

    def _live(self, call: Call, worker: int | None) -> Row:
        spec = call.spec
        return {
            "task_id": f"{call.id:x}",
            "name": spec.name,
            "type": _TYPES[spec.kind],
            "state": _STATES[call.state],
            "worker_id": worker,
            "node_id": None if worker is None else self._node_of(worker),
        }

    def _ended(self, ran: Ran) -> Row:
        return {
            "task_id": f"{ran.call:x}",
            "name": ran.name,
            "type": _TYPES[ran.kind],
            "state": ran.outcome,
            "worker_id": ran.worker,
            "node_id": self._machines[ran.machine].about.node_id,
            "start_time_s": ran.began_s,
            "duration_s": ran.took_s,
        }

    def _actor_rows(self) -> list[Row]:
        return [
            {
                "actor_id": f"{about.id:x}",
                "class_name": about.class_name,
                "name": about.label,
                "state": about.state,
                "worker_id": about.worker,
                "pid": about.pid,
                "node_id": None if about.worker is None else self._node_of(about.worker),
                "restarts_left": about.restarts_left,
            }
            for about in self._actors.listed()
        ]

    def _object_rows(self) -> list[Row]:
        return [
            {
                "object_id": f"{listed.id:x}",
                "size_bytes": listed.size,
                "location": listed.location,
                "holders": list(listed.holders),
                "is_error": listed.is_error,
            }
            for listed in self._objects.listing()
        ]

    def _worker_rows(self) -> list[Row]:
        return [
            {
                "worker_id": worker.id,
                "pid": worker.pid,
                "node_id": self._node_of(worker.id),
                "runs": worker.label if worker.actor or worker.calls else None,
                "num_calls": len(worker.calls),
                "gpu_ids": list(worker.key.gpu_ids),
            }
            for worker in self._workers()
        ]

    def _node_of(self, worker: int) -> str:
        return self._machines[self._machines.of(worker)].about.node_id
