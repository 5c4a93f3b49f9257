"""The door lets in who has the token, and nobody else keeps it busy."""

import pickle
import queue
import socket
import threading
import time
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanorlhf.nanoray.address import Address, parse_address
from nanorlhf.nanoray.channel import Channel
from nanorlhf.nanoray.dial import call
from nanorlhf.nanoray.door import Door
from nanorlhf.nanoray.errors import AuthenticationError, NanoRayError
from nanorlhf.nanoray.handshake import MAX_BYTES, Caller
from nanorlhf.nanoray.tls import TlsFiles

TOKEN, OTHER = b"t" * 32, b"o" * 32


@pytest.fixture
def opened():
    """Open doors on loopback: ``opened(token=...)`` gives a door and the queue of its guests."""
    doors = []

    def make(token=TOKEN, **options):
        guests = queue.Queue()
        welcome = {"agent": guests.put, "pull": guests.put}
        door = Door("127.0.0.1", 0, token, welcome=welcome, **options)
        doors.append((door, guests))
        return door, guests

    yield make
    for door, guests in doors:
        door.close()
        while not guests.empty():
            guests.get().sock.close()


def is_hung_up(sock, timeout_s=20.0):
    sock.settimeout(timeout_s)
    try:
        while sock.recv(MAX_BYTES):
            pass
    except ConnectionError:
        pass
    return True


def drips(sock, data):
    """Send a byte now and then; return whether the peer hung up before the last."""
    sock.settimeout(0.02)
    for byte in data:
        try:
            sock.sendall(bytes([byte]))
            if not sock.recv(1):
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


def pours(sock, data):
    """Send for ever; return whether the peer hung up."""
    sock.settimeout(20)
    try:
        while True:
            sock.sendall(data)
    except ConnectionError:
        return True


def tls(files):
    certificate, key, authority = files
    return TlsFiles(certificate=certificate, key=key, authority=authority)


def exchange(near, far):
    """Say something both ways over a fresh connection."""
    left, right = (Channel(guest.sock, guest.session, rest=guest.rest) for guest in (near, far))
    left.queue(("hello", b"x" * 200_000))
    sender = threading.Thread(target=left.flush)
    sender.start()
    messages = []
    while not messages:
        messages = right.receive(5.0)
    sender.join()
    right.queue(("and", "back"))
    right.flush()
    assert messages == [("hello", b"x" * 200_000)]
    assert left.receive(5.0) == [("and", "back")]
    left.close()
    right.close()


def test_who_has_the_token_is_let_in_and_can_talk(opened):
    door, guests = opened()
    near = call(door.address, "agent", TOKEN)
    far = guests.get(timeout=10)
    assert far.session.purpose == "agent"
    assert far.peer.host == "127.0.0.1"
    exchange(near, far)


def test_a_wrong_token_is_told_so_and_not_let_in(opened):
    door, guests = opened()
    with pytest.raises(AuthenticationError, match="another token"):
        call(door.address, "agent", OTHER)
    with pytest.raises(AuthenticationError, match="another token"):
        call(opened(OTHER)[0].address, "pull", TOKEN)
    assert guests.empty()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_no_port_is_opened_without_a_token(host):
    for token in (b"", b"guess"):
        with pytest.raises(AuthenticationError, match="without it no port is opened"):
            Door(host, 0, token, welcome={})


def test_a_replayed_conversation_is_not_let_in(opened):
    door, guests = opened()
    caller = Caller(TOKEN, "agent", nonce=b"n" * 32, is_tls=False)
    with socket.create_connection(door.address) as sock:
        hello = caller.start()
        sock.sendall(hello)
        reply = b""
        while caller.session is None:
            chunk = sock.recv(MAX_BYTES)
            reply += chunk
            proof = caller.feed(chunk)
        sock.sendall(proof)
        guests.get(timeout=10).sock.close()
    with socket.create_connection(door.address) as sock:
        sock.sendall(hello)
        sock.recv(len(reply), socket.MSG_WAITALL)
        sock.sendall(proof)
        assert is_hung_up(sock)
    assert guests.empty()


def test_a_door_that_sends_back_what_it_hears_is_not_believed():
    with socket.create_server(("127.0.0.1", 0)) as mirror:

        def reflect():
            sock, _ = mirror.accept()
            with sock:
                while data := sock.recv(MAX_BYTES):
                    sock.sendall(data + bytes(64))

        thread = threading.Thread(target=reflect)
        thread.start()
        with pytest.raises(AuthenticationError):
            call(Address(*mirror.getsockname()), "agent", TOKEN)
        thread.join()


