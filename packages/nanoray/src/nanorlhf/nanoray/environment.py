"""What a worker process finds around it: variables, working directory and import paths.

These are the parts of Ray's ``runtime_env`` that need no installation::

    {"env_vars": {"SEED": "1"}, "working_dir": "run", "py_paths": ["lib"]}

Nothing is copied: a folder must exist on every machine that runs the call. A call inherits the
environment of the process that makes it and changes what it names: variables one by one, a
working directory and import paths as a whole. Processes of equal environments share tasks.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

_PARTS = ("env_vars", "py_paths", "working_dir")


class Environment(NamedTuple):
    """An environment in canonical form: hashable, and equal when it means the same."""

    env_vars: tuple[tuple[str, str], ...] = ()
    """Sorted by name."""
    working_dir: str = ""
    """Absolute; empty to stay where the engine was started."""
    py_paths: tuple[str, ...] = ()
    """Absolute folders, searched for modules before all others but the working directory."""

    def over(self, base: "Environment") -> "Environment":
        """Return this environment where it says something, and ``base`` where it does not.

        >>> base = Environment((("A", "1"), ("B", "1")), "/run")
        >>> Environment((("B", "2"),), py_paths=("/lib",)).over(base)
        Environment(env_vars=(('A', '1'), ('B', '2')), working_dir='/run', py_paths=('/lib',))
        """
        if not base or self == base:
            return self
        variables = tuple(sorted({**dict(base.env_vars), **dict(self.env_vars)}.items()))
        return Environment(
            variables, self.working_dir or base.working_dir, self.py_paths or base.py_paths
        )

    def __bool__(self) -> bool:
        return tuple(self) != _NOTHING

    @property
    def has_folders(self) -> bool:
        """Whether ``check_folders`` has something to check."""
        return bool(self.working_dir or self.py_paths)

    def check_folders(self) -> None:
        """Raise ValueError when a folder does not exist on this machine."""
        for part, folder in (
            ("working_dir", self.working_dir),
            *(("py_paths", path) for path in self.py_paths),
        ):
            if folder and not os.path.isdir(folder):
                raise ValueError(
                    f"runtime_env has {part}={folder!r}, which is no folder here; folders are not "
                    f"copied, so make it on every machine that runs the call"
                )

    def enter(self) -> None:
        """Give this process the environment.

        Raises:
            ValueError: A folder does not exist on this machine.
        """
        self.check_folders()
        os.environ.update(self.env_vars)
        if self.working_dir:
            os.chdir(self.working_dir)
        first = [self.working_dir] if self.working_dir else []
        sys.path[:0] = [*first, *self.py_paths]
        if self.py_paths:  # for Python programs that user code starts
            inherited = os.environ.get("PYTHONPATH")
            paths = [*self.py_paths, *([inherited] if inherited else [])]
            os.environ["PYTHONPATH"] = os.pathsep.join(paths)


_NOTHING = ((), "", ())


def environment(runtime_env: Mapping[str, Any] | None) -> Environment:
    """Return the canonical form of a ``runtime_env``; paths become absolute.

    Raises:
        TypeError: A variable or a path is no string.
        ValueError: There is a part that does not exist here.

    >>> environment({"env_vars": {"B": "2", "A": "1"}}).env_vars
    (('A', '1'), ('B', '2'))
    """
    parts = dict(runtime_env or {})
    unknown = sorted(set(parts) - set(_PARTS))
    if unknown:
        raise ValueError(
            f"runtime_env has {unknown[0]!r}; known: {', '.join(_PARTS)}. Packages are installed "
            f"before the engine starts"
        )
    variables = parts.get("env_vars") or {}
    for key, text in variables.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(f"env_vars has {key!r}: {text!r}; both must be str")
    paths = parts.get("py_paths") or ()
    if isinstance(paths, str):
        raise TypeError(f"py_paths={paths!r} is one string; pass a list of folders")
    folder = parts.get("working_dir") or ""
    return Environment(
        tuple(sorted(variables.items())),
        _absolute("working_dir", folder) if folder else "",
        tuple(_absolute("py_paths", path) for path in paths),
    )


def _absolute(part: str, path: str | os.PathLike[str]) -> str:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{part} has {path!r}, which is no path; pass a str or a Path")
    return os.path.abspath(os.path.expanduser(path))
