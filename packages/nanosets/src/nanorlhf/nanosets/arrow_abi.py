"""The structs of the Arrow C data interface, and the PyCapsules that carry them.

https://arrow.apache.org/docs/format/CDataInterface.html and ``CDataInterface/PyCapsuleInterface``.
A struct belongs to whoever holds it until its ``release`` is called; it may be moved, which is a
copy of its bytes and a ``release`` of NULL in the old place. A struct of ours owns, by
``private_data``, one reference to a Python object that keeps alive all it points to, so a child
that was moved out of its parent outlives the parent.
"""

import ctypes
import sys
from typing import Any, TypeVar

from .callbacks import callback

NULLABLE = 2
"""``ARROW_FLAG_NULLABLE``."""
RELEASE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class ArrowSchema(ctypes.Structure):
    """A type and its name."""


class ArrowArray(ctypes.Structure):
    """Buffers of one array, and the arrays inside it."""


class ArrowStream(ctypes.Structure):
    """Arrays of one type, one after another."""

    _fields_ = (
        ("get_schema", ctypes.c_void_p),
        ("get_next", ctypes.c_void_p),
        ("get_last_error", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("private_data", ctypes.c_void_p),
    )


ArrowSchema._fields_ = (
    ("format", ctypes.c_char_p),
    ("name", ctypes.c_char_p),
    ("metadata", ctypes.c_void_p),
    ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("children", ctypes.POINTER(ctypes.POINTER(ArrowSchema))),
    ("dictionary", ctypes.POINTER(ArrowSchema)),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
)
ArrowArray._fields_ = (
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(ArrowArray))),
    ("dictionary", ctypes.POINTER(ArrowArray)),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
)

S = TypeVar("S", bound=ctypes.Structure)

CAPSULES: dict[bytes, type[Any]] = {
    b"arrow_schema": ArrowSchema,
    b"arrow_array": ArrowArray,
    b"arrow_array_stream": ArrowStream,
}

# Prototypes of our own: those of ``ctypes.pythonapi`` are shared, and anyone may change them.
_API = ctypes.pythonapi
_incref = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("Py_IncRef", _API))
_decref = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("Py_DecRef", _API))
_new_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", _API))
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _API)
)
_context = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(("PyCapsule_GetContext", _API))
_set_context = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(
    ("PyCapsule_SetContext", _API)
)
_malloc = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(("PyMem_RawMalloc", _API))
_free = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("PyMem_RawFree", _API))


def _releaser(kind: type[Any]) -> int:
    """Return the address of the ``release`` of our structs of one kind."""

    def release(pointer: int) -> None:
        found = kind.from_address(pointer)
        found.release = None
        if finalizing():
            return  # the references are gone with the interpreter
        for inner in inside(found) if is_nested else ():
            if inner.release:
                release(addressof(inner))
        # A signal may break in after each call, and then this runs again.
        kept, found.private_data = found.private_data, None
        if kept:
            decref(kept)

    # At exit a module loses its globals early: see ``callback``.
    addressof, decref, finalizing = ctypes.addressof, _decref, sys.is_finalizing
    inside, is_nested = inner_structs, kind is not ArrowStream
    return callback(release)


def inner_structs(outer: Any) -> list[Any]:  # noqa: ANN401 - ArrowSchema or ArrowArray
    """Return the children of a schema or an array, and its dictionary."""
    found = [outer.children[i].contents for i in range(outer.n_children)]
    return [*found, outer.dictionary.contents] if outer.dictionary else found


_RELEASE: dict[type[Any], int] = {
    kind: _releaser(kind) for kind in (ArrowSchema, ArrowArray, ArrowStream)
}


def own(found: S, kept: object) -> S:
    """Return the struct with a ``release``; until that is called, ``kept`` stays alive."""
    struct: Any = found
    struct.release = _RELEASE[type(found)]
    struct.private_data = id(kept)
    _incref(kept)
    return found


def kept_by(pointer: int) -> Any:  # noqa: ANN401 - what ``own`` was given
    """Return what the stream at ``pointer`` keeps alive."""
    stream = ArrowStream.from_address(pointer)
    return ctypes.cast(stream.private_data, ctypes.py_object).value


def move(found: Any, pointer: int) -> None:  # noqa: ANN401 - one of the structs
    """Move a struct to memory that holds nothing yet."""
    ctypes.memmove(pointer, ctypes.byref(found), ctypes.sizeof(found))
    found.release = None


def take(pointer: int, kind: type[Any]) -> Any:  # noqa: ANN401 - a ``kind``
    """Move a struct out of memory that is somebody else's."""
    source = kind.from_address(pointer)
    found = kind.from_buffer_copy(source)
    source.release = None
    return found


def release(found: Any) -> None:  # noqa: ANN401 - one of the structs
    """Give a struct back to whoever made it, if that has not been done."""
    if found.release:
        RELEASE(found.release)(ctypes.addressof(found))


def _destructor(kind: type[Any]) -> int:
    """Return the address of the destructor of our capsules of one kind."""

    def destroy(capsule: int) -> None:
        pointer = None if finalizing() else context(capsule)
        if not pointer:
            return
        give_back(kind.from_address(pointer))
        # A signal may break in after each call, and then this runs again.
        set_context(capsule, None)
        free(pointer)

    finalizing, context, set_context = sys.is_finalizing, _context, _set_context
    give_back, free = release, _free
    return callback(destroy)


_DESTROY = {kind: _destructor(kind) for kind in CAPSULES.values()}
_NAMES = {kind: name for name, kind in CAPSULES.items()}


def capsule(found: Any) -> Any:  # noqa: ANN401 - a struct in, a PyCapsule out
    """Move a struct into a PyCapsule, which releases it unless a consumer has taken it out."""
    pointer = _malloc(ctypes.sizeof(found))
    if not pointer:
        raise MemoryError
    move(found, pointer)
    # The capsule keeps the pointer to its name: that name must live as long.
    new = _new_capsule(pointer, _NAMES[type(found)], _DESTROY[type(found)])
    _set_context(id(new), pointer)
    return new


def opened(found: Any, name: str) -> Any:  # noqa: ANN401 - a PyCapsule in, a struct out
    """Move a struct out of a PyCapsule.

    Raises:
        ValueError: It holds another kind of struct, or was used already.
    """
    try:
        pointer = _pointer_of(found, name.encode())
    except (ValueError, ctypes.ArgumentError):
        raise ValueError(f"{found!r} is no PyCapsule of an {name}; give an Arrow object") from None
    struct = take(pointer, CAPSULES[name.encode()])
    if not struct.release:
        raise ValueError(f"the {name} in {found!r} was used already; ask for a new capsule")
    return struct
