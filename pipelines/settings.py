"""Configuration as text: YAML files and ``key.sub=value`` words into nested mappings, and back."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # ships no types

Raw = dict[str, Any]


def parse_yaml(text: str, *, where: str) -> object:
    """Return the value of ``text``; an error names ``where``."""
    try:
        reject_repeated_keys(yaml.compose(text, Loader=yaml.SafeLoader))
        value: object = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error
    return value


def reject_repeated_keys(node: yaml.Node | None) -> None:
    """Raise ValueError for a key that stands twice; YAML would keep the last one silently."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ValueError(f"key {key.value!r} on line {line} stands twice; keep one")
            seen.add(key.value)
            reject_repeated_keys(value)


def to_yaml(raw: object, *, flow: bool = False) -> str:
    """Return ``raw`` as YAML, keys in their order; ``flow`` gives one line."""
    text: str = yaml.safe_dump(raw, sort_keys=False, default_flow_style=flow, width=10_000)
    return text.removesuffix("...\n").strip() if flow else text


def read_yaml(path: Path) -> Raw:
    """Return the mapping in the file at ``path``.

    Raises:
        ValueError: No such file, not YAML, or not a mapping.
    """
    if not path.is_file():
        raise ValueError(f"config={str(path)!r} is not a file; give one with --config PATH")
    raw = parse_yaml(path.read_text(), where=str(path))
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: wanted sections of keys, got {type(raw).__name__}")
    return raw


def override(raw: Raw, words: Sequence[str]) -> Raw:
    """Return ``raw`` with each ``key.sub=value`` of ``words`` put in; values are YAML.

    >>> override({"sft": {"steps": 5}}, ["sft.steps=7", "run.name=demo"])
    {'sft': {'steps': 7}, 'run': {'name': 'demo'}}
    """
    result = dict(raw)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not all(key.split(".")):
            raise ValueError(f"argument {word!r} is no key.sub=value; --help lists the keys")
        *parents, leaf = key.split(".")
        node = result
        for depth, parent in enumerate(parents):
            child = node.get(parent)
            if child is not None and not isinstance(child, dict):
                path = ".".join(parents[: depth + 1])
                raise ValueError(f"unknown key {key}; {path} is a value, not a section")
            node[parent] = dict(child or {})  # a copy: `raw` stays as it was
            node = node[parent]
        node[leaf] = parse_yaml(text, where=f"argument {word!r}")
    return result


def read(path: Path, words: Sequence[str]) -> Raw:
    """Return the file at ``path`` with the overrides ``words``; name, folder and seeds filled."""
    raw = override(read_yaml(path), words)
    for section in ("run", "sft", "rl"):
        raw[section] = raw.get(section) or {}
        if not isinstance(raw[section], dict):
            raise ValueError(f"{section}={raw[section]!r} is a value; wanted a section of keys")
        raw[section] = dict(raw[section])
    run = raw["run"]
    seed = run.setdefault("seed", 0)
    run["name"] = run.get("name") or f"{path.stem}-seed{seed}"
    run["dir"] = run.get("dir") or f"runs/{run['name']}"
    for section in ("sft", "rl"):
        raw[section].setdefault("seed", seed)
    return raw


def plain(value: Any) -> Any:  # noqa: ANN401 - a tree of anything in, the same tree out
    """Return ``value`` in types that YAML and JSON know."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def flatten(raw: Mapping[str, Any], *, at: str = "") -> Raw:
    """Return the leaves of nested ``raw`` by dotted path.

    >>> flatten({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    flat: Raw = {}
    for key, value in raw.items():
        path = join(at, key)
        flat |= flatten(value, at=path) if isinstance(value, Mapping) else {path: value}
    return flat


def join(parent: str, name: str) -> str:
    """Return the dotted path of ``name`` under ``parent``."""
    return f"{parent}.{name}" if parent else name
