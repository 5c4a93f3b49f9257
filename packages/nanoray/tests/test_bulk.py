"""Copies past the cache copy what ordinary copies do, and nothing beside it."""

import ctypes
import mmap
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


def test_looking_ahead_of_the_last_page_is_harmless():
    ends = [before_nothing(100_000) for _ in range(2)]
    ends[0][:] = np.arange(100_000, dtype=np.uint32).view(np.uint8)[:100_000]
    bulk.copier(bulk.BULK_BYTES)(ends[1], ends[0])
    assert np.array_equal(*ends)


def before_nothing(size):
    """Return an array that ends where memory does that nobody may touch."""
    room = size + 4 * mmap.PAGESIZE
    pages = np.frombuffer(mmap.mmap(-1, room - room % mmap.PAGESIZE), np.uint8)
    last = ctypes.c_void_p(pages.ctypes.data + pages.size - 3 * mmap.PAGESIZE)
    assert ctypes.CDLL(None).mprotect(last, ctypes.c_size_t(3 * mmap.PAGESIZE), 0) == 0
    return pages[: -3 * mmap.PAGESIZE][-size:]


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
