"""The program that reward functions run in: started once a pool, it forks one worker at a time.

The function's module is imported here once, so a worker that had to be killed is replaced in
milliseconds. The pool speaks to this program over one socket, a request at a time::

    pool                     this program                worker
    "fork"          ->       fork                        waits for an item
                    <-       pid, and a socket to it
    item            --------------------------------->   calls the function
                    <---------------------------------   reward, or error
    "end 4711"      ->       kill its process group
                    <-       how it ended

When the pool's process dies, however it dies, that socket closes and all workers are killed.

It imports neither torch nor its own package, and is run as a file: ``reward_worker.py <fd>``.
"""

import importlib
import importlib.util
import json
import math
import os
import pickle
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

RewardFunction = Callable[..., float | Mapping[str, float]]

POLL_S = 1.0
"""How often to look whether the pool's process still lives, should its socket have been copied."""


def load_reward(function: str) -> RewardFunction:
    """Return the function named ``package.module:name`` or ``path/to/file.py:name``.

    Raises:
        ValueError: The name has another form, or is of nothing that can be called.
        ImportError: There is no such module or file.
    """
    place, _, name = function.rpartition(":")
    if not place or not name.isidentifier():
        raise ValueError(
            f"function={function!r} names no function; "
            f"use 'package.module:name' or 'path/to/file.py:name'"
        )
    module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    found = getattr(module, name, None)
    if not callable(found):
        names = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise ValueError(f"function={function!r}: {place} has no function {name}; it has {names}")
    return found  # type: ignore[no-any-return]  # checked where it returns


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ImportError(f"no file {path} in {Path.cwd()}; give a path from there, or a full one")
    name = f"nanoverl_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, f"a .py file has a loader: {path}"
    assert spec.loader is not None, f"a .py file has a loader: {path}"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for it
    spec.loader.exec_module(module)
    return module


def evaluate(function: RewardFunction, item: Mapping[str, Any]) -> dict[str, float]:
    """Return the named parts of the reward of one item, the total as ``reward``.

    Raises:
        ValueError: The function returned something else than a finite number, or a mapping of
            them that has a ``reward``.
    """
    value = function(**item)
    parts = dict(value) if isinstance(value, Mapping) else {"reward": value}
    if "reward" not in parts:
        raise ValueError(f"the function returned parts {sorted(parts)}; name the total 'reward'")
    numbers = {str(name): float(part) for name, part in parts.items()}
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"the function returned {name}={number}; return a finite number")
    return numbers


def serve(connection: Connection, function: RewardFunction) -> None:
    """Answer items until the pool closes the connection."""
    while True:
        try:
            item = connection.recv_bytes()
        except EOFError:
            return
        try:
            answer: dict[str, Any] = {"parts": evaluate(function, pickle.loads(item))}
        except Exception as error:  # noqa: BLE001  # a process boundary: the pool reports it
            answer = {"error": describe(error)}
        connection.send_bytes(json.dumps(answer).encode())


def describe(error: BaseException) -> str:
    """Return one line: the error and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


class Nursery:
    """Forks workers and ends them, on request over ``control``."""

    def __init__(self, control: socket.socket, function: RewardFunction) -> None:
        self.control = control
        self.function = function
        self.workers: set[int] = set()
        self.parent = os.getppid()

    def run(self) -> None:
        """Serve requests until the pool is gone, then end every worker."""
        try:
            while request := self._request():
                verb, _, argument = request.decode().partition(" ")
                if verb == "fork":
                    self._fork()
                else:
                    self.control.send(str(self._end(int(argument))).encode())
        except ConnectionError:
            pass  # the pool went away while it was answered
        for pid in list(self.workers):
            self._end(pid)

    def _request(self) -> bytes:
        """Return the next request, empty once the pool is gone."""
        while not select.select([self.control], [], [], POLL_S)[0]:
            if os.getppid() != self.parent:
                return b""
        return self.control.recv(64)

    def _fork(self) -> None:
        here, there = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            self._become_worker(here, there)
        with here, there:
            self.workers.add(pid)
            socket.send_fds(self.control, [str(pid).encode()], [here.fileno()])

    def _become_worker(self, here: socket.socket, there: socket.socket) -> None:
        try:
            os.setpgid(0, 0)  # so that what the function starts can be killed with it
            self.control.close()
            here.close()
            serve(Connection(there.detach()), self.function)
        except (ConnectionError, KeyboardInterrupt):
            pass  # the pool has closed the connection
        finally:
            os._exit(0)

    def _end(self, pid: int) -> int:
        """Kill a worker and all it started; return its exit status, negative for a signal."""
        self.workers.discard(pid)
        for kill in (os.killpg, os.kill):  # it may not have its own group yet
            try:
                kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(descriptor: int) -> None:
    """Load the function that the first message names, say how that went, and serve."""
    control = socket.socket(fileno=descriptor)
    setup = json.loads(control.recv(1 << 20))
    sys.path[:] = setup["path"]
    try:
        function = load_reward(setup["function"])
    except Exception as error:  # noqa: BLE001  # a process boundary: the pool raises it
        control.send(json.dumps({"error": describe(error)}).encode())
        return
    control.send(json.dumps({"error": None}).encode())
    prepare = getattr(sys.modules[function.__module__], "prepare", None)
    if prepare is not None:
        prepare()
    Nursery(control, function).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
