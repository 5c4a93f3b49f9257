"""The public functions: each checks its arguments and asks the engine."""

import atexit
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

from .errors import NanoRayError
from .generator import ObjectRefGenerator
from .group import PlacementGroup
from .memory import check_store_bytes
from .placement import Strategy
from .policies import Policy
from .refs import Holds, ObjectRef, UserValue, ids_of
from .remote import ActorHandle
from .session import current, is_open, set_current


def init(
    address: str | None = None,
    *,
    engine: Literal["local", "ray"] = "local",
    num_cpus: float | None = None,
    num_gpus: int | None = None,
    resources: Mapping[str, float] | None = None,
    object_store_memory: int | None = None,
    object_spilling_directory: str | None = None,
    preload: Sequence[str] = (),
    runtime_env: Mapping[str, Any] | None = None,
    log_to_driver: bool = True,
    isolate_gpus: bool = False,
    scheduling_policy: Policy = "default",
    ignore_reinit_error: bool = False,
) -> None:
    """Start an engine on this machine, which ends with this process, or join a cluster.

    Returns at once; the first call waits until ``preload`` is imported.

    Args:
        address: None starts an engine. "auto" or "nano://host:port" (of the head) joins a running
            cluster through its daemon on this machine, which ``nanoray start`` starts; the
            cluster goes on when this process leaves. A directory, "/run/me", is the ``--root`` of
            a daemon that was started with one. With Ray: "auto" or an address of Ray's.
        engine: "local" is ours; "ray" runs the same program on Ray, of which `start_ray` tells.
        num_cpus: CPUs to hand out; None is all this process may use.
        num_gpus: GPUs to hand out; None is all in CUDA_VISIBLE_DEVICES, or of the machine.
        resources: Custom resources, ``{"license": 2}``.
        object_store_memory: Bytes of shared memory that values may take; None is 30 % of what this
            process may use. When it is full, values that nobody looks at move to disk.
        object_spilling_directory: Where they move to; None is /var/tmp, or the system's directory
            for temporary files.
        preload: Modules imported once, from which every process is forked; name what all tasks
            and actors import and is slow (``("torch",)``).
        runtime_env: What all calls find around them, ``{"env_vars": {"SEED": "1"}, "working_dir":
            "run", "py_paths": ["lib"]}``; calls may change it in parts by an option of this name.
        log_to_driver: Show what tasks and actors print, marked with their name and process id.
            Lines that several processes say alike, but for numbers, are shown once and counted.
        isolate_gpus: Set CUDA_VISIBLE_DEVICES to "" for calls without GPUs, so that none of them
            can take one unseen; else they see what this process sees.
        scheduling_policy: "default" packs calls onto the fullest machine up to its half and then
            spreads; "round_robin" takes the machines in turn; with "fifo" calls start strictly in
            the order they came, those made inside others first, and none overtakes.
        ignore_reinit_error: Do nothing when an engine is running already.

    Raises:
        NanoRayError: An engine is running already, this is not Linux, no daemon of the cluster
            runs on this machine, or Ray is not installed or not reached.
        AuthenticationError: The daemon of this machine is another user's.
        ValueError: Resources or modules are named with an address: they belong to ``nanoray
            start``. An amount is out of range, or a module of ``preload`` does not exist.
    """
    if is_open():
        if ignore_reinit_error:
            return
        raise NanoRayError("init() was called before; call shutdown() first")
    check_store_bytes(object_store_memory)
    if engine not in ("local", "ray"):
        raise ValueError(f"engine={engine!r} is unknown; use 'local' or 'ray'")
    if engine == "ray":
        if isolate_gpus or scheduling_policy != "default":
            raise ValueError(
                f"isolate_gpus={isolate_gpus} and scheduling_policy={scheduling_policy!r} are for "
                f"engine='local': Ray has its own ways; leave both out"
            )
        from .ray_start import start_ray  # here, not above: Ray is an extra

        atexit.register(shutdown)
        set_current(
            start_ray(
                address,
                amounts={
                    "num_cpus": num_cpus,
                    "num_gpus": num_gpus,
                    "resources": resources,
                    "object_store_memory": object_store_memory,
                    "object_spilling_directory": object_spilling_directory,
                },
                preload=preload,
                runtime_env=runtime_env,
                log_to_driver=log_to_driver,
            )
        )
        return
    if sys.platform != "linux":
        raise NanoRayError(
            f"platform={sys.platform!r}: the local engine needs memfd, pidfd and prctl of Linux"
        )
    if address is not None:
        _join(
            address,
            {
                "num_cpus": num_cpus,
                "num_gpus": num_gpus,
                "resources": resources,
                "object_store_memory": object_store_memory,
                "object_spilling_directory": object_spilling_directory,
                "preload": preload or None,
                "isolate_gpus": isolate_gpus or None,
                "scheduling_policy": None if scheduling_policy == "default" else scheduling_policy,
            },
            runtime_env=runtime_env,
            log_to_driver=log_to_driver,
        )
        return
    for name in [preload] if isinstance(preload, str) else preload:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"preload has {name!r}, which cannot be imported; install it")
    from .local import start_local  # here, not above: it imports numpy and cloudpickle

    atexit.register(shutdown)
    set_current(
        start_local(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            resources=resources,
            object_store_memory=object_store_memory,
            object_spilling_directory=object_spilling_directory,
            preload=preload,
            runtime_env=runtime_env,
            log_to_driver=log_to_driver,
            isolate_gpus=isolate_gpus,
            scheduling_policy=scheduling_policy,
        )
    )


