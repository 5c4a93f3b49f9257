import itertools
import os
import sys
import threading
import time

import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 30


def test_a_task_returns_what_its_function_returns(ray):
    f = ray.remote(lambda a, b=1: (a, b))
    assert ray.get(f.remote(1), timeout=WAIT_S) == (1, 1)
    assert ray.get(f.remote(1, b=[2]), timeout=WAIT_S) == (1, [2])
    assert ray.get([f.remote(i) for i in range(50)], timeout=WAIT_S) == [(i, 1) for i in range(50)]


def test_none_is_a_value(ray):
    nothing = ray.remote(lambda: None)
    assert ray.get(nothing.remote(), timeout=WAIT_S) is None
    assert ray.get([nothing.remote(), ray.put(None)], timeout=WAIT_S) == [None, None]
    assert ray.get([]) == []


def test_a_ref_may_be_asked_for_twice(ray):
    ref = ray.put(5)
    assert ray.get([ref, ref]) == [5, 5]
    assert ray.get(ray.remote(lambda a, b: a + b).remote(ref, ref), timeout=WAIT_S) == 10


def test_tasks_run_in_other_processes(ray):
    pid = ray.remote(os.getpid)
    assert ray.get(pid.remote(), timeout=WAIT_S) != os.getpid()


def test_num_returns_splits_a_result(ray):
    @ray.remote(num_returns=2)
    def pair():
        return 1, "b"

    a, b = pair.remote()
    assert ray.get([b, a], timeout=WAIT_S) == ["b", 1]
    assert pair.options(num_returns=0).remote() is None
    wrong = pair.options(num_returns=3).remote()
    with pytest.raises(ValueError, match="returned 2 values with num_returns=3"):
        ray.get(wrong[0], timeout=WAIT_S)


def test_refs_arrive_as_values_at_the_top_and_as_refs_inside(ray):
    @ray.remote
    def kinds(value, *, named, nested):
        return value, named, type(nested[0]).__name__, nanoray.get(nested[0])

    one, two, three = ray.put(1), ray.put(2), ray.put(3)
    assert ray.get(kinds.remote(one, named=two, nested=[three]), timeout=WAIT_S) == (
        1,
        2,
        "ObjectRef",
        3,
    )


def test_a_chain_of_tasks_passes_unfinished_results_on(ray):
    add = ray.remote(lambda x: x + 1)
    ref = ray.put(0)
    for _ in range(20):
        ref = add.remote(ref)
    assert ray.get(ref, timeout=WAIT_S) == 20


def test_nested_tasks_never_starve_each_other(start):
    ray = start(num_cpus=1)

    @ray.remote
    def fib(n):
        return n if n < 2 else sum(nanoray.get([fib.remote(n - 1), fib.remote(n - 2)]))

    assert ray.get(fib.remote(6), timeout=60) == 8
    assert ray.available_resources() == {"CPU": 1.0}


def test_a_value_may_hold_refs_of_its_maker(ray):
    @ray.remote
    def make():
        return {"inner": nanoray.put([1, 2])}

    inner = ray.get(make.remote(), timeout=WAIT_S)["inner"]
    assert ray.get(inner, timeout=WAIT_S) == [1, 2]


def test_threads_of_a_task_may_call_too(ray):
    @ray.remote
    def many():
        double = nanoray.remote(lambda x: 2 * x)
        found = [None] * 4

        def work(i):
            found[i] = nanoray.get(double.remote(i))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    assert ray.get(many.remote(), timeout=WAIT_S) == [0, 2, 4, 6]


