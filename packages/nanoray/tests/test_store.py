import gc
import time

import numpy as np
import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 30
BIG = 1_000_000


@pytest.fixture
def used():
    """Return the bytes of the driver's shared memory that are in use now."""

    def count():
        gc.collect()
        return nanoray.session.current().writer.used_bytes

    return count


def test_arrays_come_back_equal_and_read_only(ray):
    for array in (np.arange(BIG), np.arange(3), np.zeros((0, 4)), np.float32(3), np.eye(300).T):
        found = ray.get(ray.put(array))
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype
        if isinstance(found, np.ndarray) and found.size:
            assert not found.flags.writeable


def test_strided_and_object_arrays_travel_too(ray):
    strided = np.arange(BIG)[::3]
    np.testing.assert_array_equal(ray.get(ray.put(strided)), strided)
    mixed = np.array([1, "a", None], dtype=object)
    assert ray.get(ray.put(mixed)).tolist() == [1, "a", None]


def test_a_large_value_that_is_no_array_travels_too(ray):
    value = {"text": "x" * BIG, "list": list(range(1000)), "array": np.ones(BIG)}
    found = ray.get(ray.put(value))
    assert found["text"] == value["text"]
    assert found["list"] == value["list"]


def test_a_large_value_of_many_parts_comes_back_part_by_part(ray):
    draw = np.random.default_rng(0)
    sizes = [0, 1, 100, 65_535, 65_536, 65_537, BIG, 17 * BIG + 3]
    value = [draw.integers(0, 256, size, np.uint8) for size in sizes]
    value += [draw.bytes(2 * BIG + 1), draw.bytes(70_001)]
    for part, found in zip(value, ray.get(ray.put(value)), strict=True):
        assert type(part) is type(found)
        assert np.array_equal(part, found)


def test_reading_does_not_copy(ray):
    ref = ray.put(np.ones(BIG))
    first, second = ray.get(ref), ray.get(ref)
    assert np.shares_memory(first, second)


def test_large_arguments_and_results_go_through_shared_memory(ray):
    double = ray.remote(lambda a: (2 * a, a.flags.writeable))
    array = np.arange(BIG, dtype=np.float64)
    for argument in (array, ray.put(array)):
        result, is_writeable = ray.get(double.remote(argument), timeout=WAIT_S)
        np.testing.assert_array_equal(result, 2 * array)
        assert not is_writeable


def test_memory_is_freed_with_the_last_ref(ray, used, until):
    assert until(lambda: used() == 0), "what earlier tests stored is gone"
    refs = [ray.put(np.ones(BIG)) for _ in range(3)]
    assert used() >= 3 * 8 * BIG
    del refs
    assert until(lambda: used() == 0)


def test_memory_is_kept_by_a_view_and_freed_with_it(ray, used, until):
    assert until(lambda: used() == 0), "what earlier tests stored is gone"
    view = ray.get(ray.put(np.ones(BIG)))[10:20]
    assert used() > 0
    assert view.sum() == 10
    del view
    assert until(lambda: used() == 0)


def test_memory_is_kept_by_a_value_that_holds_the_ref(ray, used, until):
    assert until(lambda: used() == 0), "what earlier tests stored is gone"
    outer = ray.put({"inner": ray.put(np.ones(BIG))})
    assert used() > 0
    inner = ray.get(outer)["inner"]
    del outer
    assert ray.get(inner).sum() == BIG
    del inner
    assert until(lambda: used() == 0)


def test_an_actor_that_keeps_an_array_keeps_its_memory(ray, used, until):
    @ray.remote
    class Keeper:
        def keep(self, array):
            self.array = array

        def total(self):
            return self.array.sum()

        def drop(self):
            del self.array

    assert until(lambda: used() == 0), "what earlier tests stored is gone"
    keeper = Keeper.remote()
    ray.get(keeper.keep.remote(np.ones(BIG)), timeout=WAIT_S)
    assert used() > 0
    others = [ray.put(np.zeros(BIG)) for _ in range(5)]
    assert ray.get(keeper.total.remote(), timeout=WAIT_S) == BIG
    del others
    ray.get(keeper.drop.remote(), timeout=WAIT_S)
    assert until(lambda: used() == 0)


def test_a_killed_actor_gives_back_what_it_held(ray, used, until):
    @ray.remote
    class Keeper:
        def keep(self, array):
            self.array = array

    assert until(lambda: used() == 0), "what earlier tests stored is gone"
    keeper = Keeper.remote()
    ray.get(keeper.keep.remote(np.ones(BIG)), timeout=WAIT_S)
    ray.kill(keeper)
    assert until(lambda: used() == 0)


def test_a_value_outlives_the_actor_that_made_it(ray, until):
    @ray.remote
    class Maker:
        def make(self):
            return np.arange(BIG)

    maker = Maker.remote()
    ref = maker.make.remote()
    ray.wait([ref], timeout=WAIT_S)
    ray.kill(maker)
    assert ray.get(ref, timeout=WAIT_S).sum() == BIG * (BIG - 1) // 2
    arenas = nanoray.session.current()._link.node.arenas._arenas
    assert until(lambda: any(arena.is_orphan for arena in list(arenas.values())))
    del ref
    assert until(lambda: not any(arena.is_orphan for arena in list(arenas.values())))


def test_dropped_refs_of_running_calls_leave_nothing(ray, until):
    make = ray.remote(lambda: np.ones(BIG))
    for _ in range(10):
        make.remote()
    node = nanoray.session.current()._link.node
    assert until(lambda: len(node.objects) == 0)
    assert until(lambda: all(a.live == 0 for a in list(node.arenas._arenas.values())))


def test_warm_memory_is_reused(ray):
    for _ in range(20):
        ray.put(np.ones(BIG * 2))
        time.sleep(0.01)
    arenas = nanoray.session.current()._link.node.arenas._arenas
    assert sum(arena.size for arena in arenas.values() if arena.owner == 0) <= 512 << 20


@pytest.mark.parametrize(
    "value", [lambda: (x for x in ()), lambda: __import__("threading").Lock()], ids=str
)
def test_what_cannot_travel_is_refused_by_the_sender(ray, value):
    for send in (ray.put, ray.remote(len).remote):
        with pytest.raises(ray.SerializationError, match="cannot be sent to another process"):
            send(value())


def test_a_result_that_cannot_travel_is_an_error_of_the_task(ray):
    lock = ray.remote(lambda: __import__("threading").Lock())
    with pytest.raises(ray.SerializationError, match="cannot be sent"):
        ray.get(lock.remote(), timeout=WAIT_S)


def test_refs_are_not_pickled_by_hand(ray):
    import pickle

    with pytest.raises(TypeError, match="its holder would not be counted"):
        pickle.dumps(ray.put(1))
    with pytest.raises(TypeError, match="a ref to a ref"):
        ray.put(ray.put(1))
