"""Tasks, on both engines."""

import contextlib
import functools
import os
import signal
import sys
import time

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 60


class Unhappy(Exception):
    """An error with a constructor of its own and an attribute."""

    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")
        self.code = code

    def __reduce__(self):
        return Unhappy, (self.code, "again")


@nanoray.remote
def add(a, b=1):
    """Add."""
    return a + b


@nanoray.remote
def process():
    return os.getpid()


@nanoray.remote
def fail(error):
    raise error


@nanoray.remote(max_retries=0)
def die(number):
    os.kill(os.getpid(), number)


@nanoray.remote
def fibonacci(n):
    if n < 2:
        return n
    return sum(nanoray.get([fibonacci.remote(n - 1), fibonacci.remote(n - 2)], timeout=WAIT_S))


def test_a_task_runs_in_another_process(engine):
    assert engine.get(process.remote(), timeout=WAIT_S) != os.getpid()


def test_arguments_travel_by_position_by_name_and_as_refs(engine):
    refs = [add.remote(1, 2), add.remote(1), add.remote(b=3, a=add.remote(1, b=1))]
    assert engine.get(refs, timeout=WAIT_S) == [3, 2, 5]


def test_a_function_may_return_nothing(engine):
    assert engine.get(engine.remote(lambda: None).remote(), timeout=WAIT_S) is None


def test_a_closure_a_partial_and_a_builtin_can_be_remote(engine):
    offset = 40
    assert engine.get(engine.remote(lambda x: x + offset).remote(2), timeout=WAIT_S) == 42
    assert engine.get(engine.remote(functools.partial(pow, 2)).remote(3), timeout=WAIT_S) == 8
    assert engine.get(engine.remote(len).remote([1, 2, 3]), timeout=WAIT_S) == 3


def test_several_results_have_a_ref_each(engine):
    @engine.remote(num_returns=2)
    def halves(n):
        return n // 2, n - n // 2

    first, second = halves.remote(7)
    assert engine.get([second, first], timeout=WAIT_S) == [4, 3]
    assert halves.options(num_returns=0).remote(7) is None


def test_a_wrong_number_of_results_fails_every_ref(engine):
    refs = engine.remote(num_returns=3)(lambda: (1, 2)).remote()
    for ref in refs:
        with pytest.raises(ValueError, match="3"):
            engine.get(ref, timeout=WAIT_S)


def test_tasks_may_wait_for_tasks_beyond_the_number_of_cpus(engine):
    assert engine.get(fibonacci.remote(5), timeout=WAIT_S) == 5


def test_an_error_is_also_of_the_class_that_was_raised(engine):
    with pytest.raises(KeyError) as caught:
        engine.get(fail.remote(KeyError("k")), timeout=WAIT_S)
    error = caught.value
    assert isinstance(error, nanoray.TaskError)
    assert isinstance(error.__cause__, KeyError)
    assert error.cause.args == ("k",)
    assert "raise error" in str(error)
    assert "fail" in error.where


def test_an_error_with_a_constructor_of_its_own_keeps_its_attributes(engine):
    with pytest.raises(Unhappy) as caught:
        engine.get(fail.remote(Unhappy(7, "tired")), timeout=WAIT_S)
    assert isinstance(caught.value, nanoray.TaskError)
    assert caught.value.code == 7


def test_an_error_that_cannot_travel_leaves_its_traceback(engine):
    @engine.remote
    def trip():
        error = RuntimeError("stuck")
        error.frames = sys._getframe()
        raise error

    with pytest.raises(nanoray.TaskError, match="stuck") as caught:
        engine.get(trip.remote(), timeout=WAIT_S)
    assert caught.value.cause is None


def test_an_error_passes_through_a_task_that_needed_the_value(engine):
    with pytest.raises(KeyError):
        engine.get(add.remote(fail.remote(KeyError("k"))), timeout=WAIT_S)


