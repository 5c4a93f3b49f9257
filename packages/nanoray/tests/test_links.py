"""Peers and other descriptors behind one epoll, with the other ends here."""

import os
import socket

import pytest

from nanorlhf.nanoray.connection import Connection
from nanorlhf.nanoray.links import Links

WAIT_S = 30


@pytest.fixture
def links():
    links = Links()
    yield links
    links.close()


@pytest.fixture
def join(links):
    """Return a function that adds a peer and returns the peer's own end."""
    ends = []

    def joined(process):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        links.add(process, Connection(ours))
        ends.append(Connection(theirs))
        return ends[-1]

    yield joined
    for end in ends:
        end.close()


def heard(links, timeout_s=WAIT_S):
    """Return which peers can be read now."""
    found = []
    links.serve(links.poll(timeout_s), found.append)
    return found


def test_what_is_queued_leaves_together_with_the_next_flush(links, join):
    end = join(1)
    links.queue(1, ("a",))
    links.queue(1, ("b",))
    assert end.receive(0.0) == []
    links.flush()
    assert end.receive(WAIT_S) == [("a",), ("b",)]


def test_a_call_behind_another_waits_for_the_flush_of_all(links, join):
    end = join(1)
    links.queue(1, ("then", 1))
    links.flush(urgent_only=True)
    assert end.receive(0.0) == []
    links.flush()
    assert end.receive(WAIT_S) == [("then", 1)]


def test_many_calls_behind_another_do_not_wait(links, join):
    end = join(1)
    for number in range(100):
        links.queue(1, ("then", number))
        links.flush(urgent_only=True)
    assert len(end.receive(WAIT_S)) > 32


def test_an_urgent_message_takes_those_before_it_along(links, join):
    end = join(1)
    links.queue(1, ("then", 1))
    links.queue(1, ("exit",))
    links.flush(urgent_only=True)
    assert end.receive(WAIT_S) == [("then", 1), ("exit",)]


def test_a_full_socket_is_gone_on_with_when_it_has_room(links, join):
    end, data = join(1), b"x" * (8 << 20)
    links.queue(1, ("code", data))
    links.flush()
    found = []
    while not found:
        found = end.receive(0.0)
        assert heard(links, 0.0) == []  # a socket with room is not one that can be read
        links.flush()
    assert found == [("code", data)]
    assert links.poll(0.0) == [], "nobody waits for room any more"


def test_a_peer_that_is_dropped_before_its_turn_is_not_served(links, join):
    for process in (1, 2):
        end = join(process)
        end.queue(("hello",))
        end.flush()
    events, served = links.poll(WAIT_S), []

    def serve(process):
        served.append(process)
        links.drop(3 - process)

    links.serve(events, serve)
    assert len(events) == 2
    assert len(served) == 1
    assert links.get(3 - served[0]) is None


def test_nothing_is_heard_of_a_deafened_peer_that_is_still_sent_to(links, join):
    end = join(1)
    end.queue(("hello",))
    end.flush()
    links.deafen(1)
    assert links.poll(0.0) == []
    links.queue(1, ("a",))
    links.flush()
    assert end.receive(WAIT_S) == [("a",)]


def test_what_is_said_to_a_peer_that_is_gone_goes_nowhere(links, join):
    end = join(1)
    links.queue(1, ("a",))
    links.drop(1)
    links.queue(1, ("b",))
    links.flush()
    with pytest.raises(EOFError):
        end.receive(WAIT_S)


def test_other_descriptors_are_watched_until_they_are_not(links):
    reader, writer = os.pipe()
    told = []
    links.watch(reader, lambda: told.append(os.read(reader, 1)))
    os.write(writer, b"ab")
    assert (heard(links), told) == ([], [b"a"])
    links.unwatch(reader)
    assert links.poll(0.0) == []
    os.close(reader)
    os.close(writer)


def test_wake_ends_one_poll(links):
    links.wake()
    assert heard(links) == []
    assert links.poll(0.0) == []
