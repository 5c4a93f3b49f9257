"""Types and compact arrays as structs of the Arrow C data interface, without a copy of a buffer."""

import ctypes
from collections.abc import Sequence
from itertools import islice
from typing import TypeVar

import numpy as np

from .arrays import Array, Buffer, Nulls
from .arrow_abi import NULLABLE, ArrowArray, ArrowSchema, own
from .arrow_types import Node, encode_metadata
from .coded import Coded
from .fixed import FixedLists
from .nested import Bytes, Lists, Structs

S = TypeVar("S", ArrowSchema, ArrowArray)


def schema_struct(node: Node) -> ArrowSchema:
    """Return a type as an ArrowSchema."""
    texts = node.format.encode(), node.name.encode(), encode_metadata(node.metadata)
    found = ArrowSchema(format=texts[0], name=texts[1], flags=NULLABLE)
    found.metadata = ctypes.cast(ctypes.c_char_p(texts[2]), ctypes.c_void_p)
    children = [schema_struct(child) for child in node.children]
    dictionary = None if node.dictionary is None else schema_struct(node.dictionary)
    return _owned(found, children, dictionary, texts)


def array_struct(array: Array) -> ArrowArray:
    """Return a compact array as an ArrowArray over its buffers."""
    buffers = list(islice(array.buffers(), _own_buffers(array)))
    kept = [None if b is None else np.ascontiguousarray(b) for b in buffers]
    addresses = [None if b is None else b.__array_interface__["data"][0] for b in kept]
    pointers = (ctypes.c_void_p * len(kept))(*addresses)
    found = ArrowArray(length=array.length, n_buffers=len(kept), buffers=pointers)
    found.null_count = _nulls(array, kept)
    children = [array_struct(child) for child in _children(array)]
    dictionary = array_struct(array.values) if isinstance(array, Coded) else None
    return _owned(found, children, dictionary, (pointers, kept))


def _own_buffers(array: Array) -> int | None:
    """Return how many of an array's buffers are not its children's; None for all."""
    if isinstance(array, Structs | FixedLists):
        return 1
    return 2 if isinstance(array, Lists) and not isinstance(array, Bytes) else None


def _children(array: Array) -> list[Array]:
    if isinstance(array, Structs):
        return list(array.children.values())
    if isinstance(array, FixedLists) or (isinstance(array, Lists) and not isinstance(array, Bytes)):
        return [array.child]
    return []


def _nulls(array: Array, buffers: Sequence[Buffer]) -> int:
    if isinstance(array, Nulls):
        return array.length
    valid = buffers[0]
    # The bits behind the last element are zeros.
    return 0 if valid is None else array.length - int(np.bitwise_count(valid).sum())


def _owned(found: S, children: Sequence[S], dictionary: S | None, kept: object) -> S:
    """Return a struct with others inside it, which lives until it is released."""
    pointers = (ctypes.POINTER(type(found)) * len(children))(*map(ctypes.pointer, children))
    found.n_children = len(children)
    if children:
        found.children = pointers
    if dictionary is not None:
        found.dictionary = ctypes.pointer(dictionary)
    owned: S = own(found, (children, dictionary, pointers, kept))
    return owned