def test_an_error_of_a_nested_task_is_raised_and_can_be_caught_there(engine):
    @engine.remote
    def outer(catch):
        try:
            return nanoray.get(fail.remote(KeyError("deep")), timeout=WAIT_S)
        except KeyError:
            if catch:
                return "caught"
            raise

    assert engine.get(outer.remote(True), timeout=WAIT_S) == "caught"
    with pytest.raises(KeyError, match="deep"):
        engine.get(outer.remote(False), timeout=WAIT_S)


def test_a_result_that_cannot_be_pickled_is_an_error(engine):
    import threading

    with pytest.raises(TypeError, match="lock"):
        engine.get(engine.remote(lambda: threading.Lock()).remote(), timeout=WAIT_S)


def test_wrong_arguments_are_a_type_error(engine):
    with pytest.raises(TypeError, match="argument"):
        engine.get(add.remote(), timeout=WAIT_S)


def test_get_of_a_list_raises_as_soon_as_one_has_failed(engine):
    @engine.remote(num_cpus=0)
    def never():
        signal.pause()

    stuck = never.remote()
    with pytest.raises(ZeroDivisionError):
        engine.get([stuck, fail.remote(ZeroDivisionError("now"))], timeout=WAIT_S)
    engine.cancel(stuck, force=True)


def test_a_dead_process_is_an_error_with_a_reason(engine):
    with pytest.raises(nanoray.WorkerCrashedError, match=r"die\(\)|crash|died|kill"):
        engine.get(die.remote(signal.SIGKILL), timeout=WAIT_S)


def test_a_crashed_task_is_run_again(engine, tmp_path):
    @engine.remote(max_retries=1)
    def die_once(path):
        if not os.path.exists(path):
            with open(path, "w"):
                os.kill(os.getpid(), signal.SIGKILL)
        return "second"

    assert engine.get(die_once.remote(str(tmp_path / "mark")), timeout=WAIT_S) == "second"


def test_what_a_task_raises_is_retried_only_when_asked(engine, tmp_path):
    @engine.remote(max_retries=2)
    def count(path, kind):
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < 3:
            raise kind("not yet")
        return os.path.getsize(path)

    mark = str(tmp_path / "a")
    with pytest.raises(ValueError, match="not yet"):
        engine.get(count.remote(mark, ValueError), timeout=WAIT_S)
    assert os.path.getsize(mark) == 1
    retried = count.options(retry_exceptions=[ValueError])
    with pytest.raises(KeyError):
        engine.get(retried.remote(str(tmp_path / "b"), KeyError), timeout=WAIT_S)
    assert engine.get(retried.remote(str(tmp_path / "c"), ValueError), timeout=WAIT_S) == 3
    anything = count.options(retry_exceptions=True)
    assert engine.get(anything.remote(str(tmp_path / "d"), KeyError), timeout=WAIT_S) == 3


def test_what_can_never_run_is_refused_at_the_call(engine):
    with pytest.raises(nanoray.InfeasibleError, match="CPU=100"):
        add.options(num_cpus=100).remote(1)
    with pytest.raises(nanoray.InfeasibleError, match="unicorn=1"):
        add.options(resources={"unicorn": 1}).remote(1)
    assert engine.get(add.options(resources={"license": 1}).remote(1), timeout=WAIT_S) == 2


def test_a_task_holds_what_it_asks_for(engine, until):
    @engine.remote(num_cpus=1, resources={"license": 1})
    def holds():
        deadline = time.monotonic() + 20  # Ray's machines tell each other once a second
        while nanoray.available_resources()["license"] and time.monotonic() < deadline:
            time.sleep(0.01)
        return nanoray.available_resources()["license"]

    assert engine.cluster_resources() == {"CPU": 2.0, "license": 1.0}
    assert until(lambda: engine.available_resources()["license"] == 1.0)  # of whoever had it before
    assert engine.get(holds.remote(), timeout=WAIT_S) == 0.0


def test_environment_variables_are_set_in_the_task(engine):
    @engine.remote(runtime_env={"env_vars": {"NANORAY_COLOUR": "green"}})
    def colour():
        return os.environ["NANORAY_COLOUR"]

    assert engine.get(colour.remote(), timeout=WAIT_S) == "green"
    assert "NANORAY_COLOUR" not in os.environ


