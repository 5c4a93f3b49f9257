"""Memory of freed blocks: kept for the next ones, counted in page faults."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import sys

from nanorlhf.nanosets import Writer

def blocks():
    some = [b"x" * size for size in range(1_000_000, 1_050_000, 10_000)]

if sys.argv[1]:
    Writer(sys.argv[1]).abort()
for _ in range(3):
    blocks()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    blocks()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
LIMITED = """
import resource
import sys

from nanorlhf.nanosets import Writer, load_dataset

with open("/proc/self/statm") as file:
    mapped = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (24 << 20),) * 2)
with Writer(sys.argv[1]) as writer:
    writer.write({"x": 1})
print(load_dataset(sys.argv[1])["x"][0])
"""
PAGES = 20 * 5_000_000 // 4096
"""Pages that the blocks have in all rounds."""


def printed(program, path):
    command = [sys.executable, "-c", program, str(path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def faults(path):
    return printed(PROGRAM, path)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others give memory back otherwise")
def test_blocks_that_are_freed_together_are_not_given_back_once_a_file_was_written(tmp_path):
    assert faults(tmp_path / "a.nano") < PAGES / 20
    assert faults("") > PAGES / 2


def test_a_process_that_may_not_have_the_block_writes_all_the_same(tmp_path):
    assert printed(LIMITED, tmp_path / "a.nano") == 1
