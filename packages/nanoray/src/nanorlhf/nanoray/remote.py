"""Remote functions, actor classes and the handles they give."""

import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from .backend import ActorInfo, Start
from .generator import ObjectRefGenerator
from .messages import Method
from .options import CallOptions, Options, known_changes
from .refs import Holds, ObjectRef, UserValue
from .session import current, starts

Refs = ObjectRef | list[ObjectRef] | ObjectRefGenerator | None

_MARK = "__nanoray_method__"
"""Where ``method`` leaves what it was given."""
_PLAIN = CallOptions()
_NONE = Options()
_ACTOR_OPTIONS = (
    "max_concurrency",
    "max_restarts",
    "max_task_retries",
    "get_if_exists",
    "lifetime",
)
_CALL_OPTIONS = ("num_returns", "max_buffered_items", "max_retries", "retry_exceptions")


class RemoteFunction:
    """A function that runs in another process: ``f.remote(...)`` returns a ref at once."""

    def __init__(self, function: Callable[..., Any], options: Options) -> None:
        _check_kind(options, _ACTOR_OPTIONS, "an actor class")
        if options.num_returns is None and _is_generator(function):
            options = options.merged({"num_returns": "streaming"})
        self._function, self._options = function, options
        self.__name__ = getattr(function, "__name__", "function")
        self.__doc__ = function.__doc__

    def remote(self, *args: Any, **kwargs: Any) -> UserValue:
        """Start the function.

        Returns:
            One ref, or ``num_returns`` of them in a list, or None for no results, or an
            ``ObjectRefGenerator`` for a generator.

        Raises:
            InfeasibleError: No machine, or no bundle of its group, can ever hold the call.
            SerializationError: The function or an argument cannot be sent to another process.
            StoreFullError: The arguments find no room in the store.
            ValueError: A ref is of an engine that was shut down, or a folder is missing.
        """
        backend = current()
        prepared = starts()
        start = prepared.get(self)
        if start is None:
            start = prepared[self] = backend.function(self._function, self._options)
        return _refs(start(args, kwargs), self._options.num_returns, backend.holds)

    def options(self, **changes: Any) -> "RemoteFunction":
        """Return the same function with some options changed."""
        return RemoteFunction(self._function, self._options.merged(changes))

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Say how it is done."""
        raise TypeError(
            f"remote function {self.__name__}() cannot be called directly; use "
            f"{self.__name__}.remote()"
        )


class ActorClass:
    """A class whose instances live in processes of their own."""

    def __init__(self, cls: type, options: Options) -> None:
        _check_kind(options, _CALL_OPTIONS, "a remote function")
        self._class, self._options = cls, options
        self.__name__ = cls.__name__
        self.__doc__ = cls.__doc__

    def remote(self, *args: Any, **kwargs: Any) -> "ActorHandle":
        """Start an actor and return its handle at once; the constructor runs in its process.

        When that raises, every call of the actor raises ActorDiedError with its traceback.

        Raises:
            ValueError: The name belongs to a live actor.
            NanoRayError: As of a remote function's ``remote``.
        """
        backend = current()
        info = backend.create_actor(self._class, args, kwargs, options=self._options)
        return ActorHandle(info, backend.holds)

    def options(self, **changes: Any) -> "ActorClass":
        """Return the same class with some options changed."""
        return ActorClass(self._class, self._options.merged(changes))

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Say how it is done."""
        raise TypeError(
            f"actor class {self.__name__} cannot be instantiated directly; use "
            f"{self.__name__}.remote()"
        )


class ActorHandle:
    """The address of an actor: ``handle.method.remote(...)`` returns a ref at once.

    Handles may be passed to tasks and actors. With the last handle in any process the actor ends,
    after the calls already made.
    """

    def __init__(self, info: ActorInfo, holds: Holds) -> None:
        self._info, self._holds = info, holds
        self._methods = {name: options_of(marked) for name, marked in info.methods}
        self._starts: dict[str, Start] = {}
        """Of methods called before, with the options of the class."""

    @property
    def id(self) -> int:
        """The actor's number, unique in its engine."""
        return self._info.id

    def __getattr__(self, name: str) -> "ActorMethod":
        if name.startswith("_") or name not in self._methods:
            raise AttributeError(
                f"actor class {self._info.class_name} has no public method {name!r}; it has: "
                f"{', '.join(self._methods)} (attributes and properties stay in the actor: add a "
                f"method that returns them)"
            )
        return ActorMethod(self, name, self._methods[name], self._starts)

    def __del__(self) -> None:
        if "_holds" in self.__dict__:
            self._holds.drop(self._info.id)

    def __repr__(self) -> str:
        return f"ActorHandle({self._info.class_name}, {self._info.id:x})"

    def __nanoray_travel__(self) -> tuple[Callable[..., "ActorHandle"], tuple[Any, ...]]:
        """Return how the handle is rebuilt in another process of the engine."""
        info = self._info
        return _load_handle, (info.id, info.class_name, info.methods)

    def __reduce__(self) -> UserValue:
        return self._holds.reduce(self)


