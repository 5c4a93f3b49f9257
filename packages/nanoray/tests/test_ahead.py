"""Short tasks that are sent to a process before it has finished the one before."""

import os
import time
from collections import Counter

import pytest

from nanorlhf.nanoray.resources import Pool
from nanorlhf.nanoray.scheduler import Request, Scheduler

WAIT_S = 60
CPU = (("CPU", 10_000),)


@pytest.fixture
def task(start):
    """Return an engine of two CPUs and a function that is known to be short."""
    ray = start(num_cpus=2)

    @ray.remote(max_retries=0)
    def run(act, what=None):
        if act == "note":
            with open(what, "a") as file:
                file.write("x\n")
        elif act == "hold":
            open(f"{what}.held", "w").close()
            while not os.path.exists(what):
                time.sleep(0.01)
        elif act == "die" or (act == "die once" and not os.path.exists(what)):
            open(what or os.devnull, "w").close()
            os._exit(3)
        elif act == "nest" and what:
            return 1 + ray.get(run.remote("nest", what - 1))
        return 0

    ray.get([run.remote("warm") for _ in range(300)], timeout=WAIT_S)
    return ray, run


def test_short_tasks_are_sent_ahead_and_run_once(task, tmp_path):
    ray, run = task
    paths = [str(tmp_path / str(number % 200)) for number in range(2000)]
    ray.get([run.remote("note", path) for path in paths], timeout=WAIT_S)
    assert {os.path.getsize(path) for path in set(paths)} == {20}
    ahead = ray.session.current()._link.node.supervisor.ahead
    assert not ahead._holders


def test_nothing_waits_behind_a_task_that_turns_out_long(task, tmp_path):
    ray, run = task
    go = str(tmp_path / "go")
    refs = [run.remote("hold" if number == 100 else "warm", go) for number in range(400)]
    others = refs[:100] + refs[101:]
    assert ray.get(others, timeout=WAIT_S) == [0] * 399
    assert not ray.wait([refs[100]], timeout=0)[0]
    open(go, "w").close()
    assert ray.get(refs[100], timeout=WAIT_S) == 0


def test_a_process_that_blocks_gives_back_what_it_has_not_begun(task):
    ray, run = task
    refs = [run.remote("nest", number % 4) for number in range(200)]
    assert ray.get(refs, timeout=WAIT_S) == [number % 4 for number in range(200)]


def test_a_death_costs_only_the_task_that_ran(task):
    ray, run = task
    refs = [run.remote("die" if number % 50 == 25 else "warm") for number in range(300)]
    ended = Counter()
    for ref in refs:
        try:
            ended[ray.get(ref, timeout=WAIT_S)] += 1
        except ray.WorkerCrashedError:
            ended["died"] += 1
    assert ended == {0: 294, "died": 6}


def test_a_task_that_was_sent_ahead_and_died_is_run_again(task, tmp_path):
    ray, run = task
    twice = run.options(max_retries=1)
    refs = [
        twice.remote("die once", str(tmp_path / str(number)))
        if number % 50 == 25
        else twice.remote("warm")
        for number in range(300)
    ]
    assert ray.get(refs, timeout=WAIT_S) == [0] * 300


def test_what_was_sent_ahead_can_be_cancelled(task, tmp_path, until):
    ray, run = task
    go = str(tmp_path / "go")
    held = [run.remote("hold", go), run.remote("hold", go)]
    refs = [run.remote("note", str(tmp_path / str(number))) for number in range(40)]
    assert until(lambda: os.path.exists(f"{go}.held"))
    for ref in refs[::2]:
        ray.cancel(ref)
    open(go, "w").close()
    assert ray.get(refs[1::2] + held, timeout=WAIT_S) == [0] * 22
    for ref in refs[::2]:
        with pytest.raises(ray.TaskCancelledError):
            ray.get(ref, timeout=WAIT_S)
    assert not any(os.path.exists(tmp_path / str(number)) for number in range(0, 40, 2))


def test_at_most_half_of_those_that_wait_go_ahead_of_the_others():
    scheduler = Scheduler(Pool({"CPU": 10_000}))
    for call_id in range(1, 12):
        scheduler.add(Request(call_id, CPU))
    assert [grant.id for grant in scheduler.schedule()] == [1]
    assert scheduler.ahead(1, 64, lambda _: True) == [2, 3, 4, 5, 6]
    assert scheduler.ahead(1, 2, lambda _: True) == [7, 8]
    assert scheduler.ahead(1, 64, lambda call_id: call_id != 9) == []
    scheduler.hand_over(1, 2)
    scheduler.release(2)
    assert [grant.id for grant in scheduler.schedule()] == [9]


def test_nothing_goes_ahead_of_calls_with_other_needs():
    scheduler = Scheduler(Pool({"CPU": 10_000, "disk": 10_000}))
    for call_id in range(1, 6):
        scheduler.add(Request(call_id, CPU))
    scheduler.add(Request(6, (("CPU", 10_000), ("disk", 10_000))))
    assert [grant.id for grant in scheduler.schedule()] == [1]
    assert scheduler.ahead(1, 64, lambda _: True) == []


def test_a_call_taken_back_is_the_first_again():
    scheduler = Scheduler(Pool({"CPU": 10_000}))
    for call_id in (1, 2, 3, 4, 5):
        scheduler.add(Request(call_id, CPU))
    scheduler.schedule()
    assert scheduler.ahead(1, 64, lambda _: True) == [2, 3]
    for call_id in (3, 2):
        scheduler.add(Request(call_id, CPU), is_first=True)
    scheduler.release(1)
    assert [grant.id for grant in scheduler.schedule()] == [2]
