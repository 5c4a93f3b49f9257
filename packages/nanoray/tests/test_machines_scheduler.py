"""The scheduler over several machines, on made-up pools."""

import pytest

from nanorlhf.nanoray.resources import UNIT, Pool, demand
from nanorlhf.nanoray.scheduler import Request, Scheduler

ONE = demand(num_cpus=1)


def machine(cpus, gpus=()):
    return Pool({"CPU": cpus * UNIT}, gpus)


@pytest.fixture
def cluster():
    """Make a scheduler over machines 0, 1, ... of so many CPUs, with node ids n0, n1, ..."""

    def make(*cpus, policy="default", gpus=None):
        pools = [machine(number, (gpus or {}).get(index, ())) for index, number in enumerate(cpus)]
        scheduler = Scheduler(pools[0], node_id="n0", policy=policy)
        for index, pool in enumerate(pools[1:], start=1):
            scheduler.add_machine(index, pool, node_id=f"n{index}")
        return scheduler

    return make


def machines_of(scheduler):
    return {grant.id: grant.machine for grant in scheduler.schedule()}


def test_calls_pack_onto_one_machine_to_its_half_and_then_spread(cluster):
    scheduler = cluster(4, 4)
    for call in range(8):
        scheduler.add(Request(call, ONE))
    places = list(machines_of(scheduler).values())
    assert places[:4] == [0, 0, 1, 1]
    assert sorted(places[4:]) == [0, 0, 1, 1]


def test_calls_without_gpus_leave_machines_with_gpus_alone(cluster):
    scheduler = cluster(4, 2, gpus={0: ("0",)})
    for call in range(3):
        scheduler.add(Request(call, ONE))
    scheduler.add(Request(3, demand(num_gpus=1)))
    assert machines_of(scheduler) == {0: 1, 1: 1, 2: 0, 3: 0}


def test_spread_takes_the_machine_that_runs_least(cluster):
    scheduler = cluster(4, 4, 4)
    for call in range(6):
        scheduler.add(Request(call, ONE, is_spread=True))
    assert list(machines_of(scheduler).values()) == [0, 1, 2, 0, 1, 2]


def test_spread_counts_calls_that_need_nothing(cluster):
    scheduler = cluster(1, 1)
    for call in range(4):
        scheduler.add(Request(call, (), is_spread=True))
    assert list(machines_of(scheduler).values()) == [0, 1, 0, 1]


def test_spread_takes_machines_in_turn_when_calls_come_one_by_one(cluster):
    scheduler = cluster(1, 1, 1)
    places = []
    for call in range(6):
        scheduler.add(Request(call, ONE, is_spread=True))
        places += machines_of(scheduler).values()
        scheduler.release(call)
    assert places == [0, 1, 2, 0, 1, 2]


def test_calls_that_spread_are_not_sent_ahead(cluster):
    scheduler = cluster(1)
    for call in range(1, 9):
        scheduler.add(Request(call, ONE, is_spread=True))
    assert machines_of(scheduler) == {1: 0}
    assert scheduler.ahead(1, 64, lambda _: True) == []


def test_affinity_waits_for_its_machine(cluster):
    scheduler = cluster(1, 1)
    for call in (1, 2):
        scheduler.add(Request(call, ONE, node="n1"))
    assert machines_of(scheduler) == {1: 1}
    scheduler.release(1)
    assert machines_of(scheduler) == {2: 1}


def test_soft_affinity_goes_elsewhere_only_when_its_machine_can_never_do(cluster):
    scheduler = cluster(4, 1)
    scheduler.add(Request(1, ONE, node="n1", is_soft=True))
    scheduler.add(Request(2, ONE, node="n1", is_soft=True))
    scheduler.add(Request(3, demand(num_cpus=2), node="n1", is_soft=True))
    scheduler.add(Request(4, ONE, node="gone", is_soft=True))
    assert machines_of(scheduler) == {1: 1, 3: 0, 4: 0}