def test_options_are_checked_by_name_and_range(engine):
    with pytest.raises(ValueError, match="unknown option 'cpus'"):
        add.options(cpus=1)
    with pytest.raises(ValueError, match="max_retries=-2"):
        add.options(max_retries=-2)
    with pytest.raises(TypeError, match=r"use add\.remote\(\)"):
        add(1)


def test_the_context_says_where_code_runs(engine):
    @engine.remote
    def where():
        context = nanoray.get_runtime_context()
        return context.is_driver, context.actor_id, context.gpu_ids

    assert engine.get_runtime_context().is_driver
    assert engine.get(where.remote(), timeout=WAIT_S) == (False, None, ())
    assert engine.get_gpu_ids() == []
    (node,) = engine.nodes()
    assert node["Alive"]
    assert node["Resources"] == {"CPU": 2.0, "license": 1.0}


def test_a_cancelled_task_raises_and_a_finished_one_does_not(engine, until, tmp_path):
    @engine.remote(num_cpus=2)
    def sleep(path):
        open(path, "w").close()
        while True:
            time.sleep(0.01)

    running, waiting = sleep.remote(tmp_path / "a"), sleep.remote(tmp_path / "b")
    assert until((tmp_path / "a").exists)
    engine.cancel(waiting)
    engine.cancel(running)
    for ref in (waiting, running):
        with pytest.raises(nanoray.TaskCancelledError):
            engine.get(ref, timeout=WAIT_S)
    assert not (tmp_path / "b").exists()
    done = add.remote(1)
    assert engine.get(done, timeout=WAIT_S) == 2
    engine.cancel(done)
    assert engine.get(done, timeout=WAIT_S) == 2


def test_a_task_cancelled_as_its_result_arrives_has_finished(engine):
    # Ray still has the task in its books for a moment: when it was cancelled then, Ray aborted
    # this process. So many tries have always met that moment.
    for value in range(500):
        done = add.remote(value)
        assert engine.get(done, timeout=WAIT_S) == value + 1
        engine.cancel(done)
        assert engine.get(done, timeout=WAIT_S) == value + 1


def test_a_task_is_cancelled_with_what_it_started(engine, until, tmp_path):
    @engine.remote(num_cpus=0)
    def child(path):
        open(path, "w").close()
        try:
            while True:
                time.sleep(0.01)
        finally:
            os.remove(path)

    @engine.remote(num_cpus=0)
    def parent(path):
        return nanoray.get(child.remote(path))

    ref = parent.remote(tmp_path / "a")
    assert until((tmp_path / "a").exists)
    engine.cancel(ref, recursive=True)
    with pytest.raises(nanoray.TaskCancelledError):
        engine.get(ref, timeout=WAIT_S)
    assert until(lambda: not (tmp_path / "a").exists())


def test_a_task_cancelled_by_force_loses_its_process(engine, until, tmp_path):
    @engine.remote(num_cpus=0)
    def deaf(path):
        path.write_text(str(os.getpid()))
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(0.01)

    path = tmp_path / "pid"
    ref = deaf.remote(path)
    assert until(lambda: path.exists() and path.read_text())
    engine.cancel(ref, force=True)
    with pytest.raises((nanoray.TaskCancelledError, nanoray.WorkerCrashedError)):
        engine.get(ref, timeout=WAIT_S)
    assert until(lambda: not os.path.exists(f"/proc/{path.read_text()}"))


def test_tasks_are_listed(engine):
    engine.get(add.options(name="listed").remote(1), timeout=WAIT_S)
    (row,) = [row for row in engine.list_tasks() if row["name"] == "listed()"]
    assert row["state"] == "FINISHED"


def test_calls_that_have_ended_are_in_the_timeline(engine, until, tmp_path):
    engine.get(add.remote(1), timeout=WAIT_S)
    path = str(tmp_path / "trace.json")
    assert until(lambda: any(event["ph"] == "X" for event in engine.timeline(path)))
    assert (tmp_path / "trace.json").read_text().startswith("[")
