import random

import pytest

from nanorlhf.nanoray.resources import UNIT, Pool, demand
from nanorlhf.nanoray.scheduler import Request, Scheduler

ONE = demand(num_cpus=1)


def started(scheduler):
    return [grant.id for grant in scheduler.schedule()]


@pytest.fixture
def two():
    return Scheduler(Pool({"CPU": 2 * UNIT}, ["0", "1"]))


def test_equal_needs_start_first_come_first_served(two):
    for call in (1, 2, 3, 4):
        two.add(Request(call, ONE))
    assert started(two) == [1, 2]
    two.release(2)
    assert started(two) == [3]


def test_a_large_request_does_not_hold_back_a_small_one(two):
    two.add(Request(1, ONE))
    assert started(two) == [1]
    two.add(Request(2, demand(num_cpus=2)))
    two.add(Request(3, ONE))
    assert started(two) == [3]


def test_gpu_ids_are_disjoint(two):
    two.add(Request(1, demand(num_gpus=1)))
    two.add(Request(2, demand(num_gpus=1)))
    assert sorted(grant.gpu_ids for grant in two.schedule()) == [("0",), ("1",)]


def test_a_paused_call_lends_its_cpu(two):
    for call in (1, 2, 3):
        two.add(Request(call, ONE))
    started(two)
    two.pause(1)
    assert started(two) == [3]
    two.resume(1)
    two.release(3)
    assert two.available()["CPU"] == 0
    two.release(1)
    two.release(2)
    assert two.available()["CPU"] == 2 * UNIT


def test_a_call_released_while_paused_counts_once(two):
    two.add(Request(1, ONE))
    started(two)
    two.pause(1)
    two.release(1)
    assert two.available()["CPU"] == 2 * UNIT


def test_a_withdrawn_call_never_starts(two):
    two.add(Request(1, ONE))
    two.withdraw(1)
    assert started(two) == []


def test_a_group_reserves_all_or_nothing(two):
    two.add(Request(1, ONE))
    started(two)
    two.add_group(9, [ONE, ONE], "PACK")
    assert two.place_groups() == []
    assert two.available()["CPU"] == UNIT
    two.release(1)
    assert two.place_groups() == [9]
    assert two.available()["CPU"] == 0


def test_calls_of_a_group_run_in_its_bundles_only(two):
    two.add_group(9, [demand(num_cpus=1, num_gpus=1), ONE], "PACK")
    two.place_groups()
    two.add(Request(1, demand(num_gpus=1), 9, 1))
    two.add(Request(2, demand(num_gpus=1), 9, 0))
    two.add(Request(3, ONE, 9, -1))
    two.add(Request(4, ONE, 9, -1))
    grants = {grant.id: grant.gpu_ids for grant in two.schedule()}
    assert grants == {2: ("0",), 3: (), 4: ()}


def test_a_removed_group_returns_its_resources_and_its_calls(two):
    two.add_group(9, [ONE], "PACK")
    two.place_groups()
    two.add(Request(1, ONE, 9, 0))
    two.add(Request(2, ONE, 9, 0))
    started(two)
    assert sorted(two.remove_group(9)) == [1, 2]
    assert two.available()["CPU"] == 2 * UNIT
    assert not two.has_group(9)
    two.release(1)
    assert two.available()["CPU"] == 2 * UNIT


def test_fractions_of_two_gpus_do_not_make_a_bundle(two):
    for call in (1, 2):
        two.add(Request(call, demand(num_gpus=0.6)))
    started(two)
    two.add_group(9, [demand(num_gpus=0.8)], "PACK")
    assert two.place_groups() == []
    assert two.available()["GPU"] == 8000


@pytest.mark.parametrize("seed", range(5))
def test_random_traffic_never_overdraws_and_everyone_starts(seed):
    draw = random.Random(seed)
    scheduler = Scheduler(Pool({"CPU": 3 * UNIT}))
    needs = {call: draw.choice([1, 2, 3]) for call in range(50)}
    for call, cpus in needs.items():
        scheduler.add(Request(call, demand(num_cpus=cpus)))
    running, seen = set(), set()
    while len(seen) < len(needs):
        new = started(scheduler)
        running |= set(new)
        seen |= set(new)
        assert sum(needs[call] for call in running) <= 3
        call = draw.choice(sorted(running))
        running.discard(call)
        scheduler.release(call)