def _join(
    address: str,
    owned: Mapping[str, object],
    *,
    runtime_env: Mapping[str, Any] | None,
    log_to_driver: bool,
) -> None:
    """Join a cluster; ``owned`` is what its machines decide, not its drivers."""
    given = [name for name, value in owned.items() if value is not None]
    if given:
        raise ValueError(
            f"address={address!r} joins a cluster whose machines have their {', '.join(given)} "
            f"already; give them to nanoray start"
        )
    from .attach import attach  # here, not above: it imports numpy and cloudpickle

    atexit.register(shutdown)
    set_current(attach(address, runtime_env=runtime_env, log_to_driver=log_to_driver))


def shutdown() -> None:
    """End the engine and kill all its processes, or leave the cluster; nothing if there is none."""
    if is_open() and current().context().is_driver:
        backend = current()
        set_current(None)
        backend.shutdown()


def is_initialized() -> bool:
    """Return whether this process is connected to an engine; a fork of it is not."""
    return is_open()


def put(value: object) -> ObjectRef:
    """Store a value once; return a ref that any number of calls may share.

    Arrays and CPU tensors are copied into shared memory. Readers get arrays back read-only and
    without a copy; a tensor may be written to, which copies its pages for that process alone.

    Raises:
        SerializationError: The value cannot be sent to another process.
        StoreFullError: It is larger than the store, or found no room in it within 10 seconds.
        TypeError: It is a ref itself.
    """
    backend = current()
    return ObjectRef(backend.put(value), backend.holds)


def get(refs: ObjectRef | Sequence[ObjectRef], *, timeout: float | None = None) -> UserValue:
    """Return the value of a ref, or the values of a list of refs in order.

    In a coroutine ``await ref`` instead: this would stop the loop until the value is there.

    Args:
        refs: One ref, or a list.
        timeout: Seconds to wait; None is for ever.

    Raises:
        TaskError: The call raised; the error is also an instance of what it raised. A list raises
            as soon as one of its calls has failed, whatever the others do.
        ActorDiedError: The actor died or could not be created.
        WorkerCrashedError: The task's process died, and no retry is left.
        TaskCancelledError: The call was cancelled.
        PlacementGroupRemovedError: The call was placed in a group that is gone.
        InfeasibleError: The call can never run, since it is nested too deep or a machine was lost.
        ObjectLostError: The value was only on a machine that is gone, or was damaged on disk.
        EngineError: The engine was shut down, or is broken.
        GetTimeoutError: Time is up; the work goes on.
    """
    if isinstance(refs, ObjectRef):
        backend = current()
        if not refs.belongs_to(backend.holds):
            _refuse((refs,), backend.holds)
        return backend.get([refs.id], timeout=_checked(timeout))[0]
    ids = _ids(refs)
    return current().get(ids, timeout=_checked(timeout)) if ids else []


def wait(
    refs: Sequence[ObjectRef],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[ObjectRef], list[ObjectRef]]:
    """Return ``(ready, pending)`` as soon as ``num_returns`` refs are ready, or time is up.

    Both lists keep the order of ``refs``; ``ready`` has at most ``num_returns``. A failed call is
    ready: ``get`` raises its error.

    Args:
        refs: All different.
        num_returns: How many to wait for.
        timeout: Seconds to wait; None is for ever, 0 looks and returns.
        fetch_local: Ready is what a ``get`` would return at once: values on other machines are
            brought to this one first. False counts them as ready where they are.

    Raises:
        TypeError: ``refs`` is no list of refs.
        ValueError: ``refs`` has duplicates, or ``num_returns`` is not in 1..len(refs).
    """
    ids = _ids(refs)
    if len(set(ids)) < len(ids):
        raise ValueError(f"wait got {len(ids)} refs with {len(set(ids))} different; drop the rest")
    if not 1 <= num_returns <= len(ids):
        raise ValueError(f"num_returns={num_returns} is not in 1..{len(ids)}, the number of refs")
    limit = _checked(timeout)
    done = current().wait(ids, num_returns=num_returns, timeout=limit, fetch_local=fetch_local)
    ready = [ref for ref in refs if ref.id in done][:num_returns]
    chosen = set(ready)
    return ready, [ref for ref in refs if ref not in chosen]


