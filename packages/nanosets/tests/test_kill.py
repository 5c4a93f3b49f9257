"""Writers that are killed at random moments: the file reads as it was before, or after."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from nanorlhf.nanosets import Writer, load_dataset

FOREVER = """
import sys
import numpy as np
from nanorlhf.nanosets import Writer

path, append, number = sys.argv[1], sys.argv[2] == "append", int(sys.argv[3])
print("ready", flush=True)
while True:
    with Writer(path, append=append, chunk_rows=64) as writer:
        for start in range(0, 256, 64):
            ids = np.arange(start, start + 64)
            tokens = [np.full(i % 7, number) for i in ids.tolist()]
            writer.write_batch({"write": np.full(64, number), "id": ids, "tokens": tokens})
    print(number, flush=True)
    number += 1
"""


def written(path):
    """Return the numbers of the writes that a file holds, each of which has to be whole."""
    ds = load_dataset(path, verify=True)
    numbers = ds["write"].numpy()
    kept = numbers[::256]
    assert np.array_equal(numbers, np.repeat(kept, 256))
    assert np.array_equal(ds["id"].numpy(), np.tile(np.arange(256), len(kept)))
    tokens = ds.gather("tokens")
    assert np.array_equal(tokens.values, np.repeat(numbers, np.diff(tokens.offsets)))
    return kept.tolist()


def kill_one(path, how, first, delay_s):
    """Start a writer that never ends and kill it; return the numbers it said were written."""
    command = [sys.executable, "-c", FOREVER, str(path), how, str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        told = [int(line) for line in process.stdout.read().splitlines()]
    assert process.returncode == -signal.SIGKILL
    return told


def killed_many_times(path, how, kills):
    rng = random.Random(how)
    path.parent.mkdir()
    with Writer(path) as writer:
        tokens = [np.full(i % 7, 0) for i in range(256)]
        writer.write_batch({"write": np.zeros(256, int), "id": np.arange(256), "tokens": tokens})
    expected, moments = [0], set()
    for _ in range(kills):
        told = kill_one(path, how, expected[-1] + 1, rng.uniform(0, 0.03))
        found = written(path)
        # The last write may be in place although its writer could not say so any more.
        before = expected + told if how == "append" else (expected + told)[-1:]
        after = found[-1:] if found[-1] == (expected + told)[-1] + 1 else []
        assert found == (before + after if how == "append" else after or before)
        leftovers = set(os.listdir(path.parent)) - {path.name}
        assert all(name.startswith(f"{path.name}.tmp.") for name in leftovers)
        assert len(leftovers) <= 1, "each writer removes what the one before it left"
        torn = path.stat().st_size > load_dataset(path).columns["id"].parts[0].file.end
        moments.add("inside" if leftovers or torn else "between")
        expected = found
    assert "inside" in moments, "no kill came inside of a write: this says nothing"
    end_well(path, how, expected)


def end_well(path, how, expected):
    """The next writer finds its way, and leaves nothing but the file."""
    with Writer(path, append=how == "append") as writer:
        tokens = [np.full(i % 7, 999_999) for i in range(256)]
        number = np.full(256, 999_999)
        writer.write_batch({"write": number, "id": np.arange(256), "tokens": tokens})
    assert written(path) == (expected if how == "append" else []) + [999_999]
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("how", ["write", "append"])
def test_a_writer_killed_at_a_random_moment_leaves_a_whole_file(how, tmp_path):
    killed_many_times(tmp_path / "data" / "a.nano", how, 6)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["write", "append"])
def test_a_writer_killed_a_hundred_times_leaves_a_whole_file(how, tmp_path):
    killed_many_times(tmp_path / "data" / "a.nano", how, 100)


def test_a_first_write_that_is_killed_leaves_no_file(tmp_path):
    """Before anything is whole there is nothing under the name."""
    path = tmp_path / "a.nano"
    code = FOREVER.replace("for start in range(0, 256, 64)", "for start in range(0, 1 << 40, 64)")
    command = [sys.executable, "-c", code, str(path), "write", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        while not any(name.stat().st_size > 4096 for name in tmp_path.iterdir()):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    (left,) = os.listdir(tmp_path)
    assert left.startswith("a.nano.tmp.")
    with Writer(path) as writer:
        writer.write({"id": 1})
    assert os.listdir(tmp_path) == ["a.nano"]
