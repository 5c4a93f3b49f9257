"""The command line: ``nanoray start | stop | status | list | logs | stack | timeline``.

``start`` makes this machine the head of a cluster, or a part of one. What looks on (``status``,
``list``, ``timeline``) attaches as a driver to the daemon of this machine; ``logs`` and ``stack``
read files and processes of this machine, and work also while a daemon hangs.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import api, state
from .address import parse_address
from .daemons import Daemon, daemons, default_root, private_directory, stop_daemons
from .errors import NanoRayError
from .session import set_current
from .stack import dump, workers

PORT = 6380


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

    _add_start(add("start", _start, "make this machine a part of a cluster"))
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


def _add_start(start: argparse.ArgumentParser) -> None:
    role = start.add_mutually_exclusive_group(required=True)
    role.add_argument("--head", action="store_true", help="begin a cluster")
    role.add_argument("--address", help="join the cluster whose head listens at host:port")
    start.add_argument("--host", default="127.0.0.1", help="interface to listen on")
    start.add_argument("--port", type=int, help=f"default: {PORT} for a head, else any free one")
    start.add_argument("--token-path", type=Path, help="default: ~/.nanoray/token")
    start.add_argument("--num-cpus", type=float)
    start.add_argument("--num-gpus", type=int)
    start.add_argument("--resources", type=json.loads, default={}, help='JSON: {"license": 2}')
    start.add_argument("--preload", nargs="*", default=[], help="modules imported once")
    for part, text in (
        ("cert", "this machine's certificate, for TLS"),
        ("key", "its private key"),
        ("ca", "who signs the certificates of the cluster"),
    ):
        start.add_argument(f"--tls-{part}", type=Path, help=text)
    start.add_argument("--block", action="store_true", help="stay in the foreground")


# -- start and stop ----------------------------------------------------------------------------


def _start(options: argparse.Namespace) -> None:
    if options.block:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        _serve(options, lambda daemon: _say_ready(daemon, options))
    else:
        _start_daemon(options)


def _serve(options: argparse.Namespace, on_ready: Callable[[Daemon], None]) -> None:
    """Be the daemon; returns when it is told to stop."""
    from .agent import run_agent  # here, not above: they import numpy and cloudpickle
    from .head import run_head

    if options.head:
        run_head(_config(options, PORT), on_ready=on_ready)
    else:
        run_agent(parse_address(options.address), _config(options, 0), on_ready=on_ready)


def _config(options: argparse.Namespace, port: int) -> Any:  # noqa: ANN401  imported late
    from .station import MachineConfig
    from .tls import TlsFiles

    certificate, key, authority = options.tls_cert, options.tls_key, options.tls_ca
    files = None
    if certificate and key and authority:
        files = TlsFiles(certificate=certificate, key=key, authority=authority)
    elif certificate or key or authority:
        raise ValueError("TLS needs all of --tls-cert, --tls-key and --tls-ca")
    return MachineConfig(
        host=options.host,
        port=port if options.port is None else options.port,
        token_path=options.token_path,
        tls=files,
        num_cpus=options.num_cpus,
        num_gpus=options.num_gpus,
        resources=options.resources,
        preload=options.preload,
        root=options.root,
    )


def _start_daemon(options: argparse.Namespace) -> None:
    """Fork a daemon; return when it is ready, or raise what kept it from starting."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        _become_daemon(options, writer)
    os.close(writer)
    with open(reader) as pipe:
        answer = pipe.read()
    if not answer.startswith("ready"):
        raise NanoRayError(answer.strip() or "the daemon ended before it was ready")
    print(answer.removeprefix("ready\n"), end="")


def _become_daemon(options: argparse.Namespace, writer: int) -> None:
    """Be a process of its own session whose output goes to a file, and never return."""
    status, answer = 1, os.fdopen(writer, "w")
    log = private_directory(options.root or default_root()) / f"starting-{os.getpid()}.log"

    def on_ready(daemon: Daemon) -> None:
        if not answer.closed:  # else it has joined again after it was cut off
            log.rename(daemon.logs / "daemon.log")
            print(f"ready\n{_welcome(daemon, options)}", end="", file=answer)
            answer.close()

    try:
        os.setsid()
        _log_to(log)
        _serve(options, on_ready)
        status = 0
    except (NanoRayError, OSError, ValueError) as error:
        logging.getLogger(__name__).error("%s", error)
        if not answer.closed:
            print(error, file=answer, flush=True)
            log.unlink()
    finally:
        os._exit(status)


def _log_to(path: Path) -> None:
    """Turn stdin, stdout and stderr away from the terminal, also those of processes to come."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")


def _say_ready(daemon: Daemon, options: argparse.Namespace) -> None:
    print(_welcome(daemon, options), end="", flush=True)


def _welcome(daemon: Daemon, options: argparse.Namespace) -> str:
    if daemon.role == "agent":
        return f"joined the cluster of {daemon.head}\n"
    token = options.token_path or "~/.nanoray/token"
    return (
        f"the head listens on {daemon.address}\n"
        f"  other machines:  nanoray start --address={daemon.address}   (with a copy of {token})\n"
        f'  programs here:   nanoray.init("nano://{daemon.address}")\n'
        f"  end:             nanoray stop\n"
    )


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
        for row in api.nodes()
    ]
    print(table(rows))
    total, free = api.cluster_resources(), api.available_resources()
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
