import os

import pytest

import nanorlhf.nanoray as nanoray
from nanorlhf.nanoray import Group, Scatter

WAIT_S = 60


class Rank:
    """Knows who it is from its environment alone."""

    def __init__(self, base=0, own=None):
        self.rank = int(os.environ["RANK"])
        self.base, self.own = base, own

    def who(self):
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR")
        return tuple(os.environ[name] for name in names)

    def port(self):
        return int(os.environ["MASTER_PORT"])

    def add(self, number, extra=0):
        return self.base + self.rank * 100 + number + extra

    def mine(self):
        return self.own

    def fail_on(self, rank):
        if self.rank == rank:
            raise KeyError("lost")

    def die_on(self, rank):
        if self.rank == rank:
            os._exit(3)
        while True:
            os.read(os.pipe()[0], 1)  # as in a collective operation that misses one rank

    def pid(self):
        return os.getpid()


class Broken(Rank):
    def __init__(self):
        super().__init__()
        if self.rank == 1:
            raise OSError("no disk")


@pytest.fixture
def group(ray):
    with Group(Rank, 2, 1000, own=Scatter("ab"), timeout=WAIT_S) as two:
        yield two


def test_each_rank_knows_itself_and_where_they_meet(group):
    assert group.call("who") == [
        ("0", "2", "0", "2", "0", "127.0.0.1"),
        ("1", "2", "1", "2", "0", "127.0.0.1"),
    ]
    first, second = group.call("port")
    assert first == second > 0
    assert len(group) == 2


def test_arguments_are_the_same_for_all_or_scattered(group):
    assert group.call("mine") == ["a", "b"]
    assert group.call("add", 1) == [1001, 1101]
    assert group.call("add", Scatter([1, 2]), extra=Scatter([10, 20])) == [1011, 1122]
    assert group.scatter("add", [5, 6]) == [1005, 1106]
    refs = group.scatter_refs("add", [7, 8])
    assert group.gather(refs, timeout=WAIT_S) == [1007, 1108]
    assert nanoray.get(group.rank(1).add.remote(1), timeout=WAIT_S) == 1101


def test_a_rank_that_raises_is_named_and_the_group_goes_on(group):
    with pytest.raises(KeyError, match="rank 1 of 2 of group Rank"):
        group.call("fail_on", 1)
    assert group.call("mine") == ["a", "b"]


def test_a_rank_that_dies_takes_the_others_with_it(ray, until, is_running):
    group = Group(Rank, 2, timeout=WAIT_S)
    pids = group.call("pid")
    with pytest.raises(ray.ActorDiedError, match="rank 1 of 2 of group Rank is gone"):
        group.call("die_on", 1)
    assert until(lambda: not any(is_running(pid) for pid in pids))
    with pytest.raises(ray.ActorDiedError, match="was shut down"):
        group.call("pid")
    assert until(lambda: ray.available_resources()["CPU"] == 2)


def test_a_constructor_that_raises_names_its_rank_and_leaves_nothing(ray, until):
    with pytest.raises(OSError, match=r"rank 1 of 2 of group Broken(.|\n)*no disk"):
        Group(Broken, 2, timeout=WAIT_S)
    assert until(lambda: ray.available_resources()["CPU"] == 2)


def test_a_group_may_run_in_a_placement_group_that_stays(ray):
    place = ray.placement_group([{"CPU": 1}, {"CPU": 1}])
    with Group(ray.remote(Rank), 2, placement_group=place, timeout=WAIT_S) as group:
        assert group.call("add", 0) == [0, 100]
    assert ray.available_resources()["CPU"] == 0
    ray.remove_placement_group(place)


def test_what_cannot_be_is_refused_at_once(ray, group):
    with pytest.raises(ValueError, match="n=0 counts ranks"):
        Group(Rank, 0)
    with pytest.raises(ray.InfeasibleError, match="do not fit"):
        Group(Rank, 3)
    with pytest.raises(ray.GetTimeoutError, match="were not free"):
        Group(Rank, 2, timeout=0.1)
    with pytest.raises(ValueError, match="3 items for 2 ranks"):
        group.scatter("add", [1, 2, 3])
    with pytest.raises(ValueError, match="1 refs for 2 ranks"):
        group.gather(group.call_refs("mine")[:1])
    with pytest.raises(IndexError, match="rank=2"):
        group.rank(2)
    with pytest.raises(AttributeError, match="no public method 'missing'"):
        group.call("missing")


def test_a_group_of_the_wrong_size_is_refused(ray):
    place = ray.placement_group([{"CPU": 1}])
    with pytest.raises(ValueError, match="1 bundles for n=2 ranks"):
        Group(Rank, 2, placement_group=place)
    ray.remove_placement_group(place)


class Reducer:
    def sum(self, value):
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        tensor = torch.tensor([float(value)])
        dist.all_reduce(tensor)
        dist.destroy_process_group()
        return tensor.item()


@pytest.mark.slow
def test_torch_meets_without_arguments(ray):
    pytest.importorskip("torch")
    with Group(Reducer, 2, timeout=WAIT_S) as group:
        refs = group.scatter_refs("sum", [1, 2])
        assert group.gather(refs, timeout=100) == [3.0, 3.0]
