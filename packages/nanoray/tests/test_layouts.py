"""Arrays that are read a second time are made without their pickle, and are the same."""

import numpy as np
import pytest

from nanorlhf.nanoray.layouts import Layouts

ARRAYS = [
    np.arange(30_000.0),
    np.arange(30_000, dtype=np.int32).reshape(100, 300),
    np.asfortranarray(np.arange(30_000.0).reshape(100, 300)),
    np.arange(60_000.0)[::2],
    np.arange(30_000.0).astype(">f8"),
    np.arange(30_000).view("M8[s]"),
    np.zeros(10_000, [("a", "f8"), ("b", "i4")]),
    np.arange(30_000.0).reshape(10, 3000).view(np.recarray),
]


@pytest.mark.parametrize("array", ARRAYS, ids=range(len(ARRAYS)))
def test_an_array_is_the_same_each_time_it_is_read(ray, array):
    ref = ray.put(array)
    reads = [ray.get(ref) for _ in range(3)]
    for read in reads:
        assert type(read) is type(array)
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.strides == reads[0].strides
        assert read.tobytes() == array.tobytes()
        assert not read.flags.writeable


def test_what_is_made_of_an_array_is_made_each_time(ray):
    class Doubled:
        def __init__(self, array):
            self.array = array

        def __reduce__(self):
            return np.multiply, (self.array, 2.0)

    ref = ray.put(Doubled(np.arange(30_000.0)))
    reads = [ray.get(ref) for _ in range(3)]
    assert all(read[-1] == 2 * 29_999 for read in reads)
    assert not np.shares_memory(reads[0], reads[1])


def test_a_form_that_one_reader_changes_is_not_seen_by_the_next(ray):
    ref = ray.put(np.zeros((100, 300)))
    first = ray.get(ref)
    first.shape = (300, 100)
    second = ray.get(ref)
    assert second.shape == (100, 300)
    assert np.shares_memory(first, second)


def test_an_array_that_was_read_twice_is_freed_with_its_last_view(ray, until):
    def is_there():
        return name in {row["object_id"] for row in ray.list_objects()}

    ref = ray.put(np.zeros(100_000))
    name, views = f"{ref.id:x}", [ray.get(ref)[5:] for _ in range(2)]
    del ref
    assert is_there()
    del views
    assert until(lambda: not is_there())


def test_only_so_many_layouts_are_remembered():
    layouts, block = Layouts(), np.zeros(64, np.uint8)
    value = np.ndarray((4,), np.float64, block.data.toreadonly(), 16)
    for object_id in range(1000):
        layouts.note(object_id, value, block)
    known = [number for number in range(1000) if layouts.get(number) is not None]
    assert known == list(range(1000 - 256, 1000))
