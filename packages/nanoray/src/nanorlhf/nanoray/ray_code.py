"""Functions and classes as Ray runs them, and the methods of actors it found for us."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from .messages import Method
from .ray_request import call_keywords
from .refs import UserValue
from .remote import marked_with, options_of, public_methods


def native_code(code: Any) -> Any:  # noqa: ANN401  any callable of the user
    """Return a function or class with Ray's decorator; Ray takes no other callables as they are."""
    import ray  # an extra: only whoever runs on Ray has it

    if inspect.isclass(code):
        return ray.remote(_native_class(code))
    if inspect.isgeneratorfunction(code):
        return ray.remote(_relay(code))
    return ray.remote(code if inspect.isfunction(code) else _function(code))


def _native_class(cls: type) -> type:
    """Return the class, its generators relayed, its options told to Ray for whoever looks it up."""
    import ray

    relays: dict[str, Any] = {}
    for name, marked in public_methods(cls):
        function = getattr(cls, name)
        is_bound = isinstance(inspect.getattr_static(cls, name), staticmethod | classmethod)
        if inspect.isgeneratorfunction(function) and not is_bound:
            function = relays[name] = _relay(function)
        if marked:
            ray.method(**call_keywords(options_of(marked)))(function)
    if not relays:
        return cls
    names = {key: getattr(cls, key) for key in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, (cls,), {**names, **relays})


def _relay(generator: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Return the same generator; Ray sends values into it, which ``yield from a_list`` refuses."""

    @functools.wraps(generator)
    def relay(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for item in generator(*args, **kwargs):  # noqa: UP028  this is the point
            yield item

    return relay


def _function(code: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> UserValue:
        return code(*args, **kwargs)

    return call


def native_methods(handle: Any) -> tuple[Method, ...]:  # noqa: ANN401  Ray's, untyped
    """Return the public methods of an actor found by name, with what `mark_methods` told Ray."""
    names = [name for name in dir(handle) if not name.startswith("_")]
    return tuple((name, marked_with(_native_options(handle, name))) for name in names)


def _native_options(handle: Any, name: str) -> dict[str, Any]:  # noqa: ANN401
    is_stream = handle._ray_method_is_generator.get(name)
    told = {
        "num_returns": "streaming" if is_stream else handle._ray_method_num_returns.get(name),
        "max_task_retries": handle._ray_method_max_task_retries.get(name),
        "retry_exceptions": handle._ray_method_retry_exceptions.get(name),
        "max_buffered_items": handle._ray_method_generator_backpressure_num_objects.get(name),
    }
    return {key: value for key, value in told.items() if value is not None}
