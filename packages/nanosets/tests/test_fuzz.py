"""Mutants of small files: right data or ``CorruptFileError``, never more memory, never a crash."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

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
    pytest.importorskip("pyarrow", reason="pyarrow judges what is read of a forged file")
    pytest.importorskip("xxhash", reason="half of the files have xxh3_64 checksums")
    pytest.importorskip("zstandard", reason="half of the files are compressed")
    spec = importlib.util.spec_from_file_location("fuzz_nano", FUZZER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_a_reader_that_skips_checksums_is_found_out(fuzzer, tmp_path, monkeypatch):
    monkeypatch.setattr(File, "_unlike", lambda self, slots: [])
    fuzzer.write_corpus(tmp_path)
    corpus = fuzzer.read_corpus(tmp_path)
    mutants = [fuzzer.mutant_of(corpus, 0, number) for number in range(0, 300, 2)]
    path = tmp_path / "mutant.nano"
    problems = [fuzzer.problem_of(mutant, path, "mmap", Counter()) for mutant in mutants]
    assert any("silently wrong" in problem for problem in problems if problem)
