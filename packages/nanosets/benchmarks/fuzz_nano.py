"""Damaged ``.nano`` files, many of them: what reading each of them does.

::

    uv run python packages/nanosets/benchmarks/fuzz_nano.py --count 20000 --seed 0

A corpus of small files (every type, both checksums, compressed or not, appended to, several
chunks) is damaged at random, and every mutant is read with and without ``verify``, by mmap, pread
and into RAM, in processes of their own, so that a crash is a finding and not the end.

Half of the mutants are blind: bits, cuts, copies. Reading one with ``verify`` has to give what was
written or ``CorruptFileError``. The other half are forged: the footer, directory, trailer or a
buffer is changed and every checksum made to match, so that the checks behind them are reached.
Whatever those say is no lie then, but it has to be sound: columns of equal length, which pyarrow's
full validation accepts. And no mutant may cost more memory than a multiple of its size.
"""

import argparse
import faulthandler
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from nano_mutants import TYPES, Mutant, mutant_of

from nanorlhf.nanosets import CorruptFileError, Dataset, SchemaError, Writer

HANG_S = 30
"""Seconds after which reading one mutant counts as a hang."""
BASE_BYTES = 96 << 20
"""Growth of a process that says nothing; more than that plus the next is a finding."""
PER_BYTE = 4096
"""Bytes of memory for one of the file: zstd's 256, times what a Python value takes for its byte."""
ADDRESS_BYTES = 1 << 30
"""Address space that a process may add, so that what is asked for and never touched shows too."""
FEW_ROWS = 1 << 12
"""Rows up to which all are read; columns of nulls take no bytes, so there may be any number."""


class Finding(NamedTuple):
    """One mutant that did what no file may do."""

    number: int
    kind: str
    problem: str


def write_corpus(folder: Path) -> None:
    """Write a file of each type, and files of several, and beside each what it holds."""
    how: list[dict[str, Any]] = [
        {"checksum": checksum, "compression": compression}
        for checksum in ("crc32", "xxh3_64")
        for compression in (None, "zstd")
    ]
    names = list(TYPES)
    groups = [[name] for name in names] + [names[i::5] for i in range(5)] + [["list<int32>"]] * 2
    for number, group in enumerate(groups):
        path = folder / f"{number:02}.nano"
        features = {f"c{i}": name for i, name in enumerate(group)}
        long = 300 if number == len(groups) - 1 else 7
        columns = {f"c{i}": (TYPES[n] * long)[:long] for i, n in enumerate(group)}
        encoding = how[number % 4]
        with Writer(path, features=features, chunk_rows=3 if long < 10 else 256, **encoding) as w:
            w.write_batch(columns)
        contents = [content(path, verify=True)]
        if number % 3 == 0:
            with Writer(path, append=True) as writer:
                writer.write_batch({name: values[:2] for name, values in columns.items()})
            contents.append(content(path, verify=True))
        path.with_suffix(".json").write_text(json.dumps(contents))


