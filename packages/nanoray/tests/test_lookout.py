"""Looking for a message without sleeping."""

import os
import select
import socket
import time

import pytest

from nanorlhf.nanoray.lookout import Lookout, step_aside

WAIT_S = 60


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    poll = select.poll()
    poll.register(ours, select.POLLIN)
    yield Lookout(poll.poll, may_move=True), ours, theirs
    ours.close()
    theirs.close()


def processor():
    """Return which processor this thread runs on."""
    with open("/proc/thread-self/stat") as file:
        return int(file.read().rpartition(")")[2].split()[36])


def test_a_look_finds_what_is_there_and_gives_up_on_what_does_not_come(ends):
    lookout, ours, theirs = ends
    theirs.send(b"x")
    assert lookout.look() == [(ours.fileno(), select.POLLIN)]
    ours.recv(1)
    assert lookout.look() == []


def test_a_look_finds_that_the_other_end_is_closed(ends):
    lookout, ours, theirs = ends
    theirs.close()
    ((fd, event),) = lookout.look()
    assert fd == ours.fileno()
    assert event & select.POLLHUP


def test_who_steps_aside_may_run_afterwards_where_it_might_before():
    before = os.sched_getaffinity(0)
    step_aside()
    assert os.sched_getaffinity(0) == before
    try:
        os.sched_setaffinity(0, {min(before)})
        step_aside()
        assert os.sched_getaffinity(0) == {min(before)}
    finally:
        os.sched_setaffinity(0, before)


def test_a_worker_that_waits_uses_no_processor_time(start):
    ray = start(num_cpus=1)

    @ray.remote
    class Meter:
        def used_s(self):
            return time.process_time()

    meter, nap = Meter.remote(), ray.remote(time.sleep)
    before = [ray.get(meter.used_s.remote(), timeout=WAIT_S) for _ in range(50)][-1]
    ray.get(nap.remote(0.5), timeout=WAIT_S)
    assert ray.get(meter.used_s.remote(), timeout=WAIT_S) - before < 0.1


def test_who_steps_aside_runs_elsewhere():
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("it takes two processors to leave one")
    here, num_left = min(before), 0
    try:
        for _ in range(20):
            os.sched_setaffinity(0, {here})
            os.sched_setaffinity(0, before)
            step_aside()
            num_left += processor() != here
    finally:
        os.sched_setaffinity(0, before)
    assert num_left > 10  # the kernel may take it back at any moment, and mostly does not
