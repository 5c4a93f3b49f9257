"""Copies past the cache copy what ordinary copies do, and nothing beside it."""

import platform
import threading

import numpy as np
import pytest

from nanorlhf.nanoray import bulk

ROOM = 300


def copied(size, to, since):
    """Copy ``size`` bytes between places that lie so far behind a line; return (found, wanted)."""
    draw = np.random.default_rng(size)
    source = draw.integers(0, 256, since + size + ROOM, dtype=np.uint8)
    target = draw.integers(0, 256, to + size + ROOM, dtype=np.uint8)
    to, since = to - target.ctypes.data % 64 + 64, since - source.ctypes.data % 64 + 64
    wanted = target.copy()
    wanted[to : to + size] = source[since : since + size]
    bulk.copy(target[to : to + size], source[since : since + size])
    return target, wanted


@pytest.mark.parametrize("more", [0, 1, 63, 64, 130])
@pytest.mark.parametrize(("to", "since"), [(0, 0), (0, 1), (64, 8), (1, 0), (63, 37)])
def test_any_size_at_any_place_is_copied_and_its_neighbours_are_not(more, to, since):
    found, wanted = copied(bulk.BULK_BYTES + more, to, since)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("size", [0, 1, 100, 70_000])
def test_small_buffers_are_copied_too(size):
    found, wanted = copied(size, 3, 5)
    assert np.array_equal(found, wanted)


def test_the_source_may_be_read_only():
    source = np.frombuffer(bytes(range(256)) * (bulk.BULK_BYTES // 256), np.uint8)
    target = np.zeros_like(source)
    bulk.copy(target, source)
    assert np.array_equal(target, source)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the routine is for x86-64")
def test_large_buffers_go_past_the_cache_and_the_code_cannot_be_written():
    assert bulk._line_copier() is not None
    with open("/proc/self/maps") as maps:
        (line,) = [line for line in maps if "memfd:nanoray-code" in line]
    assert line.split()[1] == "r-xp"


def test_a_machine_without_the_routine_copies_as_numpy_does(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert bulk._line_copier.__wrapped__() is None


def test_threads_copy_at_the_same_time():
    sources = [np.full(bulk.BULK_BYTES + 5, i, np.uint8) for i in range(4)]
    targets = [np.zeros_like(source) for source in sources]
    threads = [
        threading.Thread(target=bulk.copy, args=pair) for pair in zip(targets, sources, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(*pair) for pair in zip(targets, sources, strict=True))
