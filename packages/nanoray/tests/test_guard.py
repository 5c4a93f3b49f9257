"""Ctrl-C while the driver's main thread changes the engine's tables."""

import os
import signal
import threading

import pytest

from nanorlhf.nanoray.guard import Guard

WAIT_S = 60


@pytest.fixture
def guard():
    made = Guard()
    yield made
    made.restore()


def test_an_interrupt_inside_waits_until_the_tables_are_whole(guard):
    steps = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012  the order of the steps is what is tested
        with guard:
            signal.raise_signal(signal.SIGINT)
            steps.append("whole")
        steps.append("after")
    assert steps == ["whole"]
    with guard:
        steps.append("free again")


def test_an_interrupt_outside_comes_at_once(guard):
    with guard:
        pass
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_another_thread_inside_does_not_hold_an_interrupt_back(guard):
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with guard:
            inside.set()
            leave.wait(WAIT_S)

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait(WAIT_S)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    leave.set()
    thread.join()


def test_the_users_own_handler_is_called_and_comes_back():
    calls = []

    def mine(*_):
        calls.append("mine")

    before = signal.signal(signal.SIGINT, mine)
    try:
        guard = Guard()
        with guard:
            signal.raise_signal(signal.SIGINT)
            assert not calls
        assert calls == ["mine"]
        guard.restore()
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_set_later_is_left_alone():
    before = signal.getsignal(signal.SIGINT)
    guard = Guard()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guard.restore()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, before)


def test_no_call_is_lost_to_ctrl_c_under_load(ray):
    double = ray.remote(lambda x: 2 * x)
    ray.get(double.remote(0), timeout=WAIT_S)
    go, is_heard, refs, rounds = threading.Event(), threading.Event(), [], 20

    def interrupt():
        for _ in range(rounds):
            go.wait(WAIT_S)
            go.clear()
            while not is_heard.wait(0.05):
                os.kill(os.getpid(), signal.SIGINT)
            is_heard.clear()

    thread = threading.Thread(target=interrupt)
    thread.start()
    for _ in range(rounds):
        try:
            go.set()
            while True:
                refs.append((len(refs), double.remote(len(refs))))
                ray.get([ref for _, ref in refs[-50:]], timeout=WAIT_S)
        except KeyboardInterrupt:
            is_heard.set()
    thread.join()
    for number, ref in refs:
        assert ray.get(ref, timeout=WAIT_S) == 2 * number
