"""Names for results: the same for the same rows, function and arguments, in any process.

What counts of a function is its bytecode, constants, defaults, closure and the globals that it
names, and so on for the functions among those; where its file lies and when it was written does
not. What counts of a dataset is its content, not its path.
"""

import logging
import os
import pickle
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from dis import get_instructions
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .arrays import Array
from .chunks import FilePart, MemoryPart, Part
from .coded import Coded
from .fields import FieldPart
from .fixed import FixedLists
from .nested import Lists, Structs
from .types import DType, Schema

if TYPE_CHECKING:
    from .dataset import Dataset

log = logging.getLogger(__name__)

NAME = re.compile(r"[a-z]+-[0-9a-f]{32}\.nano")
"""Of a result in a cache folder."""


class Kept(NamedTuple):
    """A result in a cache folder."""

    path: Path
    bytes: int
    idle_s: float
    """Seconds since it was made or last found."""


def content_id(ds: "Dataset") -> str:
    """Return a name for the columns and rows of a dataset, 32 hex digits.

    The same data written by the same steps has the same id wherever it lies. Files are known by
    the checksums of their buffers, O(chunks); columns in memory are read, at about 1 GB/s.
    """
    digest = blake2b(digest_size=16)
    seen: dict[int, bytes] = {}
    for name, column in ds.columns.items():
        rows = column.rows
        if rows is not None and id(rows) not in seen:
            seen[id(rows)] = blake2b(np.ascontiguousarray(rows).data, digest_size=16).digest()
        parts = [_part(part) for part in column.parts]
        order = b"" if rows is None else seen[id(rows)]
        digest.update(_digest([name, str(column.dtype), parts, order], ()))
    return digest.hexdigest()


def fingerprint(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Return a name for a function and the arguments of a verb, 32 hex digits.

    Raises:
        TypeError: The function holds on to a value that pickle cannot turn into bytes.
    """
    return _digest([sys.version_info[:2], function, dict(arguments)], ()).hex()


def cached(folder: str | Path, key: str, *, verb: str) -> Path:
    """Return the file of a result in a cache folder, and log whether it is there."""
    path = Path(folder) / f"{verb}-{key}.nano"
    found = path.exists()
    log.info("cache key=%s path=%s found=%s", key, path, found)
    if found and os.access(path, os.W_OK):
        os.utime(path)  # its age says how long nobody has asked for it
    return path


def kept_in(folder: str | Path) -> list[Kept]:
    """Return the results in a cache folder, that which was used last at the end.

    Raises:
        OSError: There is no such folder.
    """
    now = time.time()
    paths = [path for path in Path(folder).iterdir() if NAME.fullmatch(path.name)]
    facts = [(path, path.stat()) for path in paths]
    found = [Kept(path, stat.st_size, max(0.0, now - stat.st_mtime)) for path, stat in facts]
    return sorted(found, key=lambda kept: -kept.idle_s)


def _part(part: Part) -> bytes:
    if isinstance(part, FieldPart):
        return _digest([part.field, _part(part.part)], ())
    if isinstance(part, FilePart):
        return blake2b(part.file.checksums(part.name, part.chunk).data, digest_size=16).digest()
    assert isinstance(part, MemoryPart)
    digest = blake2b(digest_size=16)
    for array in _with_values_apart(part.array):
        for buffer in array.buffers():
            digest.update(b"-" if buffer is None else f"{buffer.nbytes},".encode())
            digest.update(b"" if buffer is None else np.ascontiguousarray(buffer).data)
    return digest.digest()


def _with_values_apart(array: Array) -> Iterator[Array]:
    """Yield an array and those that its buffers do not reach: the values of dictionaries."""
    yield array
    inner = [array]
    while inner:
        found = inner.pop()
        if isinstance(found, Coded):
            yield found.values
        elif isinstance(found, Structs):
            inner += found.children.values()
        elif isinstance(found, Lists | FixedLists):
            inner.append(found.child)


def _digest(value: Any, above: tuple[int, ...]) -> bytes:  # noqa: ANN401 - anything
    """Return 16 bytes for a value; ``above`` are the ids of the values that it is inside of."""
    kind = type(value).__name__.encode()
    if id(value) in above:
        return b"again" + kind  # a function that calls itself
    inner = (*above, id(value))
    digest = blake2b(kind, digest_size=16)
    for piece in _pieces(value, inner):
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.digest()


def _pieces(value: Any, above: tuple[int, ...]) -> list[bytes]:  # noqa: ANN401
    def each(values: Any) -> list[bytes]:  # noqa: ANN401
        return [_digest(one, above) for one in values]

    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return [repr(value).encode()]
    if isinstance(value, list | tuple):
        return each(value)
    if isinstance(value, set | frozenset):
        return sorted(each(value))  # the order of a set differs from process to process
    if isinstance(value, dict):
        return each(value.items())
    if isinstance(value, DType | Schema):
        return [str(value).encode()]
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufSU":
        return [str((value.dtype, value.shape)).encode(), np.ascontiguousarray(value).tobytes()]
    if isinstance(value, CodeType):
        return each((value.co_code, value.co_consts, value.co_names, value.co_freevars))
    if isinstance(value, FunctionType):
        return each(_parts_of(value))
    if isinstance(value, MethodType):
        return each((value.__func__, value.__self__))
    if isinstance(value, partial):
        return each((value.func, value.args, value.keywords))
    if is_dataclass(value) and not isinstance(value, type):
        return each([type(value), *(getattr(value, field.name) for field in fields(value))])
    if isinstance(value, ModuleType):
        return each((value.__name__, str(getattr(value, "__version__", ""))))
    if isinstance(value, BuiltinFunctionType | np.ufunc):
        return [f"{getattr(value, '__module__', '')}.{value.__name__}".encode()]
    return _other(value, above)


def _parts_of(function: FunctionType) -> list[Any]:
    """Return what a function does: its code, and the values that it reads."""
    closure = [_content(cell) for cell in function.__closure__ or ()]
    names = _globals_named(function.__code__)
    read = {n: function.__globals__[n] for n in sorted(names) if n in function.__globals__}
    return [function.__code__, function.__defaults__, function.__kwdefaults__, closure, read]


def _globals_named(code: CodeType) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    names = {step.argval for step in get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return names.union(*map(_globals_named, inner))


def _content(cell: CellType) -> Any:  # noqa: ANN401 - anything
    try:
        return cell.cell_contents
    except ValueError:
        return None  # a name that is bound later


def _other(value: Any, above: tuple[int, ...]) -> list[bytes]:  # noqa: ANN401
    """A class by its name and methods, an object by its class and what pickle says of it."""
    from .dataset import Dataset

    if isinstance(value, Dataset):
        return [content_id(value).encode(), _digest(value.format, above)]
    if isinstance(value, type):
        methods = [m for m in vars(value).values() if isinstance(m, FunctionType)]
        return [f"{value.__module__}.{value.__qualname__}".encode()] + [
            _digest(method, above) for method in methods
        ]
    try:
        state = pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        kind = type(value).__qualname__
        raise TypeError(
            f"cache= needs a name for the function, and its {kind} has none ({error}); pass "
            f"output= instead, or give the function values that pickle knows"
        ) from None
    return [_digest(type(value), above), state]
