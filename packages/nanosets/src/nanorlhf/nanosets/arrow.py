"""Arrow data of other libraries in, and ours out, by the Arrow PyCapsule interface; no copies.

Anything with ``__arrow_c_stream__`` or ``__arrow_c_array__`` comes in: tables of pyarrow, polars,
pandas, duckdb. Columns over a ``.nano`` file go out chunk by chunk, as pointers into the mapped
file, which stays mapped until the last consumer has let go. Needs none of those libraries.
"""

import ctypes
import errno
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

from .arrays import Array
from .arrow_abi import (
    ArrowArray,
    ArrowSchema,
    ArrowStream,
    capsule,
    kept_by,
    move,
    opened,
    own,
    release,
)
from .arrow_export import array_struct, schema_struct
from .arrow_import import Owner, node_at, read_array
from .arrow_types import Node, dtype_of, node_of
from .callbacks import address_of, without_signals
from .convert import all_null, concat
from .errors import SchemaError
from .nested import Structs
from .types import DType, Schema, Struct

MAX_BYTES = 2**31 - 1
"""What one exported array may hold, so that its 32-bit offsets reach all of it."""
GET = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
GET_ERROR = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)


class Capsules(NamedTuple):
    """What ``__arrow_c_array__`` returns."""

    schema: Any
    array: Any


class Stream(NamedTuple):
    """Arrays of one type, as they come."""

    dtype: DType
    arrays: Iterator[Array]


class Table(NamedTuple):
    """Columns, some rows at a time."""

    schema: Schema
    blocks: Iterator[Structs]


def export_schema(schema: Schema | DType) -> Any:  # noqa: ANN401 - a PyCapsule
    """Return columns, or a type, as an ``arrow_schema`` capsule."""
    return capsule(schema_struct(node_of(_dtype(schema))))


def export_array(array: Array) -> Capsules:
    """Return a compact array as its two capsules, over the same memory.

    Raises:
        SchemaError: Its 32-bit offsets do not reach all of it; export a stream.
    """
    return Capsules(export_schema(array.dtype), capsule(array_struct(array)))


def export_stream(schema: Schema | DType, blocks: Iterable[Array]) -> Any:  # noqa: ANN401
    """Return arrays of one type as an ``arrow_array_stream`` capsule, over the same memory.

    Args:
        schema: Columns, if the blocks are struct arrays of them; or the type of the blocks.
        blocks: Compact arrays; the next one is asked for when the consumer asks.
    """
    stream = ArrowStream(**_CALLBACKS)
    return capsule(own(stream, _Outgoing(node_of(_dtype(schema)), blocks)))


def import_stream(source: Any) -> Table:  # noqa: ANN401 - another library's table
    """Return another library's table as struct arrays over the same memory.

    Raises:
        OSError: The source fails while it is read.
        SchemaError: It is no table, or a column has a type that is none of ours.
        TypeError: It has no Arrow methods.
    """
    dtype, arrays = _import(source)
    if not isinstance(dtype, Struct):
        rule = f"the Arrow data is one column of {dtype}, no table; give it as {{name: column}}"
        raise SchemaError("", rule)
    return Table(Schema(dtype), map(_as_rows, arrays))


def import_array(source: Any) -> Array:  # noqa: ANN401 - another library's column
    """Return another library's column as one compact array; chunks are copied together.

    Raises:
        OSError: The source fails while it is read.
        SchemaError: The column has a type that is none of ours.
        TypeError: It has no Arrow methods.
    """
    dtype, arrays = _import(source)
    found = list(arrays)
    return concat(found) if found else all_null(dtype, 0)


def _dtype(schema: Schema | DType) -> DType:
    return schema.struct if isinstance(schema, Schema) else schema


class _Outgoing:
    """What a stream of ours has still to give."""

    def __init__(self, node: Node, blocks: Iterable[Array]) -> None:
        self.node = node
        self.blocks = (piece for block in blocks for piece in _fitting(block))
        self.error = b""

    def next_array(self) -> ArrowArray:
        """Return the next array; at the end one that is released already."""
        block = next(self.blocks, None)
        return ArrowArray() if block is None else array_struct(block)


