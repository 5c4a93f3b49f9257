"""A worker that wants more memory than there is: the error says so, and the engine goes on."""

import contextlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nanorlhf.nanoray as nanoray

WAIT_S = 60
MB = 1 << 20
MOUNT = Path("/sys/fs/cgroup")

PROGRAM = """
import os
import nanorlhf.nanoray as nanoray

nanoray.init(num_cpus=1, object_store_memory=32 << 20, log_to_driver=False)


def grow():
    held = []
    while True:
        held.append(bytearray(b"x" * (8 << 20)))


@nanoray.remote
class Actor:
    def grow(self):
        grow()


def said(ref):
    try:
        nanoray.get(ref, timeout=60)
    except nanoray.NanoRayError as error:
        return f"{type(error).__name__}: {error}".replace("\\n", " / ")


print(said(nanoray.remote(max_retries=0)(grow).options(name="greedy").remote()))
print(said(Actor.remote().grow.remote()))
print(nanoray.get(nanoray.remote(lambda: "it goes on").remote(), timeout=60))
print(said(nanoray.remote(max_retries=0)(os.abort).remote()))
"""


@pytest.fixture
def limited():
    """Return a cgroup of 384 MB, which goes at the end with all that is in it."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    is_v2 = [str(MOUNT), "cgroup2"] in mounts
    parent, limit = (MOUNT, "memory.max") if is_v2 else (MOUNT / "memory", "memory.limit_in_bytes")
    group = parent / f"nanoray-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        if not (group / limit).exists():
            pytest.skip("the cgroups here do not limit memory")
        (group / limit).write_text(str(384 * MB))
        with contextlib.suppress(OSError):  # there may be no swap to limit
            (group / "memory.swap.max").write_text("0")
        yield group
    finally:
        group.rmdir()


def test_a_worker_that_the_kernel_kills_for_memory_is_said_to_be(limited):
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        preexec_fn=lambda: (limited / "cgroup.procs").write_text(str(os.getpid())),
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
    )
    task, actor, goes_on, other = process.stdout.splitlines()
    text = "by the kernel, for want of memory (its cgroup's oom_kill has grown): raise the limit"
    assert task.startswith("WorkerCrashedError: task greedy() crashed"), task
    assert text in task
    assert actor.startswith("ActorDiedError: actor Actor died"), actor
    assert text in actor
    assert goes_on == "it goes on"
    assert "SIGABRT" in other, other
    assert "memory" not in other, "a later death of another kind is not put down to it"


@pytest.fixture
def narrow(start):
    """Return an actor whose process may map few more MB than it has."""
    start(num_cpus=1)

    @nanoray.remote
    class Narrow:
        def limit(self, size):
            self.kept = np.ones(40 * MB, np.uint8)
            mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + size, resource.RLIM_INFINITY))

        def widen(self):
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

        def grow(self):
            return len(bytearray(400 * MB))

        def give(self):
            return self.kept

        def take(self, array):
            return int(array.sum())

        def small(self):
            return 7

    actor = Narrow.remote()
    nanoray.get(actor.limit.remote(16 * MB), timeout=WAIT_S)
    return actor


def test_a_call_that_finds_no_memory_raises_memory_error(narrow):
    with pytest.raises(MemoryError) as caught:
        nanoray.get(narrow.grow.remote(), timeout=WAIT_S)
    assert isinstance(caught.value, nanoray.TaskError)
    assert "bytearray(400 * MB)" in str(caught.value)
    assert nanoray.get(narrow.small.remote(), timeout=WAIT_S) == 7


def test_a_result_that_finds_no_memory_is_an_error_of_its_call(narrow):
    with pytest.raises(MemoryError, match=r"out of memory: process \d+ cannot map an arena of"):
        nanoray.get(narrow.give.remote(), timeout=WAIT_S)
    assert nanoray.get(narrow.small.remote(), timeout=WAIT_S) == 7


def test_an_argument_that_finds_no_memory_is_an_error_of_its_call(narrow):
    ref = nanoray.put(np.ones(40 * MB, np.uint8))
    with pytest.raises(MemoryError, match=r"out of memory: process \d+ cannot map an arena of"):
        nanoray.get(narrow.take.remote(ref), timeout=WAIT_S)
    narrow.widen.remote()
    assert nanoray.get(narrow.take.remote(ref), timeout=WAIT_S) == 40 * MB