def cancel(
    ref: ObjectRef | ObjectRefGenerator, *, force: bool = False, recursive: bool = True
) -> None:
    """End the call whose result ``ref`` is; ``get`` of it then raises TaskCancelledError.

    A call that has not begun ends at once. In a task that runs, ``KeyboardInterrupt`` is raised:
    in Python code, ``time.sleep`` and ``get`` at once, in C code when it returns; the task may
    clean up, or return a result nevertheless. Of an actor's methods only coroutines are stopped
    while they run, by asyncio's ``CancelledError``, and generators, between two items: neither a
    plain method nor a thread is interrupted, for that could leave the actor's state half changed.
    What is ready stays as it is.

    Args:
        ref: Any result of the call, or its generator; the items made before stay, and the last ref
            is then the error.
        force: Kill the task's process instead of raising in it; it is not retried.
        recursive: Cancel the calls too that the call has made and that have not ended.

    Raises:
        ValueError: ``force`` for a method of an actor; ``kill`` the actor.
    """
    (object_id,) = _ids([ref.completed() if isinstance(ref, ObjectRefGenerator) else ref])
    current().cancel(object_id, force=force, recursive=recursive)


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """Kill an actor's process at once; its pending and later calls raise ActorDiedError.

    Args:
        actor: Whom.
        no_restart: False makes this a crash like others: the actor is made again while it has
            ``max_restarts`` left.

    Raises:
        TypeError: ``actor`` is no handle.
    """
    if not isinstance(actor, ActorHandle):
        raise TypeError(f"kill({actor!r}) needs an actor handle")
    current().kill(actor.id, no_restart=no_restart)


def get_actor(name: str) -> ActorHandle:
    """Return a handle of the live actor that was created with ``options(name=...)``.

    Raises:
        ValueError: There is none of that name.
    """
    backend = current()
    return ActorHandle(backend.get_actor(name), backend.holds)


def placement_group(
    bundles: Sequence[Mapping[str, float]], *, strategy: Strategy = "PACK", name: str = ""
) -> PlacementGroup:
    """Reserve bundles of resources together, all or none; return the group at once.

    Args:
        bundles: What to reserve, ``[{"CPU": 1, "GPU": 1}, ...]``.
        strategy: "PACK" is on as few machines as possible, "SPREAD" on as many, "STRICT_PACK" on
            one or not at all, "STRICT_SPREAD" each on its own or not at all.
        name: For ``get_placement_group``; empty for none.

    Raises:
        InfeasibleError: The machines can never hold the bundles.
        ValueError: A bundle is empty, the strategy unknown or the name taken.
    """
    group_id = current().create_group(bundles, strategy, name)
    return PlacementGroup(group_id, tuple(dict(bundle) for bundle in bundles), strategy, name)


def get_placement_group(name: str) -> PlacementGroup:
    """Return the placement group that was made with that ``name``.

    Raises:
        ValueError: There is none of that name.
    """
    info = current().get_group(name)
    return PlacementGroup(info.id, info.bundles, info.strategy, name)


def remove_placement_group(group: PlacementGroup) -> None:
    """Give a group's resources back; what runs in it is killed.

    Calls in it, now and later, raise PlacementGroupRemovedError, and those of its actors
    ActorDiedError. Nothing happens when it has been removed already.
    """
    current().remove_group(group.id)


def _ids(refs: Sequence[ObjectRef]) -> list[int]:
    if isinstance(refs, ObjectRefGenerator):
        raise TypeError(_of_stream(refs))
    if not isinstance(refs, Sequence):
        raise TypeError(f"{refs!r} is no ObjectRef and no list of them; pass list(refs)")
    holds = current().holds
    ids = ids_of(refs, holds)
    if len(ids) < len(refs):
        _refuse(refs, holds)
    return ids


def _refuse(refs: Sequence[ObjectRef], holds: Holds) -> NoReturn:
    """Raise what is wrong with the first that is no ref of this engine."""
    bad = next(ref for ref in refs if type(ref) is not ObjectRef or not ref.belongs_to(holds))
    if isinstance(bad, ObjectRefGenerator):
        raise TypeError(_of_stream(bad))
    if type(bad) is ObjectRef:
        raise ValueError(f"{bad!r} belongs to an engine that was shut down; make it again")
    raise TypeError(f"{bad!r} is no ObjectRef; pass what .remote() or put() returned")


def _of_stream(stream: ObjectRefGenerator) -> str:
    return (
        f"{stream!r} is a stream of refs and no ObjectRef; take its items with next(), or pass its "
        f"completed(), a ref that is ready when it has ended"
    )


def _checked(timeout: float | None) -> float | None:
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout={timeout} is negative; use None to wait for ever")
    return timeout