def test_round_robin_takes_the_machines_in_turn(cluster):
    scheduler = cluster(4, 4, 4, policy="round_robin")
    for call in range(5):
        scheduler.add(Request(call, ONE))
    assert list(machines_of(scheduler).values()) == [0, 1, 2, 0, 1]


def test_round_robin_passes_over_a_machine_that_is_full(cluster):
    scheduler = cluster(1, 3, policy="round_robin")
    for call in range(4):
        scheduler.add(Request(call, ONE))
    assert list(machines_of(scheduler).values()) == [0, 1, 1, 1]


def test_nothing_overtakes_under_fifo(cluster):
    scheduler = cluster(2, policy="fifo")
    scheduler.add(Request(1, ONE))
    scheduler.add(Request(2, demand(num_cpus=2)))
    scheduler.add(Request(3, ONE))
    assert list(machines_of(scheduler)) == [1]
    scheduler.add(Request(4, demand(num_cpus=0.5)))
    assert list(machines_of(scheduler)) == []
    scheduler.release(1)
    assert list(machines_of(scheduler)) == [2]
    scheduler.release(2)
    assert list(machines_of(scheduler)) == [3, 4]


def test_a_withdrawn_call_no_longer_holds_the_line_under_fifo(cluster):
    scheduler = cluster(2, policy="fifo")
    scheduler.add(Request(1, ONE))
    scheduler.add(Request(2, demand(num_cpus=2)))
    scheduler.add(Request(3, ONE))
    machines_of(scheduler)
    scheduler.withdraw(2)
    assert list(machines_of(scheduler)) == [3]


def test_a_group_that_waits_holds_back_no_other_line_under_fifo(cluster):
    scheduler = cluster(2, policy="fifo")
    scheduler.add(Request(1, ONE))
    machines_of(scheduler)
    scheduler.add_group(9, [ONE, ONE], "PACK")
    assert scheduler.place_groups() == []
    scheduler.add(Request(2, ONE, 9))
    scheduler.add(Request(3, ONE))
    assert list(machines_of(scheduler)) == [3]


def test_an_unknown_policy_is_refused(cluster):
    with pytest.raises(ValueError, match="scheduling_policy='lifo' is unknown"):
        cluster(1, policy="lifo")


def test_different_wants_start_in_the_order_they_came(cluster):
    scheduler = cluster(1)
    scheduler.add(Request(1, ONE))
    assert list(machines_of(scheduler)) == [1]
    scheduler.add(Request(2, demand(num_cpus=0.5)))
    scheduler.add(Request(3, ONE))
    scheduler.add(Request(4, demand(num_cpus=0.5)))
    scheduler.release(1)
    assert list(machines_of(scheduler)) == [2, 4]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request(1, demand(num_cpus=3)), "no node can hold it: CPU=3 is asked for and 2 exist"),
        (Request(1, demand(num_gpus=1)), "GPU=1 is asked for and 0 exist"),
        (Request(1, ONE, node="gone"), "there is no node gone"),
        (Request(1, demand(num_cpus=2), node="n1"), "on node n1, CPU=2 is asked for and 1 exist"),
        (Request(1, demand(num_cpus=2), node="n1", is_soft=True), None),
        (Request(1, demand(num_cpus=2)), None),
    ],
)
def test_what_can_never_start_says_why(cluster, request_, reason):
    found = cluster(2, 1).why_infeasible(request_)
    assert found is None if reason is None else reason in found


def test_a_bundle_that_is_too_small_says_what_it_has(cluster):
    scheduler = cluster(4)
    scheduler.add_group(9, [ONE, demand(num_cpus=2)], "PACK")
    assert scheduler.why_infeasible(Request(1, demand(num_cpus=2), 9)) is None
    assert "{'CPU': 1.0}" in scheduler.why_infeasible(Request(1, demand(num_cpus=2), 9, 0))


