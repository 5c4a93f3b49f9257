import pickle

import pytest

from nanorlhf.nanoray.errors import TaskError, task_error, traceback_text


class Picky(Exception):
    def __init__(self, code, *, detail):
        super().__init__(code)
        self.code, self.detail = code, detail

    def __reduce__(self):
        raise TypeError("I do not travel")


def test_a_task_error_is_also_its_cause():
    error = pickle.loads(pickle.dumps(task_error("f()", "Traceback: here", OSError(2, "gone"))))
    assert isinstance(error, TaskError)
    assert isinstance(error, OSError)
    assert (error.errno, error.strerror) == (2, "gone")
    assert isinstance(error.__cause__, FileNotFoundError)
    assert str(error) == "f() raised:\nTraceback: here"


def test_a_cause_with_its_own_constructor_keeps_its_attributes():
    error = task_error("f()", "text", Picky(3, detail="d"))
    assert isinstance(error, Picky)
    assert (error.code, error.detail) == (3, "d")


def test_a_cause_that_cannot_travel_leaves_its_traceback():
    error = pickle.loads(pickle.dumps(task_error("f()", "Picky: 3", Picky(3, detail="d"))))
    assert type(error) is TaskError
    assert error.cause is None
    assert "Picky: 3" in str(error)


def test_exit_is_an_error_but_no_exit():
    error = task_error("f()", "SystemExit: 1", SystemExit(1))
    assert isinstance(error, TaskError)
    assert not isinstance(error, SystemExit)


@pytest.mark.parametrize("cause", [KeyError("k"), UnicodeDecodeError("utf-8", b"x", 0, 1, "no")])
def test_builtin_causes_can_be_caught_by_class(cause):
    with pytest.raises(type(cause)):
        raise task_error("f()", "text", cause)


def test_an_error_is_told_once_however_many_calls_it_passes_through():
    error = task_error("f()", "Traceback of f", KeyError("k"))
    for level in range(50):
        try:
            raise error
        except TaskError as caught:
            text = traceback_text(caught, caught.__traceback__)
            error = task_error(f"g{level}()", text, caught)
    assert str(error).count("Traceback of f") == 1
    assert isinstance(error, KeyError)
    assert isinstance(error.cause, KeyError)


def test_the_traceback_tells_of_causes_and_contexts():
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner
    except ValueError as outer:
        text = traceback_text(outer, outer.__traceback__)
    assert text.index("KeyError: 'inner'") < text.index("ValueError: outer")


def test_a_memory_error_of_a_task_is_one_where_it_is_caught():
    error = pickle.loads(pickle.dumps(task_error("f()", "Traceback", MemoryError("no room"))))
    assert isinstance(error, MemoryError)
    assert isinstance(error, TaskError)
    assert error.args == ("no room",)
