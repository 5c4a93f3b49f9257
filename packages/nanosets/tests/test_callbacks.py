import ctypes
import gc
import signal
import traceback

import pytest

from nanorlhf.nanosets.callbacks import callback, without_signals

new_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", ctypes.pythonapi))
called = []
address = callback(called.append)


def capsule():
    """An object whose deallocation calls back."""
    return new_capsule(8, b"x", address)


def nothing(*_):
    """Takes a capsule, then something fails."""


def fails():
    nothing(capsule(), 1 / 0)


def test_it_is_called_with_the_pointer():
    called.clear()
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(1234)
    assert called == [1234]


def test_an_exception_on_its_way_is_the_same_afterwards():
    called.clear()
    with pytest.raises(ZeroDivisionError) as caught:
        fails()
    assert len(called) == 1
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[-1] == "fails"


def test_the_frame_that_catches_the_exception_may_be_the_one_that_is_unwound():
    for _ in range(1000):
        caught = None
        try:
            nothing(capsule(), 1 / 0)
        except ZeroDivisionError as error:
            caught = error
        assert caught is not None
        assert caught.__context__ is None


def test_chains_of_exceptions_stay_as_they_are():
    def chain():
        try:
            fails()
        except ZeroDivisionError as error:
            nothing(capsule(), {}["key"]) if error else None

    with pytest.raises(KeyError) as caught:
        chain()
    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_exceptions_on_their_way_leave_nothing_behind():
    def living():
        return sum(type(thing) is ZeroDivisionError for thing in gc.get_objects())

    def attempt():
        with pytest.raises(ZeroDivisionError):
            fails()

    attempt()
    gc.collect()
    before = living()
    for _ in range(50):
        attempt()
    gc.collect()
    assert living() == before


def test_a_signal_does_not_keep_a_callback_from_running_and_is_raised_afterwards():
    seen = []

    def interrupted(pointer):
        if not seen:
            seen.append("first")
            signal.raise_signal(signal.SIGINT)
        seen.append(pointer)

    with pytest.raises(KeyboardInterrupt):
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(callback(interrupted))(7)
    assert seen == ["first", 7]


def test_a_function_without_signals_does_the_same_as_before():
    @without_signals
    def add(a, *, b=2):
        return a + b + len(seen)

    seen = [1]
    assert (add(1), add(1, b=5)) == (4, 7)
    assert add.__name__ == "add"
