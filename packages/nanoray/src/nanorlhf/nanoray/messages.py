"""What the processes tell each other.

Every process talks to the engine in the driver; the driver's own calls are the same messages,
handed over without a socket. ``req`` numbers a question and comes back with its answer.

To the engine::

    holds   [(id, +-n)]                     refs gained and dropped
    code    code_id, blob, held             a function or class, by the hash of its pickle
    put     id, value, held
    call    *Spec                           a task, an actor's constructor, or a method call
    done    call_id, [(value, held)], error
    failed  call_id, text                   a constructor raised
    item    stream_id, i, id, value, held   what a generator made
    next    req, stream_id, i   -> ("plain", id of item i, or of the error | None at the end)
    get     req, ids            -> ("values", [(id, value)]) | ("error", value)
    wait    req, ids, n         -> ("ready", [id])
    cancel  req                             the asker gave up waiting
    resources req, is_available -> ("plain", {name: amount})
    reserve req, name, actor_id -> ("plain", whether the name was free)
    named   req, name           -> ("plain", fields of an ActorInfo | None)
    kill    actor_id
    group   group_id, bundles, strategy
    ungroup group_id
    arena   arena_id, size  (+ fd)          a new arena of the sender
    retire  arena_id

To a worker::

    setup   dict                            always first
    code    code_id, blob
    run     *Run
    reply   req, payload
    taken   stream_id, n                    n items of its generator have been asked for
    stopped stream_id                       nobody will ask for more
    interrupt call_id                       end this call without a result
    arena   arena_id, size  (+ fd)          an arena of someone else
    forget  arena_id
    free    arena_id, offset                a block of its own is unused
    exit

Between the engine and the zygote::

    hello   dict                            first, to the zygote
    fork    worker_id  (+ fd)   kill worker_id   stop      to the zygote
    exited  worker_id, status                              from the zygote
"""

from typing import Any, Literal, NamedTuple

from .resources import Demand

DRIVER = 0
"""The driver's number among the processes; workers count from 1."""

RawValue = tuple[Any, ...]
"""A ``Value`` as it comes out of a message: a plain tuple."""

Kind = Literal["task", "new", "method"]

Method = tuple[str, dict[str, Any]]
"""A public method of an actor and the ``CallOptions`` that its class gives it."""


class Spec(NamedTuple):
    """A call, as its caller describes it."""

    kind: Kind
    id: int
    actor: int
    """The actor made or called; 0 for a task."""
    code: bytes
    """Id of the function or class; empty for a method."""
    method: str
    name: str
    """How errors call it."""
    args: RawValue | None
    """``(args, kwargs)`` with refs at the top level replaced by ``Slot``; None when empty."""
    args_id: int
    """The object that holds ``args`` when they lie in shared memory, else 0."""
    deps: tuple[int, ...]
    """Objects that fill the slots."""
    held: tuple[int, ...]
    """Refs nested in the arguments."""
    returns: tuple[int, ...]
    needs: Demand = ()
    group: int = 0
    bundle: int = -1
    env: tuple[tuple[str, str], ...] = ()
    retries: int = 0
    label: str = ""
    """The actor's public name, if it has one."""
    methods: tuple[Method, ...] = ()
    stream: int | None = None
    """For a call that streams, how many items may wait to be taken, 0 for any; else None."""
    max_concurrency: int = 0
    """Calls of an actor at a time; 0 is as its class is."""


class Run(NamedTuple):
    """A call, as the process that runs it sees it."""

    kind: Kind
    id: int
    actor: int
    code: bytes
    method: str
    name: str
    args: RawValue | None
    args_id: int
    deps: list[tuple[int, RawValue]]
    returns: tuple[int, ...]
    stream: int | None = None


class Slot(NamedTuple):
    """Stands in an argument list for the value of ``deps[number]``."""

    number: int
