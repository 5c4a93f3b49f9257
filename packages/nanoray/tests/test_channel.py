"""Messages between machines: the same interface as a local connection, and stricter."""

import marshal
import os
import pickle
import socket
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanorlhf.nanoray.channel import Channel
from nanorlhf.nanoray.handshake import Session
from nanorlhf.nanoray.records import Sealer
from nanorlhf.nanoray.wire import pack

LEFT, RIGHT = b"l" * 32, b"r" * 32


def tcp_pair():
    """Two ends of a TCP connection; a socket pair would have no keepalive."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def channels(**limits):
    near, far = tcp_pair()
    near.setblocking(False)
    far.setblocking(False)
    return (
        Channel(near, Session("agent", LEFT, RIGHT), **limits),
        Channel(far, Session("agent", RIGHT, LEFT), **limits),
    )


def raw_peer(**limits):
    """A channel, and the bare socket of a peer that knows the keys."""
    near, far = tcp_pair()
    near.setblocking(False)
    return Channel(near, Session("agent", LEFT, RIGHT), **limits), far, Sealer(RIGHT)


def receive_all(channel, count, timeout_s=20.0):
    messages, deadline = [], time.monotonic() + timeout_s
    while len(messages) < count and time.monotonic() < deadline:
        messages += channel.receive(1.0)
    return messages


def ends(channel, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            assert channel.receive(1.0) == []
    except EOFError:
        return True
    return False


def test_messages_arrive_in_order_and_both_ways():
    left, right = channels()
    for number in range(100):
        left.queue(("ping", number, b"x" * number))
    assert left.flush()
    assert [message[1] for message in receive_all(right, 100)] == list(range(100))
    right.queue(("pong",))
    right.flush()
    assert receive_all(left, 1) == [("pong",)]
    left.close()
    assert ends(right)
    right.close()


def test_a_message_larger_than_every_buffer_arrives_whole():
    left, right = channels()
    body = os.urandom(20 << 20)
    left.queue(("large", body))
    messages = []
    while not messages:
        left.flush()
        messages = right.receive(0.01)
    assert messages == [("large", body)]
    left.close()
    right.close()


def test_a_peer_that_takes_nothing_is_cut_off_when_its_share_is_full():
    left, right = channels(max_outbox=1 << 20)
    for _ in range(1000):
        left.queue(("chunk", bytes(1 << 16)))
        left.flush()
    with pytest.raises(EOFError):
        left.receive(5.0)
    left.queue(("late",))
    assert left.flush()
    left.close()
    right.close()


def test_a_message_over_the_limit_ends_the_channel_without_being_kept():
    channel, peer, sealer = raw_peer(max_message=1 << 16)
    peer.sendall(sealer.seal(struct.pack("<Q", 1 << 40)))
    assert ends(channel)
    channel.close()
    peer.close()


def test_nothing_is_unpickled_and_what_is_no_message_ends_the_channel(tmp_path):
    canary = tmp_path / "canary"

    class Canary:
        def __reduce__(self):
            return canary.touch, ()

    body = pickle.dumps(Canary())
    for stream in (body, struct.pack("<Q", len(body)) + body):
        channel, peer, sealer = raw_peer()
        peer.sendall(sealer.seal(stream))
        peer.close()
        assert ends(channel)
        channel.close()
    assert not canary.exists()
    pickle.loads(body)
    assert canary.exists(), "the canary sings when it is unpickled"


def test_a_payload_inside_a_message_stays_bytes():
    left, right = channels()
    payload = pickle.dumps(object())
    left.queue(("put", payload))
    left.flush()
    assert receive_all(right, 1) == [("put", payload)]
    left.close()
    right.close()


@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=6))
def test_random_bytes_from_the_network_end_the_channel(chunks):
    channel, peer, _ = raw_peer()
    for chunk in chunks:
        peer.sendall(chunk)
    peer.close()
    try:
        while True:
            assert channel.receive(5.0) == []
    except EOFError:
        pass
    channel.close()


@given(st.integers(0, 200), st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_a_stream_cut_anywhere_gives_whole_messages_and_then_the_end(length, sizes):
    channel, peer, sealer = raw_peer()
    messages = [("m", number, bytes(size)) for number, size in enumerate(sizes)]
    stream = b"".join(sealer.seal(pack(message)) for message in messages)[:length]
    for start in range(0, len(stream), 13):
        peer.sendall(stream[start : start + 13])
    peer.close()
    found = list(channel.drain())
    try:
        while True:
            found += channel.receive(5.0)
    except EOFError:
        pass
    assert found == messages[: len(found)]
    assert marshal.loads(marshal.dumps(found)) == found
    channel.close()


def test_bytes_behind_the_handshake_are_read_first():
    near, far = tcp_pair()
    near.setblocking(False)
    first = Sealer(RIGHT).seal(pack(("first",)))
    channel = Channel(near, Session("agent", LEFT, RIGHT), rest=first)
    assert channel.receive(5.0) == [("first",)]
    channel.close()
    far.close()
