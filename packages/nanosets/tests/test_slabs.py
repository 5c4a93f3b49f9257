"""Bytes to a file in slabs: all of them, in order, where the slabs should end, and no room kept."""

import errno
import os
import random

import pytest

from nanorlhf.nanosets import Writer, load_from_disk, slabs
from nanorlhf.nanosets.slabs import AHEAD_BYTES, SLAB_BYTES, Slabs


@pytest.fixture
def file(tmp_path):
    descriptor = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def contents(file):
    return os.pread(file, os.fstat(file).st_size, 0)


def put_all(file, pieces, *, flush_after=()):
    found = Slabs(file, os.fstat(file).st_size)
    for number, piece in enumerate(pieces):
        found.put(memoryview(piece))
        if number in flush_after:
            found.flush()
    found.finish()
    return found


def test_pieces_of_any_size_lie_end_to_end(file):
    rng = random.Random(0)
    sizes = [0, 1, 64, SLAB_BYTES - 65, SLAB_BYTES, SLAB_BYTES + 1, 3 * SLAB_BYTES]
    pieces = [rng.randbytes(rng.choice(sizes)) for _ in range(30)]
    pieces += [rng.randbytes(3) for _ in range(3 * slabs.MAX_PIECES)]
    found = put_all(file, pieces, flush_after=(3, 4, 17))
    assert contents(file) == b"".join(pieces)
    assert found.at == os.fstat(file).st_size


def test_writes_begin_and_end_at_multiples_of_a_slab(file, monkeypatch):
    ends = [0]
    write = os.pwritev

    def pwritev(descriptor, pieces, at):
        ends.append(ends[-1] + sum(map(len, pieces)))
        return write(descriptor, pieces, at)

    monkeypatch.setattr(os, "pwritev", pwritev)
    put_all(file, [bytes(64), bytes(3 * SLAB_BYTES), bytes(100), bytes(SLAB_BYTES)])
    assert [end % SLAB_BYTES for end in ends] == [0, 0, 0, 0, 0, 164]


def test_a_write_cut_short_is_taken_up_where_it_ended(file, monkeypatch):
    write = os.pwritev

    def pwritev(descriptor, pieces, at):
        """Write half of the first piece, or the first and a byte of the next."""
        some = pieces[0][: len(pieces[0]) // 2 + 1]
        return write(descriptor, [pieces[0], pieces[1][:1]] if len(pieces) > 1 else [some], at)

    monkeypatch.setattr(os, "pwritev", pwritev)
    pieces = [random.Random(i).randbytes(i * 7 % 23) for i in range(200)]
    put_all(file, pieces)
    assert contents(file) == b"".join(pieces)


def test_room_set_aside_is_given_back(file):
    size = AHEAD_BYTES + SLAB_BYTES + 5
    put_all(file, [bytes(size)])
    found = os.fstat(file)
    assert found.st_size == size
    assert found.st_blocks * 512 <= size + (64 << 10)


def test_a_short_file_sets_no_room_aside(file, monkeypatch):
    asked = []
    monkeypatch.setattr(slabs, "set_aside", lambda file, start, size: asked.append(start))
    put_all(file, [bytes(SLAB_BYTES - 1)])
    assert asked == []
    put_all(file, [bytes(AHEAD_BYTES + SLAB_BYTES)])
    assert asked == [SLAB_BYTES - 1, SLAB_BYTES - 1 + AHEAD_BYTES]


def test_bytes_are_the_same_where_no_room_can_be_set_aside(file, monkeypatch):
    monkeypatch.setattr(slabs, "_fallocate", lambda: None)
    put_all(file, [b"ab", b"c"])
    assert contents(file) == b"abc"


def test_a_full_disk_is_an_error_and_leaves_the_old_file(tmp_path, monkeypatch):
    def pwritev(descriptor, pieces, at):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.nano"
    with Writer(path) as writer:
        writer.write({"x": 1})
    writer = Writer(path)
    writer.write({"x": 2})
    monkeypatch.setattr(os, "pwritev", pwritev)
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    assert load_from_disk(path)["x"][:] == [1]
    assert list(tmp_path.iterdir()) == [path]
