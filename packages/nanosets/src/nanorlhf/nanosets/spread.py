"""Spreading a call over processes."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .calls import Call
from .chunks import FilePart
from .progress import progress
from .workers import Job, Share, is_importable, run


def in_processes(
    job_of: Callable[[Call], Job], call: Call, dealt: Sequence[Share], desc: str
) -> list[Any]:
    """Return what the job of a call returns for each share, each in a process of its own.

    Args:
        job_of: Makes the job of the call, which may have to read its rows from another file.
        call: The call.
        dealt: The shares; their parts lie in one folder.
        desc: Label of the progress bar.

    Raises:
        WorkerError: The function raised, or a process died.
    """
    fresh = is_importable(call.function, call.fn_kwargs, call.inputs.format)
    inputs = os.path.join(os.path.dirname(dealt[0].part), "inputs.nano")
    if fresh and not _is_in_files(call):
        call.inputs.save_to_disk(inputs, sync=False)
        columns = type(call.inputs).from_file(inputs).columns
        call = replace(call, inputs=call.inputs.of_columns(columns))
    with progress([rows for share in dealt for rows in share.ranges], desc) as done:
        found = run(job_of(call), dealt, fresh=fresh, done=done)
    if os.path.exists(inputs):
        os.unlink(inputs)
    return found


def _is_in_files(call: Call) -> bool:
    columns = call.inputs.columns.values()
    return all(isinstance(part, FilePart) for column in columns for part in column.parts)
