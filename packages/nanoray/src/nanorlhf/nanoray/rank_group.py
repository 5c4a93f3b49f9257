"""Groups of actors that run one program: rank 0 to n - 1, as torch.distributed wants them.

::

    Group(Trainer, 4) ----- placement group: one bundle a rank
        |  1. where are you?     each rank: (node id, address, free port)
        |  2. construct          each rank: RANK, WORLD_SIZE, LOCAL_RANK, ..., then Trainer(...)
        |  3. call, scatter      each rank: method(its arguments); results in rank order
        |  a rank dies           all are killed, and the error names the rank

A rank's process starts empty and says where it is; the variables need all the answers. Only then
the user's constructor runs, on all ranks at once, so that it may meet the others there.
"""

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from . import api, inventory
from .errors import ActorDiedError, GetTimeoutError, NanoRayError, TaskError
from .group import PlacementGroup
from .options import Options
from .placement import Strategy
from .refs import ObjectRef, UserValue
from .remote import ActorClass, ActorHandle

_ELSEWHERE = ("192.0.2.1", 9)  # TEST-NET-1 of RFC 5737: no packet is ever sent there
_ANY = ("0.0.0.0", "::")
"""A machine that listens on all its interfaces does not say at which one others reach it."""


class Scatter:
    """An argument of ``Group.call`` that differs by rank: rank i gets ``items[i]``."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = tuple(items)


class _Where(NamedTuple):
    node_id: str
    address: str
    port: int


class Group:
    """One actor of class ``cls`` for each rank.

    The environment of rank i has RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, NODE_RANK,
    MASTER_ADDR and MASTER_PORT before its constructor runs, so that
    ``torch.distributed.init_process_group("gloo")`` needs no arguments. Returns when all
    constructors have. May be used in a ``with`` statement, which ends it.

    Args:
        cls: A class; ``@remote`` on it is allowed, and its options are then kept.
        n: The number of ranks.
        args: For each constructor; a ``Scatter`` differs by rank.
        num_cpus: CPUs of a rank.
        num_gpus: GPUs of a rank; a fraction shares one device.
        strategy: How the bundles are placed.
        placement_group: A group to run in instead of one of its own: rank i in bundle i. The
            caller removes it.
        runtime_env: As of actors.
        max_concurrency: As of actors.
        timeout: Seconds for placing and constructing; None is for ever.
        kwargs: For each constructor; a ``Scatter`` differs by rank.

    Raises:
        InfeasibleError: The ranks can never be placed.
        GetTimeoutError: Time is up.
        ValueError: ``n`` is less than 1, or the placement group has another number of bundles.
        NanoRayError: A constructor raised or its process died; the message names the rank.
    """

    def __init__(
        self,
        cls: type | ActorClass,
        n: int,
        *args: Any,
        num_cpus: float = 1,
        num_gpus: float = 0,
        strategy: Strategy = "PACK",
        placement_group: PlacementGroup | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        max_concurrency: int | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        actor = cls if isinstance(cls, ActorClass) else ActorClass(cls, Options())
        _check_size(n, placement_group)
        self.name, self._is_over = actor.__name__, False
        self._actors: list[ActorHandle] = []
        bundle = {key: amount for key, amount in (("CPU", num_cpus), ("GPU", num_gpus)) if amount}
        self._own = (
            None if placement_group else api.placement_group([bundle] * n, strategy=strategy)
        )
        self.placement_group = placement_group or self._own
        try:
            self._wait_for_place(timeout)
            hosted = ActorClass(_hosted(actor._class), actor._options)
            place: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus}
            if runtime_env is not None:
                place["runtime_env"] = runtime_env
            if max_concurrency is not None:
                place["max_concurrency"] = max_concurrency
            for rank in range(n):
                at = {"placement_group": self.placement_group, "placement_group_bundle_index": rank}
                self._actors.append(hosted.options(**place, **at).remote())
            self._construct(args, kwargs, timeout)
        except BaseException:
            self.shutdown()
            raise

    def __len__(self) -> int:
        return len(self._actors)

    def __enter__(self) -> "Group":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        self.shutdown()

    def rank(self, index: int) -> ActorHandle:
        """Return the actor of one rank.

        Raises:
            IndexError: There is no such rank.
        """
        if not 0 <= index < len(self._actors):
            raise IndexError(f"rank={index} is not in 0..{len(self._actors) - 1}")
        return self._actors[index]

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Call a method on every rank; return the results in rank order.

        Each ``Scatter`` among the arguments differs by rank, all others are the same for all.

        Raises:
            TaskError: A rank raised; the message names it. Others may still wait for it in a
                collective operation: ``shutdown`` ends them.
            ActorDiedError: A rank died; the message names it, and all others were killed.
        """
        return self.gather(self.call_refs(method, *args, **kwargs))

    def call_refs(self, method: str, *args: Any, **kwargs: Any) -> list[ObjectRef]:
        """Do as ``call`` and return one ref a rank at once; hand them to ``gather``."""
        size = len(self._actors)
        if self._is_over:
            raise ActorDiedError(f"group {self.name} was shut down; make another")
        calls = [
            (
                [_of_rank(value, rank, size) for value in args],
                {key: _of_rank(value, rank, size) for key, value in kwargs.items()},
            )
            for rank in range(size)
        ]
        return [
            getattr(actor, method).remote(*own, **own_named)
            for actor, (own, own_named) in zip(self._actors, calls, strict=True)
        ]

    def scatter(self, method: str, items: Iterable[Any]) -> list[Any]:
        """Call a method on every rank, rank i with ``items[i]``; return results in rank order."""
        return self.call(method, Scatter(items))

    def scatter_refs(self, method: str, items: Iterable[Any]) -> list[ObjectRef]:
        """Do as ``scatter`` and return one ref a rank at once."""
        return self.call_refs(method, Scatter(items))

    def gather(self, refs: Sequence[ObjectRef], *, timeout: float | None = None) -> list[Any]:
        """Return the values of refs of all ranks, in rank order.

        Raises:
            TaskError, ActorDiedError: As ``call``, as soon as one rank has failed.
            GetTimeoutError: Time is up; the ranks go on.
            ValueError: There is not one ref a rank.
        """
        if len(refs) != len(self._actors):
            raise ValueError(f"gather got {len(refs)} refs for {len(self._actors)} ranks")
        try:
            return list(api.get(list(refs), timeout=timeout))
        except GetTimeoutError:
            raise
        except NanoRayError as error:
            raise self._blamed(refs, error) from error

    def shutdown(self) -> None:
        """Kill all ranks and give back the placement group if it is the group's own."""
        if self._is_over or not api.is_initialized():
            return
        self._is_over = True
        for actor in self._actors:
            api.kill(actor)
        if self._own is not None:
            api.remove_placement_group(self._own)

    def _wait_for_place(self, timeout: float | None) -> None:
        assert self.placement_group is not None, "it was given or made"
        if not self.placement_group.wait(timeout):
            raise GetTimeoutError(
                f"group {self.name}: {len(self.placement_group.bundles)} bundles were not free "
                f"within timeout={timeout} s"
            )

    def _construct(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], timeout: float | None
    ) -> None:
        """Tell every rank who it is, and have all construct together."""
        wheres = self.gather(self.call_refs("nanoray_where"), timeout=timeout)
        environments = _environments([_Where(*where) for where in wheres])
        refs = self.call_refs("nanoray_construct", Scatter(environments), *args, **kwargs)
        self.gather(refs, timeout=timeout)

    def _blamed(self, refs: Sequence[ObjectRef], error: NanoRayError) -> NanoRayError:
        """Return the error with the rank in it; when that rank is dead, end the others."""
        rank = self._first_failed(refs)
        who = f"rank {rank} of {len(self._actors)} of group {self.name}"
        if isinstance(error, TaskError):
            error.where = f"{who}, {error.where},"
            return error
        if isinstance(error, ActorDiedError):
            self.shutdown()
            return ActorDiedError(f"{who} is gone, and the others were killed: {error}")
        error.add_note(who)
        return error

    def _first_failed(self, refs: Sequence[ObjectRef]) -> int:
        ready, _ = api.wait(list(dict.fromkeys(refs)), num_returns=len(set(refs)), timeout=0)
        done = set(ready)
        for rank, ref in enumerate(refs):
            if ref in done:
                try:
                    api.get(ref)
                except NanoRayError:
                    return rank
        raise AssertionError("a get of these refs has just failed")