def test_the_slow_and_the_silent_are_turned_away_in_time_and_hold_up_nobody(opened):
    door, guests = opened(deadline_s=0.3)
    silent = [socket.create_connection(door.address) for _ in range(20)]
    slow = socket.create_connection(door.address)
    began = time.monotonic()
    near = call(door.address, "agent", TOKEN)
    guests.get(timeout=10).sock.close()
    near.sock.close()
    hello = Caller(TOKEN, "agent", nonce=b"n" * 32, is_tls=False).start()
    assert drips(slow, hello[:-1])
    assert all(is_hung_up(sock) for sock in silent)
    assert time.monotonic() - began < 15
    for sock in (*silent, slow):
        sock.close()


def test_of_too_many_strangers_the_first_leaves(opened):
    door, guests = opened(max_strangers=8)
    strangers = [socket.create_connection(door.address) for _ in range(30)]
    assert all(is_hung_up(sock) for sock in strangers[:20])
    near = call(door.address, "agent", TOKEN)
    guests.get(timeout=10).sock.close()
    near.sock.close()
    for sock in strangers:
        sock.close()


def test_an_endless_stranger_is_cut_off_and_costs_no_memory(opened):
    door, guests = opened()
    tracemalloc.start()
    try:
        with socket.create_connection(door.address) as sock:
            assert pours(sock, b"nanoray\n" + bytes(1 << 16))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert guests.empty()


def canary_pickle(path):
    class Canary:
        def __reduce__(self):
            return path.touch, ()

    return pickle.dumps(Canary())


def test_random_and_crafted_bytes_are_refused_and_nothing_is_unpickled(opened, tmp_path):
    door, guests = opened()
    payload = canary_pickle(tmp_path / "canary")
    hello = Caller(TOKEN, "agent", nonce=b"n" * 32, is_tls=False).start()
    pieces = st.sampled_from([payload, hello, hello[:20], b"GET / HTTP/1.1\r\n\r\n"])

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.one_of(pieces, st.binary(max_size=9000)), max_size=5))
    def attack(chunks):
        with socket.create_connection(door.address) as sock:
            try:
                for chunk in chunks:
                    sock.sendall(chunk)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            assert is_hung_up(sock)

    attack()
    assert guests.empty()
    assert not (tmp_path / "canary").exists()
    near = call(door.address, "agent", TOKEN)  # it still works
    exchange(near, guests.get(timeout=10))


def test_nobody_there_and_nobody_answering_are_told_apart(opened):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address(*listener.getsockname())
        with pytest.raises(NanoRayError, match=r"did not answer within 0\.2 s"):
            call(address, "agent", TOKEN, timeout_s=0.2)
    with pytest.raises(NanoRayError, match=r"nobody answers at 127\.0\.0\.1"):
        call(address, "agent", TOKEN)


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:x", "host:0", "host:65536"])
def test_an_address_without_host_or_port_is_refused(text):
    with pytest.raises(ValueError, match="host:port"):
        parse_address(text)


def test_tls_carries_messages_between_machines_of_one_authority(opened, make_certificate):
    door, guests = opened(tls=tls(make_certificate("ours")))
    near = call(door.address, "agent", TOKEN, tls=tls(make_certificate("ours")))
    assert near.sock.version() == "TLSv1.3"
    exchange(near, guests.get(timeout=10))


def test_tls_refuses_another_authority_a_plain_caller_and_a_wrong_token(opened, make_certificate):
    ours, theirs = tls(make_certificate("ours")), tls(make_certificate("theirs"))
    door, guests = opened(tls=ours)
    with pytest.raises(AuthenticationError):
        call(door.address, "agent", TOKEN, tls=theirs)
    with pytest.raises(AuthenticationError):
        call(door.address, "agent", TOKEN)
    with pytest.raises(AuthenticationError, match="another token"):
        call(door.address, "agent", OTHER, tls=ours)
    with pytest.raises(AuthenticationError):
        call(opened()[0].address, "agent", TOKEN, tls=ours)
    assert guests.empty()


def test_tls_files_that_do_not_belong_together_are_named(make_certificate, tmp_path):
    certificate, key, authority = make_certificate("ours")
    _, other_key, _ = make_certificate("ours")
    for wrong in ((certificate, other_key, authority), (certificate, key, tmp_path / "none.pem")):
        with pytest.raises(ValueError, match="three PEM files that belong together"):
            tls(wrong).context("caller")
