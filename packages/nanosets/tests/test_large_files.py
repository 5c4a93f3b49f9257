"""Files larger than the memory that writing and reading them takes."""

import subprocess
import sys

import pytest

MAX_BYTES = 300 << 20
WRITE = """
import sys
import numpy as np
from nanorlhf.nanosets import Ragged, Writer

path, rows = sys.argv[1], int(sys.argv[2])
batch = 1 << 14
lengths = np.random.default_rng(0).integers(100, 412, batch)
offsets = np.concatenate([[0], np.cumsum(lengths)])
with Writer(path, features={"id": "int64", "text": "utf8", "tokens": "list<int32>"}) as writer:
    for start in range(0, rows, batch):
        tokens = Ragged(np.arange(start, start + offsets[-1], dtype=np.int32), offsets)
        text = [f"row {i}" for i in range(start, start + batch)]
        writer.write_batch({"id": np.arange(start, start + batch), "text": text, "tokens": tokens})
"""
READ = """
import sys
import numpy as np
from nanorlhf.nanosets import load_dataset

path, rows = sys.argv[1], int(sys.argv[2])
batch = 1 << 14
lengths = np.random.default_rng(0).integers(100, 412, batch)
offsets = np.concatenate([[0], np.cumsum(lengths)])
ds = load_dataset(path, io="pread")
assert len(ds) == rows
for start in range(0, rows, batch):
    tokens = ds.gather("tokens", slice(start, start + batch))
    assert np.array_equal(tokens.values, np.arange(start, start + offsets[-1]))
    assert np.array_equal(tokens.offsets, offsets)
assert ds[-1]["text"] == f"row {rows - 1}" and ds[-1]["id"] == rows - 1
"""
PEAK = """
# Of this process alone: ru_maxrss would begin with what the one that started it had.
(line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(line.split()[1]) * 1024)
"""


def peak_bytes(code, *arguments):
    """Return the most memory that a program had at once."""
    command = [sys.executable, "-c", code + PEAK, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture
def path(tmp_path):
    """Where the file is written; removed after the test, since pytest keeps its folders."""
    found = tmp_path / "large.nano"
    yield found
    found.unlink(missing_ok=True)


@pytest.mark.slow
def test_three_gigabytes_are_written_in_300_megabytes_of_memory(path):
    rows = 3 << 20
    rows -= rows % (1 << 14)
    assert peak_bytes(WRITE, path, rows) < MAX_BYTES
    assert path.stat().st_size > 3_000_000_000
    # What was read is kept up to 256 MiB, see CACHE_BYTES.
    assert peak_bytes(READ, path, rows) < MAX_BYTES + (256 << 20)
