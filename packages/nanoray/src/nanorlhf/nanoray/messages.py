"""What the processes tell each other.

Every process talks to the engine in the driver; the driver's own calls are the same messages,
handed over without a socket. ``req`` numbers a question and comes back with its answer.

What all calls of a function or method have in common, a ``Spec`` on the way to the engine and a
``Brief`` on the way to a worker, travels as bytes, which are made once and decoded once
(``specs.py``). So each call is a short message.

To the engine::

    holds   [id], [id]                      refs gained, and dropped
    code    code_id, blob, held             a function or class, by the hash of its pickle
    put     id, value, held
    call    spec, *Particulars              a task, an actor's constructor, or a method call
    create  req, or_get, spec, *Particulars
                                -> ("plain", fields of an ActorInfo | None when the name is taken)
    done    call_id, [(value, held)], *span
    error   call_id, error, *span           it raised
    retry   call_id, error, *span           it raised what its ``retry_on`` names
    failed  call_id, text, *span            a constructor raised
    item    stream_id, i, id, value, held   what a generator made
    next    req, stream_id, i   -> ("plain", id of item i, or of the error | None at the end)
    get     req, ids            -> ("values", [(id, value)]) | ("error", value)
    wait    req, ids, n, local  -> ("ready", [id])  n of them; local: brought to the asker
    cancel  req                             the asker gave up waiting
    revoke  req, id, is_forced, is_recursive -> ("plain", why not | None)   cancel the call
    pending req, ids            -> ("plain", [what each call that owes one does])
    resources req, is_available -> ("plain", {name: amount})
    named   req, name           -> ("plain", fields of an ActorInfo | None)
    kill    actor_id, no_restart
    group   req, group_id, bundles, strategy, name -> ("plain", why not | None)
    group_named req, name       -> ("plain", (id, bundles, strategy) | None)
    feasible req, *Request      -> ("plain", why not | None)
    ungroup group_id
    born    pid                             a worker has begun
    state   req, kind           -> ("plain", rows)
    timeline req                -> ("plain", [fields of Ran])
    arena   arena_id, size  (+ fd)          a new arena of the sender
    retire  arena_id
    room    req, size, missing, stage -> ("plain", ("grant", size) | ("spill", dir, [(id, block)]))
    spare   size                            room it was granted and does not need
    spilled req, arena_id, [(id, offset, checksum)] -> ("plain", None)  an arena that is a file
    unspilled reason

To a worker::

    setup   dict                            always first
    code    code_id, blob
    uncode  code_id                         nobody can call it any more
    run     brief, *the other fields of Run
    then    brief, *...                     as run, behind a call that is not answered yet
    reply   req, payload
    taken   stream_id, n                    n items of its generator have been asked for
    stopped stream_id                       nobody will ask for more
    arena   arena_id, size  (+ fd)          an arena of someone else
    forget  arena_id
    free    arena_id, offset                a block of its own is unused
    trim                                    give back what is kept and not used
    exit

Between the engine and the zygote::

    hello   dict                            first, to the zygote
    fork    worker_id  (+ fds)              socket, stdout, stderr; to the zygote
    kill    worker_id                       stop           to the zygote
    interrupt worker_id, call_id                           to the zygote, to cancel a call
    forked  worker_id, pid                                 from the zygote
    exited  worker_id, status                              from the zygote
"""

from typing import Any, Literal, NamedTuple

from .resources import Demand

DRIVER = 0
"""The driver's number among the processes; workers count from 1."""

RawValue = tuple[Any, ...] | bytes
"""A ``Value`` as it comes out of a message: a plain tuple, or no more than its stream."""

Kind = Literal["task", "new", "method"]

Method = tuple[str, bytes]
"""A public method of an actor, and the ``CallOptions`` that its class gives it as a pickled dict,
empty for none."""


class Spec(NamedTuple):
    """What calls have in common: those of a function with its options, or of an actor's method."""

    kind: Kind
    actor: int
    """The actor made or called; 0 for a task."""
    code: int
    """Id of the function or class; 0 for a method."""
    method: str
    name: str
    """How errors call it."""
    needs: Demand = ()
    group: int = 0
    bundle: int = -1
    sees_gpus: bool = False
    """Whether it is shown its bundle's GPUs though it needs none."""
    is_spread: bool = False
    node: str = ""
    """The id of the machine it wants; empty is any."""
    is_soft: bool = False
    """Whether another machine will do when ``node`` can never hold it."""
    env: tuple[Any, ...] = ()
    """An ``Environment`` as a plain tuple."""
    retries: int | None = 0
    """How often a task or method is run again, or an actor made again; -1 is without end, None
    as the actor was told."""
    retry_on: bool | bytes = False
    """What may be raised to be run again: nothing, any Exception, or pickled classes."""
    task_retries: int = 0
    """An actor's ``retries`` for methods that do not say."""
    label: str = ""
    """The actor's public name, if it has one."""
    methods: tuple[Method, ...] = ()
    is_detached: bool = False
    """The actor lives without handles."""
    stream: int | None = None
    """For calls that stream, how many items may wait to be taken, 0 for any; else None."""
    max_concurrency: int = 1
    """Calls of an actor at a time."""
    has_loop: bool = False
    """Whether an actor runs in an event loop."""
    brief: bytes = b""
    """The ``Brief`` for the process that runs the calls, as it travels; the engine makes it."""


class Particulars(NamedTuple):
    """What each call adds to its ``Spec``."""

    id: int
    args: RawValue | None
    """``(args, kwargs)`` without the refs at the top level; None when nothing is left."""
    args_id: int
    """The object that holds ``args`` when they lie in shared memory, else 0."""
    deps: tuple[int, ...]
    """The refs at the top level: objects whose values it is given."""
    slots: tuple[int | str, ...]
    """Where it is given them: positions and keywords."""
    held: tuple[int, ...]
    """Refs nested in the arguments."""
    returns: tuple[int, ...]
    parent: int
    """The call whose code made this one; 0 for the driver's."""


class Brief(NamedTuple):
    """Of a ``Spec``, what the process that runs the calls must know."""

    kind: Kind
    actor: int
    code: int
    method: str
    name: str
    retry_on: bool | bytes
    stream: int | None


class Run(NamedTuple):
    """A call, as the process that runs it sees it."""

    brief: Brief
    id: int
    args: RawValue | None
    args_id: int
    deps: list[tuple[int, RawValue]]
    slots: tuple[int | str, ...]
    returns: tuple[int, ...]
    ticket: int = 0
    """It was sent ahead and may begin with this ticket only; 0 is at once."""
