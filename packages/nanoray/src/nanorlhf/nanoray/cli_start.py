"""``nanoray start``: from its arguments to a daemon that is ready.

The command forks the daemon and waits on a pipe until it is ready or says what is wrong; the
daemon's session and output are its own, so it outlives the terminal.
"""

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from .address import parse_address
from .daemons import Daemon, default_root, private_directory
from .errors import NanoRayError
from .policies import Policy

PORT = 6380


def add_arguments(start: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    role = start.add_mutually_exclusive_group(required=True)
    role.add_argument("--head", action="store_true", help="begin a cluster")
    role.add_argument("--address", help="join the cluster whose head listens at host:port")
    start.add_argument("--host", default="127.0.0.1", help="interface to listen on")
    start.add_argument("--port", type=int, help=f"default: {PORT} for a head, else any free one")
    start.add_argument("--token-path", type=Path, help="default: ~/.nanoray/token")
    start.add_argument("--num-cpus", type=float)
    start.add_argument("--num-gpus", type=int)
    start.add_argument("--resources", type=json.loads, default={}, help='JSON: {"license": 2}')
    start.add_argument("--object-store-memory", type=int, metavar="BYTES", help="for values")
    start.add_argument("--object-spilling-directory", metavar="DIR", help="where they overflow to")
    start.add_argument("--preload", nargs="*", default=[], help="modules imported once")
    for part, text in (
        ("cert", "this machine's certificate, for TLS"),
        ("key", "its private key"),
        ("ca", "who signs the certificates of the cluster"),
    ):
        start.add_argument(f"--tls-{part}", type=Path, help=text)
    start.add_argument("--block", action="store_true", help="stay in the foreground")
    whole = start.add_argument_group("of the whole cluster, with --head")
    whole.add_argument("--scheduling-policy", choices=get_args(Policy), default="default")
    isolate = "show no GPU to calls that ask for none"
    whole.add_argument("--isolate-gpus", action="store_true", help=isolate)


def run_start(options: argparse.Namespace) -> None:
    """Start a daemon, or be one with ``--block``.

    Raises:
        NanoRayError, OSError, ValueError: The daemon did not start, and why.
    """
    if options.block:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        _serve(options, lambda daemon: _say_ready(daemon, options))
    else:
        _start_daemon(options)


def _serve(options: argparse.Namespace, on_ready: Callable[[Daemon], None]) -> None:
    """Be the daemon; returns when it is told to stop."""
    from .agent import run_agent  # here, not above: they import numpy and cloudpickle
    from .head import run_head

    policy, is_isolated = options.scheduling_policy, options.isolate_gpus
    if options.head:
        run_head(
            _config(options, PORT),
            on_ready=on_ready,
            isolate_gpus=is_isolated,
            scheduling_policy=policy,
        )
    elif is_isolated or policy != "default":
        raise ValueError(
            "--scheduling-policy and --isolate-gpus hold for the whole cluster; give them to "
            "nanoray start --head"
        )
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
        object_store_memory=options.object_store_memory,
        object_spilling_directory=options.object_spilling_directory,
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
    sys.stdout.write(answer.removeprefix("ready\n"))


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
    sys.stdout.write(_welcome(daemon, options))
    sys.stdout.flush()


def _welcome(daemon: Daemon, options: argparse.Namespace) -> str:
    if daemon.role == "agent":
        return f"joined the cluster of {daemon.head}\n"
    token = options.token_path or "~/.nanoray/token"
    stop = ["nanoray", "stop"]
    place = f"nano://{daemon.address}"
    if options.root:
        place = str(options.root.absolute())
        stop[1:1] = ["--root", place]
    return (
        f"the head listens on {daemon.address}\n"
        f"  other machines:  nanoray start --address={daemon.address}   (with a copy of {token})\n"
        f"  programs here:   nanoray.init({json.dumps(place)})\n"
        f"  end:             {shlex.join(stop)}\n"
    )
