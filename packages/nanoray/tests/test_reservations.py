import pytest

from nanorlhf.nanoray.reservations import Groups
from nanorlhf.nanoray.resources import UNIT, Pool, demand

ONE = demand(num_cpus=1)


@pytest.fixture
def machines():
    return {number: Pool({"CPU": 2 * UNIT}, [f"{number}a", f"{number}b"]) for number in (0, 1)}


def free(machines):
    return {number: pool.available()["CPU"] // UNIT for number, pool in machines.items()}


def test_what_is_prepared_is_taken_and_of_no_use_before_it_is_committed(machines):
    groups = Groups(machines)
    groups.add(1, [ONE, ONE], "STRICT_SPREAD")
    assert groups.prepare(1)
    assert free(machines) == {0: 1, 1: 1}
    assert groups.bundles(1, -1) == []
    assert groups.commit(1)
    assert [bundle.machine for bundle in groups.bundles(1, -1)] == [0, 1]


def test_a_machine_that_leaves_between_the_phases_undoes_them(machines):
    groups = Groups(machines)
    groups.add(1, [ONE, ONE], "STRICT_SPREAD")
    groups.prepare(1)
    del machines[1]
    assert groups.lose(1) == []
    assert not groups.commit(1)
    assert free(machines) == {0: 2}
    assert groups.place() == []
    machines[2] = Pool({"CPU": UNIT})
    assert groups.place() == [1]


def test_a_group_that_does_not_fit_takes_nothing(machines):
    groups = Groups(machines)
    groups.add(1, [ONE] * 5, "PACK")
    assert not groups.prepare(1)
    assert free(machines) == {0: 2, 1: 2}


def test_a_group_removed_between_the_phases_gives_all_back(machines):
    groups = Groups(machines)
    groups.add(1, [ONE, ONE], "SPREAD")
    groups.prepare(1)
    groups.remove(1)
    assert free(machines) == {0: 2, 1: 2}
    assert 1 not in groups
    groups.remove(1)


def test_bundles_keep_fractions_of_the_device_they_took(machines):
    groups = Groups(machines)
    groups.add(1, [demand(num_gpus=0.5), demand(num_gpus=0.5), demand(num_gpus=1)], "STRICT_PACK")
    groups.place()
    pools = [bundle.pool for bundle in groups.bundles(1, -1)]
    assert [pool.gpus for pool in pools] == [{"0b": 5000}, {"0b": 5000}, {"0a": UNIT}]
    assert machines[0].available()["GPU"] == 0


def test_groups_are_placed_the_oldest_first(machines):
    groups = Groups(machines)
    for number in (3, 1, 2):
        groups.add(number, [demand(num_cpus=2)], "PACK")
    assert groups.place() == [3, 1]