def test_threads_of_the_driver_may_call_too(ray):
    double = ray.remote(lambda x: 2 * x)
    found = {}

    def work(i):
        found[i] = [ray.get(double.remote(i), timeout=WAIT_S) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert found == {i: [2 * i] * 20 for i in range(4)}


def test_remote_errors_are_of_the_cause_class_and_carry_its_traceback(ray):
    @ray.remote
    def fails():
        deep = {}
        return deep["key"]

    with pytest.raises(KeyError) as caught:
        ray.get(fails.remote(), timeout=WAIT_S)
    assert isinstance(caught.value, ray.TaskError)
    assert 'return deep["key"]' in str(caught.value)
    assert "worker.py" not in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_error_keeps_its_class_through_the_tasks_that_get_it(ray):
    fails = ray.remote(lambda: {}["key"])
    outer = ray.remote(lambda: nanoray.get(fails.remote()))
    with pytest.raises(KeyError, match="key") as caught:
        ray.get(outer.remote(), timeout=WAIT_S)
    assert type(caught.value.cause) is KeyError
    assert str(caught.value).count("raised:") == 2  # both tracebacks are there


def test_an_error_passes_through_the_tasks_that_take_it(ray):
    fails = ray.remote(lambda: 1 / 0)
    identity = ray.remote(lambda x: x)
    with pytest.raises(ZeroDivisionError):
        ray.get(identity.remote(identity.remote(fails.remote())), timeout=WAIT_S)


def test_exit_in_a_task_is_an_error_of_the_task(ray):
    leave = ray.remote(lambda: sys.exit(3))
    with pytest.raises(ray.TaskError, match="SystemExit: 3"):
        ray.get(leave.remote(), timeout=WAIT_S)


def test_a_list_fails_with_its_first_error_while_others_run(ray):
    slow = ray.remote(lambda: time.sleep(20))
    fails = ray.remote(lambda: 1 / 0)
    begin = time.monotonic()
    pending = slow.options(num_cpus=0).remote()
    with pytest.raises(ZeroDivisionError):
        ray.get([pending, fails.remote()], timeout=WAIT_S)
    assert time.monotonic() - begin < 15


def test_get_gives_up_in_time_and_may_be_asked_again(ray):
    slow = ray.remote(lambda s: time.sleep(s))
    ref = slow.remote(1.0)
    with pytest.raises(TimeoutError, match=r"timeout=0.05"):
        ray.get(ref, timeout=0.05)
    with pytest.raises(nanoray.GetTimeoutError):
        ray.get(ref, timeout=0)
    assert ray.get(ref, timeout=WAIT_S) is None
    with pytest.raises(ValueError, match="timeout=-1"):
        ray.get(ref, timeout=-1)


def test_wait_tells_ready_from_pending(ray):
    sleep = ray.remote(num_cpus=0)(lambda s: time.sleep(s))
    slow, quick = sleep.remote(20), sleep.remote(0)
    assert ray.wait([slow, quick], timeout=WAIT_S) == ([quick], [slow])
    assert ray.wait([slow, quick], num_returns=2, timeout=0.05) == ([quick], [slow])
    assert ray.wait([slow], timeout=0) == ([], [slow])
    both = [ray.put(1), ray.put(2)]
    assert ray.wait(both, num_returns=1) == ([both[0]], [both[1]])


def test_wait_counts_a_failed_call_as_ready(ray):
    fails = ray.remote(lambda: 1 / 0).remote()
    assert ray.wait([fails], timeout=WAIT_S) == ([fails], [])


def test_wait_checks_its_arguments(ray):
    ref = ray.put(1)
    with pytest.raises(ValueError, match="2 refs with 1 different"):
        ray.wait([ref, ref])
    with pytest.raises(ValueError, match=r"num_returns=2 is not in 1..1"):
        ray.wait([ref], num_returns=2)
    with pytest.raises(TypeError, match="is no ObjectRef"):
        ray.get(3)


def test_polling_leaves_nothing_behind(ray):
    slow = ray.remote(lambda: time.sleep(1)).remote()
    for _ in range(200):
        ray.wait([slow], timeout=0)
    node = nanoray.session.current()._link.node
    assert len(node.objects.get(slow.id).watchers) <= 1
    ray.get(slow, timeout=WAIT_S)


def test_cpus_bound_how_many_tasks_run(ray):
    @ray.remote
    def span():
        begin = time.monotonic()
        time.sleep(0.1)
        return begin, time.monotonic()

    spans = ray.get([span.remote() for _ in range(6)], timeout=WAIT_S)
    for begin, _ in spans:
        assert sum(other <= begin < end for other, end in spans) <= 2


def test_custom_resources_bound_too(ray):
    @ray.remote(num_cpus=0, resources={"license": 1})
    def span():
        begin = time.monotonic()
        time.sleep(0.05)
        return begin, time.monotonic()

    spans = sorted(ray.get([span.remote() for _ in range(4)], timeout=WAIT_S))
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


def test_what_can_never_run_fails_at_once(ray):
    with pytest.raises(ray.InfeasibleError, match="CPU=3 is asked for and 2 exist; ask for less"):
        ray.remote(num_cpus=3)(len).remote()
    with pytest.raises(ValueError, match="disk=1 is asked for and 0 exist"):
        ray.remote(resources={"disk": 1})(len).remote()


def test_environment_variables_reach_the_task_and_no_other(ray):
    read = ray.remote(lambda: os.environ.get("NANORAY_TEST"))
    with_env = read.options(runtime_env={"env_vars": {"NANORAY_TEST": "yes"}})
    assert ray.get([with_env.remote(), read.remote()], timeout=WAIT_S) == ["yes", None]
    assert "NANORAY_TEST" not in os.environ


def test_gpu_ids_come_from_the_inherited_list(start, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-b")
    ray = start(num_cpus=2)
    assert ray.cluster_resources() == {"CPU": 2.0, "GPU": 2.0}

    @ray.remote(num_gpus=1)
    def device():
        time.sleep(0.2)
        return os.environ["CUDA_VISIBLE_DEVICES"], nanoray.get_runtime_context().gpu_ids

    found = ray.get([device.remote(), device.remote()], timeout=WAIT_S)
    assert sorted(found) == [("5", ("5",)), ("GPU-b", ("GPU-b",))]
    halves = [device.options(num_gpus=0.5).remote() for _ in range(2)]
    assert len({ids for ids, _ in ray.get(halves, timeout=WAIT_S)}) == 1


def test_more_gpus_than_inherited_are_refused(no_engine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with pytest.raises(ValueError, match=r"num_gpus=2 but this process may use 1"):
        nanoray.init(num_gpus=2)
    assert not nanoray.is_initialized()


def test_the_context_says_where_it_is(ray):
    here = ray.get_runtime_context()
    assert (here.is_driver, here.actor_id, here.name) == (True, None, "driver")

    @ray.remote
    def where():
        return nanoray.get_runtime_context()

    there = ray.get(where.remote(), timeout=WAIT_S)
    assert not there.is_driver


def test_init_twice_says_so(ray):
    with pytest.raises(ray.NanoRayError, match="call shutdown"):
        ray.init()
    ray.init(ignore_reinit_error=True)


def test_a_missing_preload_is_refused_before_anything_starts(no_engine):
    with pytest.raises(ValueError, match="'no_such_module'"):
        nanoray.init(preload=["no_such_module"])
    assert not nanoray.is_initialized()


def test_refs_do_not_outlive_their_engine(start):
    ray = start(num_cpus=1)
    ref = ray.put(1)
    ray.shutdown()
    ray.init(num_cpus=1)
    with pytest.raises(ValueError, match="belongs to an engine that was shut down"):
        ray.get(ref)
    with pytest.raises(ValueError, match="belongs to an engine that was shut down"):
        ray.remote(len).remote(ref)
