"""What an engine is doing: its tasks, actors, objects, workers and machines, as plain rows.

The names are those of Ray's state API (``ray.util.state``). Each function asks the engine once and
returns a picture of that moment.
"""

import json
from pathlib import Path
from typing import Any, Literal, get_args

from .session import current

Row = dict[str, Any]
Kind = Literal["actors", "nodes", "objects", "tasks", "workers"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def list_tasks() -> list[Row]:
    """Return the calls that have not ended, then the last ones that have, newest last.

    Each has ``task_id, name, type, state, worker_id, node_id``; those that have run also
    ``start_time_s`` and ``duration_s``.
    """
    return list_state("tasks")


def list_actors() -> list[Row]:
    """Return ``actor_id, class_name, name, state, worker_id, pid, node_id, restarts_left``."""
    return list_state("actors")


def list_objects() -> list[Row]:
    """Return ``object_id, size_bytes, location, holders, is_error`` of what the store knows."""
    return list_state("objects")


def list_workers() -> list[Row]:
    """Return ``worker_id, pid, node_id, runs, num_calls, gpu_ids`` of every process."""
    return list_state("workers")


def list_nodes() -> list[Row]:
    """Return the machines, as ``nodes()`` does."""
    return list_state("nodes")


def list_state(kind: Kind) -> list[Row]:
    """Return the rows of one kind.

    Raises:
        ValueError: There is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; use one of {', '.join(KINDS)}")
    return current().nodes() if kind == "nodes" else current().state(kind)


def timeline(filename: str | Path | None = None) -> list[Row]:
    """Return the last 10,000 calls as Chrome trace events, and write them to a file if asked.

    Open the file in ``chrome://tracing`` or at https://ui.perfetto.dev: a row is a process, a bar
    is a call.
    """
    events = current().timeline()
    if filename is not None:
        Path(filename).write_text(json.dumps(events))
    return events