def _hosted(cls: type) -> type:
    """Return a class whose instances become instances of ``cls`` when they are told who they are.

    The two public methods have names that no user's class has.
    """

    class Rank(cls):  # type: ignore[misc]  # any class
        def __init__(self) -> None:
            """Wait for ``nanoray_construct``."""

        def nanoray_where(self) -> tuple[str, str, int]:
            """Return this rank's machine, its address and a port that is free there."""
            with socket.socket() as probe:
                probe.bind(("", 0))
                port = probe.getsockname()[1]
            node_id = inventory.get_runtime_context().get_node_id()
            return node_id, _own_address(node_id), port

        def nanoray_construct(
            self, environment: Mapping[str, str], *args: Any, **kwargs: Any
        ) -> None:
            """Become the rank."""
            os.environ.update(environment)
            super().__init__(*args, **kwargs)

    Rank.__name__ = Rank.__qualname__ = cls.__name__
    return Rank


def _own_address(node_id: str) -> str:
    """Return where other machines of the cluster reach this one, or may reach it."""
    addresses = {row["NodeID"]: str(row["NodeManagerAddress"]) for row in inventory.nodes()}
    if addresses.get(node_id, _ANY[0]) not in _ANY:
        return addresses[node_id]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(_ELSEWHERE)  # a datagram socket only looks up the route
        return str(probe.getsockname()[0])
    return "127.0.0.1"


