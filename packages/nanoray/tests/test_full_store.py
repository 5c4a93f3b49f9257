"""A store that is too small: what moves to disk, what comes back, and what is said at the end."""

import gc
import os

import numpy as np
import pytest

import nanorlhf.nanoray as nanoray
from nanorlhf.nanoray import allowance

WAIT_S = 60
MB = 1 << 20
STORE = 32 * MB


@pytest.fixture
def ray(start, tmp_path):
    return start(num_cpus=2, object_store_memory=STORE, object_spilling_directory=str(tmp_path))


def node():
    return nanoray.session.current()._link.node


def usage():
    gc.collect()
    return node().arenas.usage(0)


def numbers(i, size=4 * MB):
    return np.full(size // 8, i, np.int64)


def open_files(folder):
    names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    targets = [os.readlink(name) for name in names if os.path.lexists(name)]
    return [target for target in targets if "memfd:nanoray" in target or str(folder) in target]


def test_three_stores_of_values_fit_into_one_and_all_come_back(ray, tmp_path, until):
    refs = [ray.put(numbers(i)) for i in range(24)]
    found = usage()
    assert found.in_memory <= STORE
    assert found.on_disk >= 2 * STORE
    assert os.listdir(tmp_path) == [], "a spill file has no name"
    total = ray.remote(lambda array: int(array.sum()))
    sums = ray.get([total.remote(ref) for ref in refs], timeout=WAIT_S)
    assert sums == [i * MB // 2 for i in range(24)]
    for i, ref in enumerate(refs):
        array = ray.get(ref)
        assert (array == i).all()
        assert not array.flags.writeable
    del refs, ref, array
    assert until(lambda: usage().in_memory == usage().on_disk == 0)
    ray.shutdown()
    assert open_files(tmp_path) == []


def test_results_of_tasks_spill_too_and_the_longest_unused_goes_first(ray):
    make = ray.remote(numbers)
    refs = [make.remote(i) for i in range(16)]
    assert [int(ray.get(ref, timeout=WAIT_S)[0]) for ref in refs] == list(range(16))
    places = {listed.id: listed.location for listed in node().objects.listing()}
    assert places[refs[0].id] == "spilled"
    assert places[refs[15].id] == "memory"


def test_a_tensor_of_the_disk_may_be_written_to_by_its_reader_alone(ray):
    torch = pytest.importorskip("torch", reason="tensors need torch")
    refs = [ray.put(torch.zeros(MB)) for _ in range(12)]
    mine = ray.get(refs[0])
    mine += 1
    assert mine.sum() == MB
    del mine
    assert ray.get(refs[0]).sum() == 0


def test_what_is_looked_at_stays_where_it_is(ray):
    views = [ray.get(ray.put(numbers(i))) for i in range(4)]
    refs = [ray.put(numbers(i)) for i in range(12)]
    assert [int(view[-1]) for view in views] == [0, 1, 2, 3]
    assert [int(ray.get(ref)[0]) for ref in refs] == list(range(12))


def test_a_value_larger_than_the_store_is_refused_at_once(ray):
    with pytest.raises(ray.StoreFullError, match=f"can never fit.*{STORE}"):
        ray.put(numbers(0, STORE + MB))
    task = ray.remote(lambda: np.zeros(STORE))
    with pytest.raises(ray.StoreFullError, match="can never fit"):
        ray.get(task.remote(), timeout=WAIT_S)


def test_a_full_store_says_who_holds_what_and_takes_more_when_they_let_go(ray, monkeypatch):
    monkeypatch.setattr(allowance, "_PATIENCE_S", 0.2)
    views = [ray.get(ray.put(numbers(i))) for i in range(7)]
    with pytest.raises(ray.StoreFullError) as caught:
        ray.put(numbers(7))
    text = str(caught.value)
    assert "driver made 7 of 28.0 MB, kept by views in driver (7)" in text
    assert isinstance(caught.value, MemoryError)
    del views
    gc.collect()
    assert (ray.get(ray.put(numbers(1))) == 1).all()


@pytest.mark.parametrize("harm", ["damaged", "cut off"])
def test_a_broken_spill_file_loses_its_object_and_says_so(ray, harm):
    refs = [ray.put(numbers(i)) for i in range(12)]
    spilled = next(o for o in node().objects.listing() if o.location == "spilled")
    ref = next(ref for ref in refs if ref.id == spilled.id)
    fd = nanoray.session.current()._link._hub._arenas[node().objects.get(ref.id).value.block[0]]
    if harm == "damaged":
        os.pwrite(fd, b"xxxx", 2 * MB)
    else:
        assert len(ray.get(ref)) == MB // 2
        assert ray.get(ray.remote(len).remote(ref), timeout=WAIT_S) == MB // 2
        os.ftruncate(fd, 4096)
    with pytest.raises(ray.ObjectLostError, match="spill file"):
        ray.get(ref)
    with pytest.raises(ray.ObjectLostError, match="spill file"):
        ray.get(ray.remote(len).remote(ref), timeout=WAIT_S)


def test_a_process_that_ends_frees_what_it_was_granted(ray, until):
    @ray.remote
    class Maker:
        def make(self):
            self.kept = ray.put(numbers(1, 20 * MB))

    maker = Maker.remote()
    ray.get(maker.make.remote(), timeout=WAIT_S)
    assert usage().in_memory >= 20 * MB
    ray.kill(maker)
    assert until(lambda: usage().in_memory == 0)
    views = [ray.get(ray.put(numbers(i))) for i in range(6)]
    assert len(views) == 6


def test_what_idle_processes_keep_warm_is_given_back_when_others_need_it(ray, until):
    make = ray.remote(lambda: np.zeros(24 * MB, np.uint8))
    ray.get(make.remote(), timeout=WAIT_S)
    assert until(lambda: usage().in_memory == 0)
    assert (ray.get(ray.put(numbers(3, 28 * MB))) == 3).all()


def test_cycles_through_an_actor_end_with_the_actor(ray, until):
    @ray.remote
    class Node:
        def link(self, refs):
            self.refs = refs

    node_ = Node.remote()
    ref = ray.put([numbers(1), node_])
    ray.get(node_.link.remote([ref]), timeout=WAIT_S)
    del ref
    assert usage().in_memory > 0
    ray.kill(node_)
    del node_
    assert until(lambda: usage().in_memory == 0)


def test_a_directory_that_is_none_and_a_size_that_is_none_are_refused(no_engine, tmp_path):
    with pytest.raises(ValueError, match=r"object_spilling_directory=.*no directory"):
        nanoray.init(object_spilling_directory=str(tmp_path / "none"))
    for size in (0, 1.5, "1 GB"):
        with pytest.raises(ValueError, match="object_store_memory="):
            nanoray.init(object_store_memory=size)
