"""Mutants of small files: right data or ``CorruptFileError``, never more memory, never a crash."""

import importlib
import sys
from collections import Counter
from pathlib import Path

import pytest

from nanorlhf.nanosets import layout
from nanorlhf.nanosets.reader import File

FUZZER = Path(__file__).parents[1] / "benchmarks" / "fuzz_nano.py"

DIES = """
import os, sys

sys.path.insert(0, {folder!r})
import fuzz_nano

mutant_of = fuzz_nano.mutant_of
fuzz_nano.mutant_of = lambda corpus, seed, number: (
    os.abort() if number in (3, 20) else mutant_of(corpus, seed, number)
)
fuzz_nano.main()
"""


@pytest.fixture(scope="module")
def fuzzer():
    if not FUZZER.exists():
        pytest.skip("the fuzzer lies in the repository, not in the source distribution")
    pytest.importorskip("pyarrow", reason="pyarrow judges what is read of a forged file")
    pytest.importorskip("xxhash", reason="half of the files have xxh3_64 checksums")
    pytest.importorskip("zstandard", reason="half of the files are compressed")
    sys.path.insert(0, str(FUZZER.parent))
    try:
        return importlib.import_module(FUZZER.stem)
    finally:
        sys.path.remove(str(FUZZER.parent))


def check(fuzzer, count, seed, folder):
    findings, outcomes = fuzzer.fuzz(count, seed=seed, folder=folder)
    assert findings == []
    # Each way to end is reached, or the mutants are too wild or too tame to say anything.
    assert outcomes["verified: refused"] > count / 3
    assert min(outcomes[f"verified: {end}"] for end in ("same", "other")) > count / 200
    assert outcomes["unverified: other"] > outcomes["verified: other"]


def test_two_thousand_mutants_read_as_written_or_are_refused(fuzzer, tmp_path):
    check(fuzzer, 2000, 0, tmp_path)


@pytest.mark.slow
def test_twenty_thousand_mutants_read_as_written_or_are_refused(fuzzer, tmp_path):
    check(fuzzer, 20_000, 1, tmp_path)


def test_the_fuzzer_sees_a_crash_and_goes_on(fuzzer, tmp_path, monkeypatch):
    script = tmp_path / "dies.py"
    script.write_text(DIES.format(folder=str(FUZZER.parent)))
    monkeypatch.setattr(fuzzer, "__file__", str(script))
    findings, outcomes = fuzzer.fuzz(40, folder=tmp_path)
    assert [(finding.number, finding.kind) for finding in findings] == [(3, "crash"), (20, "crash")]
    assert all("the process ended with -6" in finding.problem for finding in findings)
    assert outcomes["verified: refused"]


def problems(fuzzer, numbers, folder, break_it):
    """Return what is wrong with some mutants when the reader is broken."""
    fuzzer.write_corpus(folder)
    corpus = fuzzer.read_corpus(folder)
    break_it()
    mutants = (fuzzer.mutant_of(corpus, 0, number) for number in numbers)
    found = [fuzzer.problem_of(one, folder / "mutant.nano", "mmap", Counter()) for one in mutants]
    return " ".join(filter(None, found))


def test_a_reader_that_skips_checksums_is_found_out(fuzzer, tmp_path, monkeypatch):
    found = problems(
        fuzzer,
        range(0, 300, 2),
        tmp_path,
        lambda: monkeypatch.setattr(File, "_unlike", lambda self, slots: []),
    )
    assert "silently wrong" in found


def test_a_reader_that_trusts_offsets_is_found_out(fuzzer, tmp_path, monkeypatch):
    def trusting(edges, base, counts):
        return edges[base + counts].astype("int64")

    found = problems(
        fuzzer,
        range(1, 1400, 2),
        tmp_path,
        lambda: monkeypatch.setattr(layout, "last_edges", trusting),
    )
    assert "pyarrow: " in found or "Error(" in found
