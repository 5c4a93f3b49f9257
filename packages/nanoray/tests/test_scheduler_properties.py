"""Random traffic on 1 to 4 machines: the rules of the scheduler hold whatever happens."""

from hypothesis import given, settings
from hypothesis import strategies as st

from nanorlhf.nanoray.resources import UNIT, Pool, demand
from nanorlhf.nanoray.scheduler import Request, Scheduler

NEEDS = st.builds(
    demand, num_cpus=st.sampled_from([0, 0.5, 1, 2]), num_gpus=st.sampled_from([0, 0.5, 1])
)
BUNDLES = st.lists(NEEDS.filter(bool), min_size=1, max_size=3)
STRATEGIES = st.sampled_from(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])


def check_places(strategy, places):
    if strategy == "STRICT_PACK":
        assert len(set(places)) == 1
    if strategy == "STRICT_SPREAD":
        assert len(set(places)) == len(places)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=4),
    st.sampled_from(["default", "fifo", "round_robin"]),
    st.data(),
)
def test_nothing_is_overdrawn_and_all_comes_back(sizes, policy, data):
    pools = [
        Pool({"CPU": cpus * UNIT}, [f"{index}-{gpu}" for gpu in range(gpus)])
        for index, (cpus, gpus) in enumerate(sizes)
    ]
    scheduler = Scheduler(pools[0], node_id="n0", policy=policy)
    for index, pool in enumerate(pools[1:], start=1):
        scheduler.add_machine(index, pool, node_id=f"n{index}")
    running, groups = {}, {}
    for ids in range(1, data.draw(st.integers(2, 26))):
        action = data.draw(st.sampled_from(["call", "call", "end", "group", "ungroup"]))
        if action == "call":
            group = data.draw(st.sampled_from([0, *groups]))
            spread = data.draw(st.booleans())
            request = Request(ids, data.draw(NEEDS), group, is_spread=spread)
            why = scheduler.why_infeasible(request)
            assert scheduler.add(request) == why
        elif action == "end" and running:
            scheduler.release(running.popitem()[0])
        elif action == "group":
            groups[ids] = data.draw(STRATEGIES)
            scheduler.add_group(ids, data.draw(BUNDLES), groups[ids])
        elif action == "ungroup" and groups:
            for call in scheduler.remove_group(groups.popitem()[0]):
                scheduler.release(call)
                running.pop(call, None)
        for group in scheduler.place_groups():
            check_places(groups[group], scheduler.bundle_machines(group))
        running.update((grant.id, grant) for grant in scheduler.schedule())
        for pool in pools:
            assert all(amount >= 0 for amount in (*pool.free.values(), *pool.gpus.values()))
    for group in groups:
        for call in scheduler.remove_group(group):
            scheduler.release(call)
            running.pop(call, None)
    while running:
        scheduler.release(running.popitem()[0])
        running.update((grant.id, grant) for grant in scheduler.schedule())
    for pool in pools:
        assert pool.available() == pool.totals


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), BUNDLES, STRATEGIES)
def test_a_group_has_all_its_bundles_or_takes_nothing(cpus, bundles, strategy):
    pools = [Pool({"CPU": number * UNIT}, [str(index)]) for index, number in enumerate(cpus)]
    scheduler = Scheduler(pools[0])
    for index, pool in enumerate(pools[1:], start=1):
        scheduler.add_machine(index, pool, node_id=str(index))
    before = dict(scheduler.available())
    scheduler.add_group(1, bundles, strategy)
    if scheduler.place_groups():
        check_places(strategy, scheduler.bundle_machines(1))
        taken = sum(amount for bundle in bundles for _, amount in bundle)
        assert sum(before.values()) - sum(scheduler.available().values()) == taken
    else:
        assert scheduler.available() == before


def test_a_thousand_waiting_calls_are_looked_at_once():
    looks = 0

    class Counted(Pool):
        def take(self, needs):
            nonlocal looks
            looks += 1
            return super().take(needs)

    scheduler = Scheduler(Counted({"CPU": UNIT}))
    for call in range(1000):
        scheduler.add(Request(call, demand(num_cpus=1)))
        scheduler.schedule()
    for call in range(1000):
        scheduler.release(call)
        scheduler.schedule()
    assert looks < 2500
