import json
import os
import time

import numpy as np
import pytest

import nanorlhf.nanoray as nanoray
from nanorlhf.nanoray.history import KEPT, Ran, Timeline, chrome_trace

WAIT_S = 30


@pytest.fixture
def fresh(start):
    return start(num_cpus=2)


@pytest.fixture
def sleeper(fresh):
    @fresh.remote
    class Sleeper:
        def pid(self):
            return os.getpid()

        def sleep(self, seconds):
            time.sleep(seconds)

    return Sleeper


def named(rows, name):
    return [row for row in rows if row["name"] == name]


def test_tasks_are_listed_while_they_wait_run_and_after(fresh, until):
    hold = fresh.remote(num_cpus=2)(time.sleep)
    running = hold.options(name="first").remote(60)
    queued = hold.options(name="second").remote(0)
    waiting = hold.options(name="third").remote(queued)
    assert until(lambda: named(fresh.list_tasks(), "first()")[0]["state"] == "RUNNING")
    states = {row["name"]: row["state"] for row in fresh.list_tasks()}
    assert states["second()"] == "PENDING_NODE_ASSIGNMENT"
    assert states["third()"] == "PENDING_ARGS_AVAIL"
    row = named(fresh.list_tasks(), "first()")[0]
    assert row["type"] == "NORMAL_TASK"
    assert row["node_id"] == fresh.nodes()[0]["NodeID"]
    assert row["worker_id"] in [worker["worker_id"] for worker in fresh.list_workers()]
    fresh.cancel(running, force=True)
    fresh.get(queued, timeout=WAIT_S)
    ended = named(fresh.list_tasks(), "second()")[-1]
    assert ended["state"] == "FINISHED"
    assert ended["duration_s"] >= 0
    assert abs(ended["start_time_s"] - time.time()) < WAIT_S
    with pytest.raises(TypeError):
        fresh.get(waiting, timeout=WAIT_S)
    assert named(fresh.list_tasks(), "third()")[-1]["state"] == "FAILED"


def test_actors_and_their_workers_are_listed(fresh, sleeper, until):
    actor = sleeper.options(name="anna", max_restarts=2).remote()
    pid = fresh.get(actor.pid.remote(), timeout=WAIT_S)
    (row,) = fresh.list_actors()
    assert (row["class_name"], row["name"], row["state"]) == ("Sleeper", "anna", "ALIVE")
    assert (row["pid"], row["restarts_left"]) == (pid, 2)
    (worker,) = [w for w in fresh.list_workers() if w["pid"] == pid]
    assert worker["worker_id"] == row["worker_id"]
    assert worker["runs"] == "Sleeper"
    fresh.kill(actor)
    assert fresh.list_actors()[0]["state"] == "DEAD"
    del actor
    assert until(lambda: fresh.list_actors() == [])


def test_objects_are_listed_with_their_size_and_place(fresh):
    small, large = fresh.put(1), fresh.put(np.zeros(1 << 20))
    rows = {row["object_id"]: row for row in fresh.list_objects()}
    assert rows[f"{small.id:x}"]["location"] == "inline"
    assert rows[f"{large.id:x}"]["location"] == "memory"
    assert rows[f"{large.id:x}"]["size_bytes"] >= 8 << 20
    assert rows[f"{large.id:x}"]["holders"] == [0]
    assert not rows[f"{large.id:x}"]["is_error"]


def test_a_kind_of_state_that_does_not_exist_is_refused(fresh):
    from nanorlhf.nanoray.state import list_state

    with pytest.raises(ValueError, match="kind='jobs' is unknown; use one of actors, nodes"):
        list_state("jobs")


def test_the_timeline_shows_when_calls_ran_and_how_they_ended(fresh, tmp_path):
    ok = fresh.remote(time.sleep).options(name="ok").remote(0.05)
    bad = fresh.remote(time.sleep).options(name="bad").remote("long")
    fresh.wait([ok, bad], num_returns=2, timeout=WAIT_S)
    path = tmp_path / "trace.json"
    events = fresh.timeline(path)
    assert json.loads(path.read_text()) == events
    bars = {event["name"]: event for event in events if event["ph"] == "X"}
    assert bars["ok()"]["dur"] >= 50_000
    assert bars["ok()"]["args"]["outcome"] == "FINISHED"
    assert bars["bad()"]["args"]["outcome"] == "FAILED"
    assert min(bar["ts"] for bar in bars.values()) == 0


def test_a_call_that_is_tried_again_is_seen_twice(fresh, tmp_path):
    mark = tmp_path / "mark"

    def once():
        if not mark.exists():
            mark.touch()
            raise KeyError("first")

    fresh.get(fresh.remote(retry_exceptions=True)(once).remote(), timeout=WAIT_S)
    bars = [event["args"]["outcome"] for event in fresh.timeline() if event["ph"] == "X"]
    assert bars == ["RETRIED", "FINISHED"]


def test_the_timeline_keeps_the_last_calls_alone():
    timeline = Timeline()
    for number in range(KEPT + 5):
        timeline.add(Ran(number, "f()", "task", 1, 0, float(number), 1.0, "FINISHED"))
    kept = timeline.last()
    assert (len(kept), kept[0][0], kept[-1][0]) == (KEPT, 5, KEPT + 4)


def test_nothing_has_run_in_an_empty_trace():
    assert chrome_trace([]) == []


def test_state_needs_an_engine(no_engine):
    with pytest.raises(nanoray.NotInitializedError):
        nanoray.list_tasks()
