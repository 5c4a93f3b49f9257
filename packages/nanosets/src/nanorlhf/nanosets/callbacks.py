"""Python functions that C code may call at any moment.

A consumer of Arrow data calls back to release it whenever its own object dies. Two things may then
be under way that the callbacks of ctypes do not survive.

*An exception*: ``f(pyarrow.table(ds), 1 / 0)`` frees the table while frames are unwound. ctypes
clears the exception, and the interpreter, left with an error without an exception, crashes. So a
callback here takes the exception away before anything else (until then nothing may be called that
looks at it, which is nearly everything), and at the end gives ctypes a result that raises it again
when it is freed, which is the last thing that ctypes does.

*Ctrl-C*: a signal that arrived while C code was busy is noticed on entry to the callback, which
then never runs, and the consumer goes on with memory that nobody filled or released. So a callback
here does not look for signals on entry, does its work again if one breaks in, and has the signal
raised once more when the consumer returns.

Callbacks live as long as the process: C code holds their addresses and tells nobody.
"""

import ctypes
from _thread import interrupt_main
from collections.abc import Callable
from opcode import opmap
from typing import Any, TypeVar

TP_FINALIZE = 80
"""``Py_tp_finalize`` of typeslots.h, part of the stable ABI."""
FLAGS = 1 << 18 | 1 << 10
"""``Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE``."""
NO_SIGNALS = 2
"""Bit of RESUME's argument: go on as after an ``await``, without a look at signals."""


class _Slot(ctypes.Structure):
    _fields_ = (("number", ctypes.c_int), ("function", ctypes.c_void_p))


class _Spec(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("basicsize", ctypes.c_int),
        ("itemsize", ctypes.c_int),
        ("flags", ctypes.c_uint),
        ("slots", ctypes.POINTER(_Slot)),
    )


F = TypeVar("F", bound=Callable[..., Any])

# Prototypes of our own: those of ``ctypes.pythonapi`` are shared, and anyone may change them.
_fetch = ctypes.PYFUNCTYPE(None)(("PyErr_Fetch", ctypes.pythonapi))
_restore = ctypes.PYFUNCTYPE(None)(("PyErr_Restore", ctypes.pythonapi))
_incref = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("Py_IncRef", ctypes.pythonapi))
_new_type = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.POINTER(_Spec))(
    ("PyType_FromSpec", ctypes.pythonapi)
)


def _called_when_freed() -> Any:  # noqa: ANN401 - a type that no annotation names
    """Return a type whose instances are called, without arguments, when they are freed.

    Its ``tp_finalize`` is the C function ``PyObject_CallNoArgs``: unlike ``__del__``, that leaves
    an exception standing.
    """
    call = ctypes.cast(ctypes.pythonapi.PyObject_CallNoArgs, ctypes.c_void_p)
    slots = (_Slot * 2)(_Slot(TP_FINALIZE, call), _Slot(0, None))
    return _new_type(_Spec(b"nanorlhf.nanosets.callbacks.CalledWhenFreed", 0, 0, FLAGS, slots))


_CalledWhenFreed = _called_when_freed()


class _Raised(_CalledWhenFreed):  # type: ignore[misc,valid-type]  # a type made at run time
    """An exception that was taken away; raises it again when freed."""

    __slots__ = ("pointers",)
    pointers: list[ctypes.c_void_p]

    def __call__(self) -> None:
        _restore(*self.pointers)


class _Interrupted(_CalledWhenFreed):  # type: ignore[misc,valid-type]  # a type made at run time
    """A Ctrl-C that broke in; sends it again when freed."""

    __slots__ = ()
    # A C function: Python code would see the signal itself.
    __call__ = interrupt_main


def forever(thing: Any) -> Any:  # noqa: ANN401 - anything
    """Return ``thing``, which is never freed from now on."""
    _incref(thing)
    return thing


def without_signals(function: F) -> F:
    """Return the function, which from now on does not look for signals when it is entered."""
    code = function.__code__
    raw = bytearray(code.co_code)
    raw[raw.index(opmap["RESUME"]) + 1] |= NO_SIGNALS
    function.__code__ = code.replace(co_code=bytes(raw))
    return function


def callback(function: Callable[[int], None]) -> int:
    """Return the address of a C function ``void f(void *)`` that calls ``function``.

    It may be called on any thread, with or without the interpreter's lock.

    Args:
        function: Gets the pointer as an int. Raises nothing but what a signal makes it raise, and
            is then called again to do the rest.
    """

    @without_signals
    def guarded(pointer: int) -> Any:  # noqa: ANN401 - None or what ctypes is to free
        # The multiplications make new bytes for C to write to, without a call.
        kind, value, trace = zero * size, zero * size, zero * size
        interrupted = None
        try:
            fetch(kind, value, trace)
        except everything:
            interrupted = again()
        try:
            function(pointer)
        except everything:
            interrupted = again()
            function(pointer)
        if kind == zero * size:
            return interrupted
        raised = reraise()
        raised.pointers = [as_pointer(found) for found in (kind, value, trace)]
        return raised

    # What the callback needs, it holds itself: at exit a module loses its globals early.
    fetch, reraise, again, everything = _fetch, _Raised, _Interrupted, BaseException
    as_pointer, zero, size = ctypes.c_void_p.from_buffer_copy, b"\0", ctypes.sizeof(ctypes.c_void_p)
    return address_of(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(guarded))


def address_of(function: Any) -> int:  # noqa: ANN401 - any ctypes function
    """Return the address of a ctypes function, which is never freed from now on."""
    found = ctypes.cast(forever(function), ctypes.c_void_p).value
    assert found is not None, "a function has an address"
    return found
