"""Values and refs, on both engines."""

import pickle
import threading

import numpy as np
import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 60


@nanoray.remote
def double(x):
    return 2 * x


@nanoray.remote
def kinds_of(top, nested):
    return type(top).__name__, type(nested[0]).__name__


@nanoray.remote
def inner_value(refs):
    return nanoray.get(refs[0], timeout=WAIT_S)


def test_what_is_put_comes_back_equal(engine):
    value = {"a": [1, 2.5, "text", None], "b": (True, b"bytes")}
    assert engine.get(engine.put(value), timeout=WAIT_S) == value


def test_get_of_a_list_keeps_its_order_and_of_none_is_empty(engine):
    refs = [engine.put(number) for number in range(5)]
    assert engine.get(refs[::-1], timeout=WAIT_S) == [4, 3, 2, 1, 0]
    assert engine.get([]) == []


def test_large_arrays_come_back_read_only(engine):
    array = np.arange(200_000, dtype=np.float32).reshape(2, -1)
    back = engine.get(engine.put(array), timeout=WAIT_S)
    np.testing.assert_array_equal(back, array)
    assert not back.flags.writeable


def test_a_ref_to_a_ref_is_refused(engine):
    with pytest.raises(TypeError, match="ref to a ref"):
        engine.put(engine.put(1))


def test_a_ref_is_resolved_at_the_top_of_the_arguments_only(engine):
    ref = engine.put(3)
    assert engine.get(kinds_of.remote(ref, [ref]), timeout=WAIT_S) == ("int", "ObjectRef")
    assert engine.get(kinds_of.remote(nested=[ref], top=ref), timeout=WAIT_S)[0] == "int"


def test_a_nested_ref_can_be_opened_where_it_arrives(engine):
    assert engine.get(inner_value.remote([engine.put(5)]), timeout=WAIT_S) == 5


def test_a_ref_returned_by_a_task_outlives_the_task(engine):
    @engine.remote
    def wrap():
        return [nanoray.put("inside")]

    (inner,) = engine.get(wrap.remote(), timeout=WAIT_S)
    assert engine.get(inner, timeout=WAIT_S) == "inside"


def test_a_ref_inside_a_stored_value_keeps_its_object_alive(engine):
    box = engine.put([engine.put("kept")])
    (inner,) = engine.get(box, timeout=WAIT_S)
    del box
    assert engine.get(inner, timeout=WAIT_S) == "kept"


def test_a_ref_cannot_be_pickled_by_hand(engine):
    with pytest.raises(TypeError, match="cannot be pickled by hand"):
        pickle.dumps(engine.put(1))


def test_equal_refs_name_the_same_object(engine):
    ref = engine.put(1)
    (same,) = engine.get(engine.put([ref]), timeout=WAIT_S)
    assert same == ref
    assert hash(same) == hash(ref)
    assert ref != engine.put(1)


def test_wait_returns_as_many_as_asked_in_the_order_given(engine):
    refs = [engine.put(number) for number in range(3)]
    ready, pending = engine.wait(refs, num_returns=2, timeout=WAIT_S)
    assert len(ready) == 2
    assert ready == [ref for ref in refs if ref in ready]
    assert pending == [ref for ref in refs if ref not in ready]


def test_wait_gives_up_after_its_timeout(engine):
    @engine.remote
    def wait_for(refs):
        return len(nanoray.wait(refs, timeout=0.2)[0])

    @engine.remote
    class Gate:
        def __init__(self):
            self.event = threading.Event()

        def never(self):
            self.event.wait()

    gate = Gate.remote()
    stuck = gate.never.remote()
    assert engine.wait([stuck], timeout=0.2) == ([], [stuck])
    assert engine.get(wait_for.remote([stuck]), timeout=WAIT_S) == 0
    engine.kill(gate)


def test_wait_counts_a_failed_call_as_ready(engine):
    @engine.remote
    def fail():
        raise ValueError("no")

    ref = fail.remote()
    assert engine.wait([ref], timeout=WAIT_S) == ([ref], [])


def test_wait_checks_what_it_is_given(engine):
    ref = engine.put(1)
    with pytest.raises(ValueError, match="2 refs with 1 different"):
        engine.wait([ref, ref])
    with pytest.raises(ValueError, match=r"num_returns=2 is not in 1\.\.1"):
        engine.wait([ref], num_returns=2)
    with pytest.raises(TypeError, match="no ObjectRef"):
        engine.wait([1])
    with pytest.raises(TypeError, match=r"no list of them; pass list\(refs\)"):
        engine.wait({ref})


def test_wait_counts_what_is_ready_anywhere_when_told_not_to_fetch(engine):
    refs = [engine.put(number) for number in range(2)]
    assert engine.wait(refs, num_returns=2, timeout=WAIT_S, fetch_local=False) == (refs, [])


def test_a_stream_is_not_waited_for_but_its_items_and_its_end_are(engine):
    @engine.remote
    def letters():
        yield from "ab"

    stream = letters.options(num_returns="streaming").remote()
    for ask in (engine.wait, engine.get):
        for refs in (stream, [stream]):
            with pytest.raises(TypeError, match=r"take its items with next\(\), or pass its comp"):
                ask(refs)
    items = [*stream]
    assert engine.wait([*items, stream.completed()], num_returns=3, timeout=WAIT_S)[1] == []


def test_get_gives_up_after_its_timeout_and_can_be_asked_again(engine):
    @engine.remote
    class Gate:
        def __init__(self):
            self.event = threading.Event()

        def never(self):
            self.event.wait()

    gate = Gate.remote()
    stuck = gate.never.remote()
    for _ in range(2):
        with pytest.raises(nanoray.GetTimeoutError, match=r"timeout=0\.2 s"):
            engine.get(stuck, timeout=0.2)
    with pytest.raises(TimeoutError):
        engine.get([engine.put(1), stuck], timeout=0)
    engine.kill(gate)


def test_what_cannot_be_pickled_is_refused_where_it_is_sent(engine):
    with pytest.raises(nanoray.SerializationError, match="cannot be sent"):
        engine.put(threading.Lock())
    with pytest.raises(nanoray.SerializationError, match="cannot be sent"):
        double.remote(threading.Lock())
    lock = threading.Lock()
    with pytest.raises(nanoray.SerializationError, match="cannot be sent"):
        engine.remote(lambda: lock).remote()


def test_get_checks_what_it_is_given(engine):
    with pytest.raises(TypeError, match="no ObjectRef"):
        engine.get(["text"])
    with pytest.raises(TypeError, match="no ObjectRef"):
        engine.get(7)
    with pytest.raises(ValueError, match="negative"):
        engine.get(engine.put(1), timeout=-1)
