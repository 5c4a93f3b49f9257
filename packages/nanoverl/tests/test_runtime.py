"""The same program on every runtime."""

import os
import tempfile

import pytest

from nanorlhf.nanoverl.runtime import create_runtime, gather


@pytest.fixture(scope="module")
def counter():
    """A class that no worker could import: it has to travel by value."""

    class Counter:
        def __init__(self, start):
            self.value = start

        def add(self, amount):
            self.value += amount
            return self.value

        def fail(self):
            raise KeyError("no such thing")

        def pid(self):
            return os.getpid()

        def sleep(self):
            import time

            time.sleep(60)

    return Counter


@pytest.fixture(scope="module")
def ray_environment():
    """Keep Ray out of the user's home and its files in a folder with a short name."""
    with (
        tempfile.TemporaryDirectory(prefix="nanoverl") as folder,
        pytest.MonkeyPatch.context() as p,
    ):
        p.setenv("RAY_TMPDIR", folder)
        p.setenv("RAY_AUTH_MODE", "disabled")
        p.setenv("RAY_IGNORE_UNHANDLED_ERRORS", "1")
        p.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@pytest.fixture(
    scope="module",
    params=["inprocess", "nanoray", pytest.param("ray", marks=pytest.mark.slow)],
)
def runtime(request):
    if request.param == "ray":
        pytest.importorskip("ray", reason="Ray is not installed here; see the group 'peers'")
        request.getfixturevalue("ray_environment")
    made = create_runtime(request.param)
    yield made
    made.shutdown()


def test_calls_run_in_order_and_refs_resolve(runtime, counter):
    actor = runtime.spawn(counter, 1)
    refs = [actor.call("add", runtime.put(k)) for k in range(5)]
    assert runtime.get(refs, timeout_s=60) == [1, 2, 4, 7, 11]
    assert runtime.get(actor.call("add", refs[-1]), timeout_s=60) == 22


def test_an_error_reaches_the_caller_of_get_and_the_actor_lives_on(runtime, counter):
    actor = runtime.spawn(counter, 1)
    ref = actor.call("fail")
    with pytest.raises(KeyError, match="no such thing"):
        runtime.get(ref, timeout_s=60)
    assert runtime.get(actor.call("add", 1), timeout_s=60) == 2


def test_processes_are_what_the_runtime_says(runtime, counter):
    actor = runtime.spawn(counter, 1)
    elsewhere = runtime.get(actor.call("pid"), timeout_s=60) != os.getpid()
    assert elsewhere == runtime.has_processes


def test_a_late_call_is_named(runtime, counter):
    if not runtime.has_processes:
        pytest.skip("a call in this process has ended before anyone can wait for it")
    actor = runtime.spawn(counter, 1)
    with pytest.raises(TimeoutError, match=r"sampling a batch took longer than 0\.2 s"):
        gather(runtime, [actor.call("sleep")], timeout_s=0.2, what="sampling a batch")


def test_an_unknown_runtime_is_refused():
    with pytest.raises(ValueError, match="runtime='slurm'; known: inprocess, nanoray"):
        create_runtime("slurm")
