"""The interpreter that workers are forked from: kept, replaced, ended."""

import os
import select
import signal
import subprocess
import sys

import pytest

from nanorlhf.nanosets import Dataset

FUNCTIONS = """
import os
import sys

import numpy as np
from nanorlhf.nanosets.sink import version

def look(row):
    return {
        "parent": os.getppid(),
        "seen": os.environ.get("SEEN"),
        "drawn": np.random.random(),
        "knows_version": version.cache_info().currsize == 1,
    }
"""
PROGRAM = """
import os
import signal
import sys
from nanorlhf.nanosets import Dataset
from functions_of_zygotes import look
found = Dataset.from_dict({"i": [1, 2]}).map(look, num_proc=2, batch_size=1)
print(found["parent"][0], flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def look(tmp_path, monkeypatch):
    (tmp_path / "functions_of_zygotes.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    import functions_of_zygotes

    yield functions_of_zygotes.look
    del sys.modules["functions_of_zygotes"]


@pytest.fixture
def ds():
    return Dataset.from_dict({"i": [1, 2]})


def parent_of(found):
    (pid,) = set(found["parent"])
    return pid


def test_the_next_map_finds_the_zygote_and_draws_other_numbers(ds, look):
    some = [ds.map(look, num_proc=2, batch_size=1) for _ in range(2)]
    assert parent_of(some[0]) == parent_of(some[1]) != os.getpid()
    assert len({number for found in some for number in found["drawn"]}) == 4


def test_a_worker_need_not_find_out_the_version_that_it_writes(ds, look):
    assert list(ds.map(look, num_proc=2, batch_size=1)["knows_version"]) == [True, True]


def test_a_zygote_that_was_killed_is_replaced(ds, look):
    first = parent_of(ds.map(look, num_proc=2, batch_size=1))
    watched = os.pidfd_open(first)
    os.kill(first, signal.SIGKILL)
    assert select.select([watched], [], [], 30)[0]
    os.close(watched)
    assert parent_of(ds.map(look, num_proc=2, batch_size=1)) != first


def test_workers_see_the_environment_of_now(ds, look, monkeypatch):
    for value in ("one", "two"):
        monkeypatch.setenv("SEEN", value)
        assert ds.map(look, num_proc=2, batch_size=1)["seen"][:] == [value, value]


@pytest.mark.parametrize("end", ["ended", "killed"])
def test_a_zygote_ends_with_the_process_that_started_it(end, tmp_path, look):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, end],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment, "TMPDIR": str(tmp_path)},
    ) as program:
        # The pipes end only when the zygote, which has them too, is gone as well.
        out, errors = program.communicate(timeout=60)
    assert errors == b""
    assert int(out) != program.pid
