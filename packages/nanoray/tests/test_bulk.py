"""Copies past the cache copy what ordinary copies do, and nothing beside it."""

import platform
import threading
from pathlib import Path

import numpy as np
import pytest

from nanorlhf.nanoray import bulk

ROOM = 300


def copied(size, to, since):
    """Copy a part of a large value between places so far behind a line; return (found, wanted)."""
    draw = np.random.default_rng(size)
    source = draw.integers(0, 256, since + size + ROOM, dtype=np.uint8)
    target = draw.integers(0, 256, to + size + ROOM, dtype=np.uint8)
    to, since = to - target.ctypes.data % 64 + 64, since - source.ctypes.data % 64 + 64
    wanted = target.copy()
    wanted[to : to + size] = source[since : since + size]
    bulk.copier(bulk.BULK_BYTES)(target[to : to + size], source[since : since + size])
    return target, wanted


@pytest.mark.parametrize("more", [0, 1, 63, 64, 130])
@pytest.mark.parametrize(("to", "since"), [(0, 0), (0, 1), (64, 8), (1, 0), (63, 37)])
def test_any_size_at_any_place_is_copied_and_its_neighbours_are_not(more, to, since):
    found, wanted = copied(100_000 + more, to, since)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("size", [0, 1, 100, 5000])
def test_small_buffers_are_copied_too(size):
    found, wanted = copied(size, 3, 5)
    assert np.array_equal(found, wanted)


def test_the_source_may_be_read_only():
    source = np.frombuffer(bytes(range(256)) * 1000, np.uint8)
    target = np.zeros_like(source)
    bulk.copier(bulk.BULK_BYTES)(target, source)
    assert np.array_equal(target, source)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the routine is for x86-64")
def test_large_buffers_go_past_the_cache_by_code_that_cannot_be_written():
    routine = bulk._line_copier()
    address = np.frombuffer(routine._page, np.uint8).ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            assert line.split()[1].startswith("r-x")
            return
    raise AssertionError("the code lies in a mapping")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the routine is for x86-64")
def test_only_what_is_large_goes_past_the_cache():
    assert bulk.copier(bulk.BULK_BYTES) != bulk.copier(bulk.BULK_BYTES - 1) == bulk.copier(0)


def test_a_machine_without_the_routine_copies_as_numpy_does(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert bulk._line_copier.__wrapped__() is None


def test_threads_copy_at_the_same_time():
    sources = [np.full(bulk.BULK_BYTES + 5, i, np.uint8) for i in range(4)]
    targets = [np.zeros_like(source) for source in sources]
    threads = [
        threading.Thread(target=bulk.copier(bulk.BULK_BYTES), args=pair)
        for pair in zip(targets, sources, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(*pair) for pair in zip(targets, sources, strict=True))
