"""The keys a configuration can have: their names, types and defaults, and the nearest to a typo."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from settings import join, plain, to_yaml


def keys(cls: type, *, at: str = "", defaults: object = None) -> Iterator[tuple[str, str]]:
    """Yield ``(dotted path, "type = default")`` of every key of ``cls``.

    Args:
        cls: A dataclass.
        at: Its own dotted path.
        defaults: An instance whose values are the defaults, in place of the class's.
    """
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        path, hint = join(at, field.name), hints[field.name]
        value = default(field) if defaults is None else getattr(defaults, field.name)
        if dataclasses.is_dataclass(hint):
            nested = None if value is dataclasses.MISSING else value
            yield from keys(typing.cast(type, hint), at=path, defaults=nested)
        elif value is dataclasses.MISSING:
            yield path, f"{spell(hint)}, required"
        else:
            yield path, f"{spell(hint)} = {to_yaml(plain(value), flow=True)}"


def default(field: dataclasses.Field[Any]) -> object:
    """Return the default of ``field``, MISSING without one."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def unknown(key: str, known: list[str], root: type) -> str:
    """Return the message for a key that does not exist, with the nearest one that does."""
    parent, _, leaf = key.rpartition(".")
    near = difflib.get_close_matches(leaf, known, n=1)
    return f"unknown key {key}; known: {', '.join(sorted(known))}; nearest: " + (
        join(parent, near[0]) if near else elsewhere(key, root)
    )


def elsewhere(key: str, root: type) -> str:
    """Return the key or section of another place that ``key`` most likely means."""
    paths = [path for path, _ in keys(root)]
    sections = {
        path.rsplit(".", n)[0]: None for path in paths for n in range(1, path.count(".") + 1)
    }
    everything = [*paths, *sections]
    same_leaf = [path for path in everything if path.rpartition(".")[2] == key.rpartition(".")[2]]
    return (same_leaf or difflib.get_close_matches(key, everything, n=1, cutoff=0.0))[0]


def spell(hint: object) -> str:
    """Return a type as a user reads it."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return " | ".join(str(arg) for arg in args)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " | ".join(spell(arg) for arg in args)
    if typing.get_origin(hint) is tuple:
        return f"list of {spell(args[0])}"
    if hint is type(None):
        return "null"
    return str(getattr(hint, "__name__", hint))


def describe(value: object) -> str:
    """Return the type of ``value`` as a user reads it."""
    return "null" if value is None else f"of type {type(value).__name__}"
