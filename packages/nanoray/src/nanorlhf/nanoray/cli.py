"""The command line: ``nanoray start | stop | status | list | logs | stack | timeline``.

``start`` makes this machine the head of a cluster, or a part of one. What looks on (``status``,
``list``, ``timeline``) attaches as a driver to the daemon of this machine; ``logs`` and ``stack``
read files and processes of this machine, and work also while a daemon hangs.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import api, inventory, state
from .cli_start import add_arguments, run_start
from .daemons import daemons, stop_daemons
from .errors import NanoRayError
from .session import set_current
from .stack import dump, workers


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0, or 2 with one line that says what is wrong."""
    options = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        run(options)
        api.shutdown()
    except (NanoRayError, OSError, ValueError) as error:
        print(f"nanoray {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nanoray", description="Clusters of nanoray.")
    parser.add_argument("--root", type=Path, help="where daemons keep their files, if not in /tmp")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str) -> Any:  # noqa: ANN401
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    add_arguments(add("start", run_start, "make this machine a part of a cluster"))
    add("stop", _stop, "end the daemons of this machine, with all their processes")
    status = add("status", _status, "show machines and resources")
    listing = add("list", _list, "show tasks, actors, objects, workers or nodes")
    listing.add_argument("kind", choices=state.KINDS)
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    trace = add("timeline", _timeline, "write the last calls as a Chrome trace")
    trace.add_argument("file", type=Path)
    for command in (status, listing, trace):
        command.add_argument("--address", default="auto", help="nano://host:port of the head")
    logs = add("logs", _logs, "show what the processes of this machine printed")
    logs.add_argument("name", nargs="?", help="a file of the listing, such as worker-3.log")
    logs.add_argument("--tail", type=int, default=100, metavar="N", help="last lines to show")
    stack = add("stack", _stack, "show where every thread of this machine's workers stands")
    stack.add_argument("pid", nargs="*", type=int, help="only these processes")
    return parser


# -- stop --------------------------------------------------------------------------------------


def _stop(options: argparse.Namespace) -> None:
    stopped = stop_daemons(root=options.root)
    for daemon in stopped:
        print(f"stopped {daemon.role} {daemon.pid}")
    if not stopped:
        print("no daemon of yours runs on this machine")


# -- looking on --------------------------------------------------------------------------------


def _attach(options: argparse.Namespace) -> None:
    from .attach import attach  # here, not above: it imports numpy and cloudpickle

    set_current(attach(options.address, root=options.root, runtime_env=None, log_to_driver=False))


def _status(options: argparse.Namespace) -> None:
    _attach(options)
    rows = [
        {
            "node": row["NodeID"][:8],
            "host": row["NodeManagerHostname"],
            "address": f"{row['NodeManagerAddress']}:{row['NodeManagerPort']}",
            "state": "alive" if row["Alive"] else "lost",
            "resources": _amounts(row["Resources"]),
        }
        for row in inventory.nodes()
    ]
    print(table(rows))
    total, free = inventory.cluster_resources(), inventory.available_resources()
    used = {name: amount - free.get(name, 0) for name, amount in total.items()}
    print(f"\nin use: {_amounts(used)} of {_amounts(total)}")


def _list(options: argparse.Namespace) -> None:
    _attach(options)
    rows = state.list_state(options.kind)
    if options.json:
        for row in rows:
            print(json.dumps(row))
    else:
        print(table(rows))


def _timeline(options: argparse.Namespace) -> None:
    _attach(options)
    events = state.timeline(options.file)
    bars = sum(event["ph"] == "X" for event in events)
    print(f"wrote {bars} calls to {options.file}; open it at https://ui.perfetto.dev")


def _logs(options: argparse.Namespace) -> None:
    files = [file for daemon in daemons(options.root) for file in sorted(daemon.logs.glob("*.log"))]
    if options.name is None:
        print(table([{"file": f.name, "bytes": f.stat().st_size} for f in files]))
        return
    found = [file for file in files if file.name == options.name]
    if not found:
        known = ", ".join(file.name for file in files) or "none: no daemon runs here"
        raise ValueError(f"no log is called {options.name!r}; there are {known}")
    for file in found:
        lines = file.read_text(errors="replace").splitlines()
        print(*lines[-options.tail :], sep="\n")


def _stack(options: argparse.Namespace) -> None:
    for pid in options.pid or workers():
        stack = dump(pid)
        print(f"-- {stack.name}, pid {stack.pid}\n{stack.text}")


def _amounts(resources: Mapping[str, float]) -> str:
    return " ".join(f"{name}={amount:g}" for name, amount in sorted(resources.items())) or "-"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows under their names, in columns as wide as they need.

    >>> print(table([{"id": 1, "name": "f()"}, {"id": 12, "state": "RUNNING"}]))
    id  name  state
    1   f()
    12        RUNNING
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    return "\n".join(lines) if rows else "(none)"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
