"""Where actors live: in this process, for a debugger, or in processes of a nanoray or Ray cluster.

The training loops reach a cluster through this interface alone, so that which engine runs them is
one word of the configuration. An actor is an instance of a class; a call on it returns a ref at
once; `get` waits for the values. Calls of one caller on one actor run in the order they were made.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from nanorlhf import nanoray

RuntimeName = Literal["inprocess", "nanoray", "ray"]


class Actor(Protocol):
    """A handle on an instance that may live in another process."""

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Start ``method`` and return a ref to its result; refs among ``args`` are resolved."""


class Runtime(Protocol):
    """The verbs a training loop needs of a cluster."""

    has_processes: bool
    """Whether actors run side by side, each in a process of its own."""

    def spawn(self, cls: type, *args: Any, **kwargs: Any) -> Actor:
        """Return an actor: ``cls(*args, **kwargs)`` somewhere."""

    def put(self, value: Any) -> Any:
        """Return a ref to ``value``, stored once however many actors read it."""

    def get(self, refs: Any, *, timeout_s: float | None = None) -> Any:
        """Return the value of a ref, or the list of values of a list of refs.

        Raises:
            Exception: What the call raised, the death of its actor, or the timeout.
        """

    def shutdown(self) -> None:
        """End what this runtime started."""


class Done(NamedTuple):
    """The ref of the in-process runtime: a call that has already run."""

    value: Any
    error: Exception | None = None


class LocalActor:
    """An actor in this process: a call runs to its end before it returns."""

    def __init__(self, instance: object) -> None:
        self.instance = instance

    def call(self, method: str, *args: Any, **kwargs: Any) -> Done:
        """Run ``method`` now and keep its value or its exception for `get`."""
        resolved = [settle(arg) for arg in args]
        try:
            return Done(getattr(self.instance, method)(*resolved, **kwargs))
        except Exception as error:  # noqa: BLE001 - the boundary between caller and actor: `get` re-raises
            return Done(None, error)


def settle(value: Any) -> Any:
    """Return what a `Done` holds, or raise its error; other values pass through."""
    if not isinstance(value, Done):
        return value
    if value.error is not None:
        raise value.error
    return value.value


class InProcess:
    """Everything in the caller's process and thread, so that a breakpoint anywhere works."""

    has_processes = False

    def spawn(self, cls: type, *args: Any, **kwargs: Any) -> LocalActor:
        """Construct ``cls`` here."""
        return LocalActor(cls(*args, **kwargs))

    def put(self, value: Any) -> Done:
        """Keep a reference to ``value``."""
        return Done(value)

    def get(self, refs: Any, *, timeout_s: float | None = None) -> Any:
        """Return values; nothing is ever pending, so ``timeout_s`` cannot pass."""
        if isinstance(refs, Done):
            return settle(refs)
        return [settle(ref) for ref in refs]

    def shutdown(self) -> None:
        """Nothing was started."""


class NanorayActor:
    """A handle on an actor process."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Send the call; it runs after those this process sent before it."""
        return getattr(self.handle, method).remote(*args, **kwargs)


class Nanoray:
    """Each actor in a process of its own, of an engine of nanoray that has imported torch.

    An engine that this process is connected to is used as it is; otherwise one is started, and ends
    with the runtime.

    Args:
        engine: "local" for processes forked here, "ray" for those of a Ray on this machine.
    """

    has_processes = True

    def __init__(self, engine: Literal["local", "ray"]) -> None:
        self.owned = not nanoray.is_initialized()
        self.actors: list[NanorayActor] = []
        if self.owned:
            nanoray.init(engine=engine, preload=("numpy", "torch"))

    def spawn(self, cls: type, *args: Any, **kwargs: Any) -> NanorayActor:
        """Start an actor process; a failing constructor fails its first call."""
        actor = NanorayActor(nanoray.remote(cls).options(num_cpus=0).remote(*args, **kwargs))
        self.actors.append(actor)
        return actor

    def put(self, value: Any) -> Any:
        """Store ``value`` in shared memory."""
        return nanoray.put(value)

    def get(self, refs: Any, *, timeout_s: float | None = None) -> Any:
        """Wait for values."""
        return nanoray.get(refs, timeout=timeout_s)

    def shutdown(self) -> None:
        """Kill the actors started here, and the cluster if this runtime started it."""
        for actor in self.actors:
            nanoray.kill(actor.handle)
        self.actors.clear()
        if self.owned:
            nanoray.shutdown()


def create_runtime(name: RuntimeName) -> Runtime:
    """Return the runtime called ``name``.

    Raises:
        ValueError: No runtime has that name.
    """
    runtimes: dict[RuntimeName, Callable[[], Runtime]] = {
        "inprocess": InProcess,
        "nanoray": lambda: Nanoray("local"),
        "ray": lambda: Nanoray("ray"),
    }
    if name not in runtimes:
        raise ValueError(f"runtime={name!r}; known: {', '.join(sorted(runtimes))}")
    return runtimes[name]()


def gather(runtime: Runtime, refs: Sequence[Any], *, timeout_s: float, what: str) -> list[Any]:
    """Return the values of ``refs``; a timeout names ``what`` was late.

    Raises:
        TimeoutError: A value did not come within ``timeout_s``.
    """
    try:
        values: list[Any] = runtime.get(list(refs), timeout_s=timeout_s)
    except nanoray.GetTimeoutError as error:
        raise TimeoutError(
            f"{what} took longer than {timeout_s:g} s; raise timeout_s or look at its process"
        ) from error
    return values