def _environments(wheres: Sequence[_Where]) -> list[dict[str, str]]:
    """Return each rank's variables; the names are torchrun's.

    >>> here, there = _Where("a", "10.0.0.1", 500), _Where("b", "10.0.0.2", 600)
    >>> third = _environments([here, there, here])[2]
    >>> third["LOCAL_RANK"], third["LOCAL_WORLD_SIZE"], third["NODE_RANK"], third["MASTER_ADDR"]
    ('1', '2', '0', '10.0.0.1')
    """
    nodes = list(dict.fromkeys(where.node_id for where in wheres))
    sizes = Counter(where.node_id for where in wheres)
    seen: Counter[str] = Counter()
    environments = []
    for rank, where in enumerate(wheres):
        environments.append(
            {
                "RANK": str(rank),
                "WORLD_SIZE": str(len(wheres)),
                "LOCAL_RANK": str(seen[where.node_id]),
                "LOCAL_WORLD_SIZE": str(sizes[where.node_id]),
                "NODE_RANK": str(nodes.index(where.node_id)),
                "MASTER_ADDR": "127.0.0.1" if len(nodes) == 1 else wheres[0].address,
                "MASTER_PORT": str(wheres[0].port),
            }
        )
        seen[where.node_id] += 1
    return environments


def _check_size(n: int, group: PlacementGroup | None) -> None:
    if n < 1:
        raise ValueError(f"n={n} counts ranks; use 1 or more")
    if group is not None and len(group.bundles) != n:
        raise ValueError(
            f"placement_group has {len(group.bundles)} bundles for n={n} ranks; make the two equal"
        )


def _of_rank(value: UserValue, rank: int, size: int) -> UserValue:
    if not isinstance(value, Scatter):
        return value
    if len(value.items) != size:
        raise ValueError(f"Scatter has {len(value.items)} items for {size} ranks; give one a rank")
    return value.items[rank]
