"""Nested mappings into frozen dataclasses, strictly.

A key that no dataclass has, or a value of another type than its field's, is an error that names
the dotted path. Nothing is guessed and nothing is dropped.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from keys import default, describe, spell, unknown
from settings import join

T = TypeVar("T")


def build(
    cls: type[T], raw: object, *, at: str = "", root: type | None = None, base: object = None
) -> T:
    """Return ``cls`` with the values of ``raw``, nested dataclasses included.

    Args:
        cls: A dataclass.
        raw: A mapping of its field names.
        at: Dotted path of this section, for messages.
        root: The outermost dataclass, in which a nearest known key is looked for.
        base: An instance that gives the values which ``raw`` does not; default: the class does.

    Raises:
        ValueError: An unknown or missing key, a wrong type, or a rule of the dataclass broken.
    """
    root = root or cls
    if not isinstance(raw, Mapping):
        raise ValueError(f"{at}={raw!r} is {describe(raw)}; wanted a section of keys")
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # is one
    for name in raw:
        if name not in fields:
            raise ValueError(unknown(join(at, str(name)), list(fields), root))
    for name, field in fields.items():
        # A section that sets one key keeps its parent's defaults for the others.
        given = default(field) if base is None else getattr(base, name)
        if name in raw:
            values[name] = convert(hints[name], raw[name], at=join(at, name), root=root, base=given)
        elif given is dataclasses.MISSING:
            raise ValueError(f"key {join(at, name)} has no default; set {join(at, name)}=...")
        else:
            values[name] = given
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{at}: {error}" if at else str(error)) from error


def convert(hint: Any, value: object, *, at: str, root: type, base: object = None) -> object:  # noqa: ANN401 - a type form
    """Return ``value`` as the type ``hint``, or raise a ValueError that names ``at``."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return convert_union(args, value, at=at, root=root)
    if dataclasses.is_dataclass(hint):
        section = typing.cast(type, hint)
        return build(section, value, at=at, root=root, base=base if type(base) is hint else None)
    if origin is tuple:
        return convert_tuple(args, value, at=at, root=root)
    if hint is float:
        return as_float(value, at=at)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if origin is Literal:
        if value in args and not isinstance(value, bool):
            return value
    elif isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    raise ValueError(f"{at}={value!r} is {describe(value)}; wanted {spell(hint)}")


def convert_union(args: tuple[Any, ...], value: object, *, at: str, root: type) -> object:
    """Return ``value`` as the first of ``args`` that takes it."""
    if value is None and type(None) in args:
        return None
    choices = [arg for arg in args if arg is not type(None)]
    for choice in choices:
        try:
            return convert(choice, value, at=at, root=root)
        except ValueError:
            if len(choices) == 1:
                raise
    wanted = " | ".join(spell(arg) for arg in args)
    raise ValueError(f"{at}={value!r} is {describe(value)}; wanted {wanted}")


def convert_tuple(
    args: tuple[Any, ...], value: object, *, at: str, root: type
) -> tuple[object, ...]:
    """Return the YAML list ``value`` as a tuple of ``args``."""
    if not isinstance(value, list):
        raise ValueError(f"{at}={value!r} is {describe(value)}; wanted a list")
    hints = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
    if len(hints) != len(value):
        raise ValueError(f"{at}={value!r} has {len(value)} items; wanted {len(hints)}")
    pairs = zip(hints, value, strict=True)
    return tuple(convert(h, v, at=f"{at}[{i}]", root=root) for i, (h, v) in enumerate(pairs))


def as_float(value: object, *, at: str) -> float:
    """Return a number as float; ``5e-6`` too, which YAML 1.1 takes for a string."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    raise ValueError(f"{at}={value!r} is {describe(value)}; wanted a number")
