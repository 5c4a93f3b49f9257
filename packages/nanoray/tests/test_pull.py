"""Blocks arrive byte for byte, and a block that was changed on the way is refused."""

import os
import queue
import socket
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest

from nanorlhf.nanoray.address import Address
from nanorlhf.nanoray.door import Door
from nanorlhf.nanoray.errors import AuthenticationError, NanoRayError
from nanorlhf.nanoray.pull import BlockGoneError, BlockServer, OpenArena, Puller
from nanorlhf.nanoray.tls import TlsFiles

TOKEN = b"t" * 32
SIZE = 5 << 20


@pytest.fixture
def content():
    return np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)


@pytest.fixture
def arena(content):
    """The memfd of arena 7."""
    fd = os.memfd_create("test")
    os.write(fd, content.tobytes())
    yield fd
    os.close(fd)


@pytest.fixture
def serve(arena):
    """Serve arena 7 over a door: ``serve(tls=...)`` returns its address."""
    ends = []

    def start(tls=None):
        def open_arena(arena_id):
            return OpenArena(os.dup(arena), SIZE) if arena_id == 7 else None

        server = BlockServer(open_arena)
        door = Door("127.0.0.1", 0, TOKEN, welcome={"pull": server.welcome}, tls=tls)
        ends.extend([door.close, server.close])
        return door.address

    yield start
    for end in ends:
        end()


@pytest.fixture
def puller():
    puller = Puller(TOKEN)
    yield puller
    puller.close()


def pull(puller, address, offset, size, arena_id=7):
    target = bytearray(size)
    puller.pull(address, arena_id, offset, memoryview(target))
    return target


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, SIZE), (0, 1), (SIZE - 1, 1), (4096, 4096), (1234, 3_000_001), (4095, 2)],
)
def test_any_range_of_an_arena_arrives_as_it_is(serve, puller, content, offset, size):
    got = pull(puller, serve(), offset, size)
    assert got == content[offset : offset + size].tobytes()


def test_many_pulls_share_connections_and_run_at_once(serve, puller, content):
    address = serve()
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(pull, puller, address, 100 * n, 300_000) for n in range(20)]
        for number, job in enumerate(jobs):
            assert job.result() == content[100 * number :][:300_000].tobytes()


def test_a_missing_arena_is_told_and_the_connection_lives_on(serve, puller, content):
    address = serve()
    with pytest.raises(BlockGoneError, match="arena 9 is gone"):
        pull(puller, address, 0, 10, arena_id=9)
    assert pull(puller, address, 0, 10) == content[:10].tobytes()


@pytest.mark.parametrize(("offset", "size"), [(0, SIZE + 1), (SIZE, 1), (2**63, 1)])
def test_a_range_outside_the_arena_is_refused(serve, puller, offset, size):
    with pytest.raises(NanoRayError, match="hung up"):
        pull(puller, serve(), offset, size)


def test_a_peer_that_went_away_between_two_pulls_is_called_again(arena, content, puller):
    def open_arena(arena_id):
        return OpenArena(os.dup(arena), SIZE)

    first = BlockServer(open_arena)
    door = Door("127.0.0.1", 0, TOKEN, welcome={"pull": first.welcome})
    pull(puller, door.address, 0, 10)
    first.close()
    door.close()
    second = BlockServer(open_arena)
    door = Door(door.address.host, door.address.port, TOKEN, welcome={"pull": second.welcome})
    assert pull(puller, door.address, 5, 10) == content[5:15].tobytes()
    door.close()
    second.close()


def test_a_pull_from_a_machine_given_up_fails_at_once(puller):
    guests = queue.Queue()
    door = Door("127.0.0.1", 0, TOKEN, welcome={"pull": guests.put})
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(pull, puller, door.address, 0, 10)
        guest = guests.get(timeout=20)  # connected, and it will never be served
        while not wait([job], timeout=0.05).done:  # the puller may be on its way to ask
            puller.forget(door.address)
        with pytest.raises(NanoRayError, match="hung up during a pull"):
            job.result(timeout=20)
    guest.sock.close()
    door.close()


@pytest.fixture
def meddler():
    """Stand between two machines and flip the last bit of the byte at ``at`` of the answers."""
    listeners = []

    def start(address, at):
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def carry(source, sink, position):
            while data := source.recv(1 << 16):
                changed = bytearray(data)
                if position is not None and position < at + 1 <= position + len(data):
                    changed[at - position] ^= 1
                sink.sendall(changed)
                position = None if position is None else position + len(data)
            sink.shutdown(socket.SHUT_WR)

        def stand():
            near, _ = listener.accept()
            with near, socket.create_connection(address) as far:
                there = threading.Thread(target=carry, args=(near, far, None))
                there.start()
                carry(far, near, 0)
                there.join()

        threading.Thread(target=stand, daemon=True).start()
        return Address(*listener.getsockname())

    yield start
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("back", [1, 20, 1000, 100_000 + 16])
def test_a_byte_changed_on_the_way_is_found(serve, puller, meddler, back):
    handshake = 8 + 2 + 32 + 32
    answer = 1 + 100_000 + 16
    between = meddler(serve(), handshake + answer - back)
    with pytest.raises(AuthenticationError, match="changed on its way"):
        pull(puller, between, 0, 100_000)


def test_a_block_comes_over_tls_too(serve, make_certificate, content):
    certificate, key, authority = make_certificate("ours")
    files = TlsFiles(certificate=certificate, key=key, authority=authority)
    puller = Puller(TOKEN, tls=files)
    address = serve(files)
    for offset in (0, 4097):
        assert pull(puller, address, offset, 3 << 20) == content[offset:][: 3 << 20].tobytes()
    puller.close()