def content(path: Path, **how: Any) -> str:
    """Return what a file holds, read every way a dataset has."""
    ds = Dataset.from_file(path, **how)
    if len(ds) > FEW_ROWS:
        return repr([plain(ds[i]) for i in (0, len(ds) // 2, -1)])
    rows = plain(ds.to_list())
    if any(len(column) != len(rows) for column in ds.columns.values()):
        raise AssertionError(f"columns of {[len(c) for c in ds.columns.values()]} rows")
    some = list(range(len(ds)))[:: max(1, len(ds) // 3)][::-1]
    picked = plain(ds.select(some).to_list())
    if repr(picked) != repr([rows[i] for i in some]) or repr(plain([ds[i] for i in some])) != repr(
        picked
    ):
        raise AssertionError(f"rows {some} differ when they are picked")
    if repr([row for block in ds.blocks() for row in plain(block.pylist())]) != repr(rows):
        raise AssertionError("rows differ when they are read block by block")
    return repr((str(ds.schema), rows))


def plain(value: Any) -> Any:
    """Return arrays as lists, all the way down."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def problem_of(mutant: Mutant, path: Path, io: str, outcomes: Counter[str]) -> str | None:
    """Return what is wrong with how a mutant is read, None for nothing."""
    path.unlink(missing_ok=True)  # quicker than to empty it, for which ext4 waits for the disk
    path.write_bytes(mutant.data)
    for verify in (True, False):
        try:
            found = content(path, verify=verify, io=io)
        except CorruptFileError as error:
            outcomes[f"{'verified' if verify else 'unverified'}: refused"] += 1
            if error.path != str(path) or not error.where:
                return f"{error!r} does not name the file and the place"
            continue
        except SchemaError as error:
            if "no time zone that this machine knows" in str(error):
                continue  # a type that is right, on another machine
            return f"verify={verify} io={io}: {error!r}"
        except Exception as error:  # noqa: BLE001 - any other is what this looks for
            return f"verify={verify} io={io}: {error!r}"
        same = found in mutant.contents
        outcomes[f"{'verified' if verify else 'unverified'}: {'same' if same else 'other'}"] += 1
        if verify and not same and not mutant.forged:
            return f"io={io}: silently wrong: {found[:300]}"
        if verify and not same:
            problem = arrow_problem(path)
            if problem is not None:
                return f"io={io}: {problem}"
    return None


def arrow_problem(path: Path) -> str | None:
    """Return what pyarrow finds wrong with a file that was read."""
    ds = Dataset.from_file(path)
    if len(ds) > FEW_ROWS:
        return None
    try:
        # As pa.table(ds), which first imports pandas.
        pa.RecordBatchReader.from_stream(ds).read_all().validate(full=True)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
        return f"pyarrow: {error!r}"
    return None


def work(folder: Path, seed: int, start: int, stop: int) -> None:
    """Read mutants ``start .. stop``; print the number of each, and what is wrong with it."""
    corpus = read_corpus(folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_BYTES, resource.RLIM_INFINITY))
    outcomes: Counter[str] = Counter()
    path = folder / f"mutant-{os.getpid()}.nano"
    peak = _peak_bytes()
    for number in range(start, stop):
        print(json.dumps({"at": number}), flush=True)
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        mutant = mutant_of(corpus, seed, number)
        problem = problem_of(mutant, path, ("mmap", "pread", "ram")[number // 2 % 3], outcomes)
        grown = _peak_bytes() - peak
        if problem is None and grown > BASE_BYTES + PER_BYTE * len(mutant.data):
            problem = f"takes {grown >> 20} MiB for a file of {len(mutant.data)} bytes"
            peak = _peak_bytes()
        if problem is not None:
            print(json.dumps({"found": [number, mutant.kind, problem]}), flush=True)
    faulthandler.cancel_dump_traceback_later()
    path.unlink(missing_ok=True)
    print(json.dumps({"outcomes": outcomes}), flush=True)


def read_corpus(folder: Path) -> list[tuple[bytes, list[str]]]:
    """Return the files of ``write_corpus`` and what each may hold."""
    return [
        (path.read_bytes(), json.loads(path.with_suffix(".json").read_text()))
        for path in sorted(folder.glob("[0-9][0-9].nano"))
    ]


def _peak_bytes() -> int:
    # Of this process alone: ru_maxrss begins with what the process that started it had.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def fuzz(count: int, *, seed: int = 0, folder: Path) -> tuple[list[Finding], Counter[str]]:
    """Return what was found among ``count`` mutants, and how often reading ended in which way.

    A process that dies is a finding; another goes on behind the mutant that killed it.
    """
    write_corpus(folder)
    findings: list[Finding] = []
    outcomes: Counter[str] = Counter()
    start = 0
    while start < count:
        command = [sys.executable, "-W", "error", __file__, "--work", str(folder), str(start)]
        command += ["--count", str(count), "--seed", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in map(json.loads, done.stdout.splitlines()):
            start = line.get("at", start)
            outcomes.update(line.get("outcomes", {}))
            findings += [Finding(*line["found"])] if "found" in line else []
        if done.returncode == 0:
            break
        problem = f"the process ended with {done.returncode}: {done.stderr[-1500:]}"
        findings.append(Finding(start, "crash", problem))
        start += 1
    return findings, outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description="Read damaged .nano files and say what happens.")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the mutants that found something")
    parser.add_argument("--work", nargs=2, metavar=("CORPUS", "START"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(Path(asked.work[0]), asked.seed, int(asked.work[1]), asked.count)
        return
    with tempfile.TemporaryDirectory() as folder:
        findings, outcomes = fuzz(asked.count, seed=asked.seed, folder=Path(folder))
        for finding in findings:
            print(*finding, sep="\n    ")
            if asked.keep:
                asked.keep.mkdir(parents=True, exist_ok=True)
                mutant = mutant_of(read_corpus(Path(folder)), asked.seed, finding.number)
                (asked.keep / f"{asked.seed}-{finding.number}.nano").write_bytes(mutant.data)
    for name, times in sorted(outcomes.items()):
        print(f"{name:24} {times:8}")
    print(f"{asked.count} mutants, {len(findings)} findings")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