def test_a_lost_machine_takes_its_calls_and_strands_those_only_it_could_hold(cluster):
    scheduler = cluster(1, 4, gpus={1: ("0",)})
    scheduler.add(Request(1, ONE, node="n1"))
    scheduler.add(Request(2, ONE, node="n0"))
    assert machines_of(scheduler) == {1: 1, 2: 0}
    scheduler.add(Request(3, demand(num_cpus=4)))
    scheduler.add(Request(4, ONE))
    scheduler.pause(1)
    lost = scheduler.remove_machine(1)
    assert (lost.calls, lost.groups) == ([1], [])
    assert lost.stranded == {3: "CPU=4 is asked for and 1 exist"}
    scheduler.resume(1)
    scheduler.release(1)
    scheduler.release(2)
    assert machines_of(scheduler) == {4: 0}
    assert scheduler.available() == {"CPU": 0}


def test_a_machine_that_joins_starts_what_waits(cluster):
    scheduler = cluster(1)
    for call in (1, 2):
        scheduler.add(Request(call, ONE))
    assert machines_of(scheduler) == {1: 0}
    scheduler.add_machine(5, machine(1))
    assert machines_of(scheduler) == {2: 5}


def test_a_group_spreads_over_machines_and_keeps_concrete_gpus(cluster):
    scheduler = cluster(4, 4, gpus={0: ("3", "5"), 1: ("7",)})
    bundles = [demand(num_cpus=1, num_gpus=1)] * 2
    scheduler.add_group(9, bundles, "STRICT_SPREAD")
    assert scheduler.place_groups() == [9]
    assert sorted(scheduler.bundle_machines(9)) == [0, 1]
    for index in (0, 1):
        scheduler.add(Request(index, demand(num_gpus=1), 9, index))
    grants = {grant.machine: grant.gpu_ids for grant in scheduler.schedule()}
    assert grants == {0: ("3",), 1: ("7",)}


def test_a_call_is_shown_the_gpus_of_its_bundle_and_holds_none(cluster):
    scheduler = cluster(4, gpus={0: ("3", "5", "7")})
    scheduler.add_group(9, [demand(num_cpus=2, num_gpus=2)], "PACK")
    scheduler.place_groups()
    scheduler.add(Request(1, ONE, 9, 0, sees_gpus=True))
    scheduler.add(Request(2, ONE, 9, 0))
    scheduler.add(Request(3, demand(num_gpus=2), 9, 0))
    assert {grant.id: grant.gpu_ids for grant in scheduler.schedule()} == {
        1: ("3", "5"),
        2: (),
        3: ("3", "5"),
    }


def test_only_the_bundles_of_a_lost_machine_are_placed_again(cluster):
    scheduler = cluster(2, 2, 2)
    scheduler.add_group(9, [ONE, ONE], "STRICT_SPREAD")
    scheduler.place_groups()
    assert scheduler.bundle_machines(9) == [0, 1]
    scheduler.add(Request(1, ONE, 9, 0))
    scheduler.add(Request(2, ONE, 9, 1))
    assert machines_of(scheduler) == {1: 0, 2: 1}
    lost = scheduler.remove_machine(1)
    assert (lost.calls, lost.groups) == ([2], [9])
    assert scheduler.bundle_machines(9) == []
    scheduler.add(Request(3, ONE, 9, 1))
    assert machines_of(scheduler) == {}
    assert scheduler.place_groups() == [9]
    assert scheduler.bundle_machines(9) == [0, 2]
    assert machines_of(scheduler) == {3: 2}


def test_a_group_waits_when_nothing_is_left_to_take_its_bundle(cluster):
    scheduler = cluster(2, 2)
    scheduler.add_group(9, [ONE, ONE], "STRICT_SPREAD")
    scheduler.place_groups()
    scheduler.remove_machine(1)
    assert scheduler.place_groups() == []
    assert scheduler.has_group(9)
    scheduler.add_machine(2, machine(1))
    assert scheduler.place_groups() == [9]
    scheduler.remove_group(9)
    assert scheduler.available() == {"CPU": 3 * UNIT}