class ActorMethod:
    """One method of one actor."""

    __slots__ = ("_handle", "_name", "_options", "_starts")

    def __init__(
        self, handle: ActorHandle, name: str, options: CallOptions, starts: dict[str, Start]
    ) -> None:
        self._handle, self._name, self._options, self._starts = handle, name, options, starts

    def remote(self, *args: Any, **kwargs: Any) -> UserValue:
        """Call the method; returns and raises as a remote function's ``remote`` does.

        Calls of one caller begin in the order made. That the actor is dead is told by ``get``, not
        here.
        """
        backend, handle, name = current(), self._handle, self._name
        holds = backend.holds
        if handle._holds is not holds:
            raise ValueError(
                f"{handle!r} belongs to an engine that was shut down; create the actor again"
            )
        start = self._starts.get(name)
        if start is None:
            start = self._starts[name] = backend.method(handle._info, name, self._options)
        return _refs(start(args, kwargs), self._options.num_returns, holds)

    def options(self, **changes: Any) -> "ActorMethod":
        """Return the same method with some of its ``CallOptions`` changed."""
        return ActorMethod(self._handle, self._name, self._options.merged(changes), {})

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Say how it is done."""
        raise TypeError(
            f"actor method {self._name}() cannot be called directly; use {self._name}.remote()"
        )


def remote(*args: UserValue, **options: Any) -> UserValue:
    """Make a function or class remote: ``@remote``, ``@remote(num_cpus=2)`` or ``remote(f)``.

    Raises:
        TypeError: The argument is neither a function nor a class.
        ValueError: An option is unknown or out of range.
    """
    if args and (len(args) > 1 or options):
        raise TypeError("remote() takes a function or class, or options by keyword, not both")
    return _decorate(args[0], {}) if args else lambda target: _decorate(target, options)


def method(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a method of an actor class options of its own: ``@method(num_returns=2)``.

    Raises:
        ValueError: An option is unknown or out of range.
    """
    checked = CallOptions().merged(options)
    given = {name: getattr(checked, name) for name in known_changes(CallOptions, options)}

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        setattr(function, _MARK, given)
        return function

    return mark


def public_methods(cls: type) -> tuple[Method, ...]:
    """Return the public methods of a class, with the options that it gives them."""
    members = inspect.getmembers(cls, callable)
    return tuple((name, _marked(member)) for name, member in members if not name.startswith("_"))


def has_coroutines(cls: type) -> bool:
    """Return whether a class makes an actor with an event loop: it has an ``async def`` method."""
    members = (inspect.unwrap(member) for _, member in inspect.getmembers(cls, callable))
    return any(
        inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)
        for member in members
    )


def marked_with(options: Mapping[str, Any]) -> bytes:
    """Return ``CallOptions`` that a method is given by its class, as handles carry them."""
    if not options:
        return b""
    import cloudpickle  # type: ignore[import-untyped]  # here, not above: it is slow to import

    data: bytes = cloudpickle.dumps(options)
    return data


def options_of(marked: bytes) -> CallOptions:
    """Return the ``CallOptions`` that `marked_with` was given."""
    return CallOptions(**pickle.loads(marked)) if marked else _PLAIN


def _marked(member: Callable[..., Any]) -> bytes:
    options: dict[str, Any] = getattr(member, _MARK, {})
    if "num_returns" not in options and _is_generator(member):
        options = {**options, "num_returns": "streaming"}
    return marked_with(options)


def _is_generator(function: Callable[..., Any]) -> bool:
    inner = inspect.unwrap(function)
    return inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)


def _decorate(target: UserValue, options: Mapping[str, Any]) -> RemoteFunction | ActorClass:
    if inspect.isclass(target):
        return ActorClass(target, Options().merged(options))
    if isinstance(target, RemoteFunction | ActorClass):
        raise TypeError(f"{target.__name__} is remote already; use .options() to change it")
    if not callable(target):
        raise TypeError(f"remote({target!r}) needs a function or a class")
    if inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target):
        raise ValueError(
            f"{target.__name__} is an 'async def' function, which only methods of actors may be; "
            f"wrap it in a function that calls asyncio.run"
        )
    return RemoteFunction(target, Options().merged(options))


def _check_kind(options: Options, names: Sequence[str], owner: str) -> None:
    """Raise ValueError if one of the options is set that only ``owner`` has."""
    for name in names:
        value = getattr(options, name)
        if value != getattr(_NONE, name):
            raise ValueError(f"{name}={value!r} is an option of {owner}; drop it here")


def _refs(ids: Sequence[int], num_returns: int | str | None, holds: Holds) -> Refs:
    if num_returns is None or num_returns == 1:
        return ObjectRef(ids[0], holds)
    if num_returns == "streaming":
        return ObjectRefGenerator(ids[0], holds)
    refs = [ObjectRef(object_id, holds) for object_id in ids]
    return refs or None


def _load_handle(actor_id: int, class_name: str, methods: tuple[Method, ...]) -> ActorHandle:
    holds = current().holds
    holds.add(actor_id)
    return ActorHandle(ActorInfo(actor_id, class_name, methods), holds)