def _fitting(block: Array) -> Iterator[Array]:
    """Yield an array in pieces that 32-bit offsets reach all of."""
    if block.length < 2 or block.nbytes <= MAX_BYTES:
        yield block
        return
    middle = block.length // 2
    yield from _fitting(block.window(0, 0, middle))
    yield from _fitting(block.window(0, middle, block.length))


@without_signals
def _give_schema(stream: int, out: int) -> int:
    try:
        move(schema_struct(kept_by(stream).node), out)
    except BaseException as error:  # noqa: BLE001 - C code is the caller: the error is its answer
        return _failed(stream, error)
    return 0


@without_signals
def _give_next(stream: int, out: int) -> int:
    try:
        move(kept_by(stream).next_array(), out)
    except BaseException as error:  # noqa: BLE001 - C code is the caller: the error is its answer
        return _failed(stream, error)
    return 0


def _failed(stream: int, error: BaseException) -> int:
    outgoing: _Outgoing = kept_by(stream)
    outgoing.error = f"{type(error).__name__}: {error}".encode()
    return errno.EIO


@without_signals
def _give_error(stream: int) -> int | None:
    try:
        outgoing: _Outgoing = kept_by(stream)
        return ctypes.cast(ctypes.c_char_p(outgoing.error), ctypes.c_void_p).value
    except BaseException:  # noqa: BLE001 - C code is the caller: NULL is an answer
        return None


_CALLBACKS = {
    "get_schema": address_of(GET(_give_schema)),
    "get_next": address_of(GET(_give_next)),
    "get_last_error": address_of(GET_ERROR(_give_error)),
}


def _import(source: Any) -> Stream:  # noqa: ANN401 - another library's object
    if hasattr(source, "__arrow_c_stream__"):
        stream = _Incoming(opened(source.__arrow_c_stream__(), "arrow_array_stream"))
        node = stream.node()
        return Stream(dtype_of(node), stream.arrays(node))
    if hasattr(source, "__arrow_c_array__"):
        schema, array = source.__arrow_c_array__()
        node = _node(opened(schema, "arrow_schema"))
        owner = Owner(opened(array, "arrow_array"))
        return Stream(dtype_of(node), iter([read_array(node, owner.array, owner)]))
    kind = type(source).__name__
    raise TypeError(f"a {kind} has no __arrow_c_stream__; give a table of an Arrow library")


def _node(schema: ArrowSchema) -> Node:
    try:
        return node_at(schema)
    finally:
        release(schema)


class _Incoming:
    """A stream that was moved here; gives it back when it is used up or forgotten."""

    def __init__(self, stream: ArrowStream) -> None:
        self.stream = stream

    def __del__(self) -> None:
        if not sys.is_finalizing():
            release(self.stream)

    def node(self) -> Node:
        """Return the type of the arrays."""
        found = ArrowSchema()
        self._get(self.stream.get_schema, found)
        return _node(found)

    def arrays(self, node: Node) -> Iterator[Array]:
        """Yield the arrays."""
        while True:
            found = ArrowArray()
            self._get(self.stream.get_next, found)
            if not found.release:
                return
            yield read_array(node, found, Owner(found))

    def _get(self, function: int, out: ArrowSchema | ArrowArray) -> None:
        pointer = ctypes.addressof(self.stream)
        code = GET(function)(pointer, ctypes.addressof(out))
        if code:
            text = GET_ERROR(self.stream.get_last_error)(pointer)
            message = ctypes.string_at(text).decode(errors="replace") if text else "no message"
            raise OSError(code, f"the Arrow stream failed: {message}")


def _as_rows(array: Array) -> Structs:
    rows = cast(Structs, array)
    if rows.valid is not None and not rows.valid.run(0, 0, rows.length).all():
        raise SchemaError("", "a row of the Arrow table is null as a whole; drop it first")
    return Structs(rows.dtype, rows.children, length=rows.length)
