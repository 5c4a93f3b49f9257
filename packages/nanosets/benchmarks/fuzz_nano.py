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
import copy
import datetime
import faulthandler
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from nanorlhf.nanosets import CorruptFileError, Dataset, SchemaError, Writer
from nanorlhf.nanosets.checksum import function_of
from nanorlhf.nanosets.format import (
    COMMITTED_AT,
    HEADER,
    TRAILER,
    Trailer,
    decode_header,
    decode_trailer,
    encode_committed,
    encode_trailer,
    padding,
)
from nanorlhf.nanosets.types import NUMBERS

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
INTERESTING = [0, 1, -1, 2, 63, 64, 65, 127, 128, 255, 256, 2**31 - 1, 2**31, 2**32, -(2**31)]
INTERESTING += [2**62, 2**62 + 1, 2**63 - 1, -(2**63), 1 << 20, (1 << 20) + 1, 2**61, 2**60 + 64]

STAMP = datetime.datetime(2020, 1, 2, 3, 4, 5)
TYPES: dict[str, list[Any]] = {
    "null": [None, None],
    "bool": [True, None, False],
    **{name: [1, None, 3] for name in NUMBERS},
    "utf8": ["a\u00e9", None, "", "word"],
    "binary": [b"\0x", None, b""],
    "date32": [datetime.date(2024, 2, 29), None],
    "timestamp[s]": [STAMP, None],
    "timestamp[ms, +05:30]": [STAMP.replace(tzinfo=datetime.UTC), None],
    "timestamp[us, UTC]": [STAMP.replace(tzinfo=datetime.UTC)],
    "timestamp[ns]": [STAMP, None],
    "list<int32>": [[1, None], None, [], [2, 3, 4]],
    "large_list<utf8>": [["a", None], None, []],
    "list<null>": [[None, None], None],
    "fixed_list<int8, 2>": [[1, 2], None, [3, None]],
    "fixed_list<null, 3>": [[None] * 3],
    "fixed_list<utf8, 0>": [[]],
    "tensor<float32, 2, 3>": [np.arange(6.0).reshape(2, 3), None],
    "tensor<bool, 3>": [[True, False, True]],
    "struct<a: int8, b: list<utf8>>": [{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}],
    "struct<>": [{}, None],
    "dictionary<utf8>": ["x", None, "y", "x"],
    "dictionary<timestamp[us]>": [STAMP],
    "list<dictionary<int16>>": [[5], None, [6, 5, None]],
    "list<list<struct<a: list<bool>>>>": [[[{"a": [True, None]}], None], None, []],
}


class Finding(NamedTuple):
    """One mutant that did what no file may do."""

    number: int
    kind: str
    problem: str


class Mutant(NamedTuple):
    """A damaged file, and which contents it may have without being forged."""

    data: bytes
    contents: list[str]
    kind: str
    forged: bool


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
    return repr((str(ds.schema), rows))


def plain(value: Any) -> Any:
    """Return arrays as lists, all the way down."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


class Parts:
    """A file taken apart, to be put together with other content and right checksums."""

    def __init__(self, data: bytes) -> None:
        self.committed = decode_header(data[: HEADER.size]).committed
        end = self.committed or len(data)
        self.trailer = decode_trailer(data[end - TRAILER.size : end], end)
        self.body = bytearray(data[: self.trailer.footer])
        footer = data[self.trailer.footer : self.trailer.footer + self.trailer.footer_bytes]
        self.footer: Any = json.loads(footer)
        self.start, size = self.footer["directory"]
        self.directory = np.frombuffer(data[self.start : self.start + size], "<i8").copy()
        self.checksum = function_of(self.footer["checksum"])

    def slots(self) -> list[Any]:
        """Return views of the directory and lists of the footer: offset, bytes, checksum, more."""
        width = 3 + (self.footer["compression"] is not None)
        entries = self.directory.reshape(self.footer["chunks"], -1)
        found: list[Any] = [
            entry[at : at + width]
            for entry in entries
            for at in range(1, len(entry), width)
            if entry[at + 1] > 0
        ]
        apart = (slot for values in self.footer["dictionaries"] for slot in values["slots"])
        return found + [slot for slot in apart if slot[1] > 0]

    def whole(self, raw: bytes | None = None, **trailer: int) -> bytes:
        """Return the file, every checksum right."""
        raw = json.dumps(self.footer).encode() if raw is None else raw
        directory = self.directory.tobytes()
        self.body[self.start : self.start + len(directory)] = directory
        size = len(self.body) + len(raw) + padding(len(raw)) + TRAILER.size
        crcs = zlib.crc32(raw), zlib.crc32(directory)
        told = Trailer(len(self.body), len(raw), size, *crcs)._replace(**trailer)
        if self.committed:
            self.body[COMMITTED_AT : COMMITTED_AT + 12] = encode_committed(size)
        return bytes(self.body) + raw + bytes(padding(len(raw))) + encode_trailer(told)


def flip_bits(rng: random.Random, data: bytes, other: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def set_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    out, at = bytearray(data), rng.randrange(len(data)) // 4 * 4
    width = rng.choice([1, 4, 8])
    out[at : at + width] = (rng.choice(INTERESTING) % 256**width).to_bytes(width, "little")
    return bytes(out)


def cut(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def extend(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data + rng.choice([bytes(64), data[-64:], other, rng.randbytes(rng.randrange(1, 99))])


def splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + other[rng.choice([at, rng.randrange(len(other))]) :]


def duplicate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start, stop, to = sorted(rng.randrange(len(data)) for _ in range(3))
    if rng.random() < 0.5:
        return data[:to] + data[start:stop] + data[to:]
    return data[:to] + data[start:stop] + data[to + stop - start :]


def zero(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start = rng.randrange(len(data))
    size = min(rng.choice([1, 8, 64, 500]), len(data) - start)
    return data[:start] + bytes(size) + data[start + size :]


def forge_json(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Replace, remove, double or exchange what stands somewhere in the footer."""
    parts = Parts(data)
    for _ in range(rng.choice([1, 1, 2])):
        places = list(_places(parts.footer))
        holder, key = rng.choice(places)
        old = holder[key]
        if isinstance(old, str) and rng.random() < 0.5:
            holder[key] = rng.choice([*TYPES, "crc32", "xxh3_64", "zstd", "", "c0", "list<" * 40])
        elif isinstance(old, int) and rng.random() < 0.7:
            holder[key] = rng.choice([*INTERESTING, old + 1, old - 1, old + 64, old * 2])
        elif isinstance(old, list) and old and rng.random() < 0.5:
            old.insert(rng.randrange(len(old)), copy.deepcopy(rng.choice(old)))
        elif rng.random() < 0.3:
            del holder[key]
        else:
            there, at = rng.choice(places)
            holder[key] = rng.choice([None, True, 1.5, "1", [], {}, [[]], copy.deepcopy(there[at])])
    try:
        return parts.whole()
    except ValueError:  # it now contains itself
        return data


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    for key, inner in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def forge_type(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Give a column the type of other buffers, or of as many."""
    parts = Parts(data)
    for column in parts.footer["schema"]:
        if rng.random() < 0.6:
            old = column["type"]
            names = [*TYPES, f"fixed_list<{old}, 2>", "tensor<int8, 2147483647>"]
            names += [old.replace("list<", "large_list<"), old.replace("int", "uint")]
            names += ["fixed_list<fixed_list<null, 1048576>, 1048576>", "fixed_list<struct<>, 4096>"]
            column["type"] = rng.choice(names)
    return parts.whole()


def forge_text(rng: random.Random, data: bytes, other: bytes) -> bytes:
    parts = Parts(data)
    raw = json.dumps(parts.footer).encode()
    change = rng.choice([flip_bits, cut, duplicate, zero, splice])
    return parts.whole(change(rng, raw, b"[" * rng.choice([10, 100_000])) or b"{")


def forge_directory(rng: random.Random, data: bytes, other: bytes) -> bytes:
    parts = Parts(data)
    entries = parts.directory
    for _ in range(rng.choice([1, 1, 2, 5]) if len(entries) else 0):
        at = rng.randrange(len(entries))
        near = int(entries[at]) + rng.choice([-64, -8, -1, 1, 4, 8, 64])
        pick = rng.choice([*INTERESTING, near, near, near, int(rng.choice(entries.tolist()))])
        entries[at] = max(-(2**63), min(2**63 - 1, pick))
    return parts.whole()


def forge_rows(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Say that a chunk has more or fewer rows, in the directory and in the footer."""
    parts = Parts(data)
    if parts.footer["chunks"]:
        entries = parts.directory.reshape(parts.footer["chunks"], -1)
        chunk = rng.randrange(len(entries))
        old = int(entries[chunk, 0])
        new = rng.choice([old + 1, old - 1, old + 8, old * 9, 2**31 - 1, 2**20, 2**40, 5000])
        entries[chunk, 0] = new
        parts.footer["rows"] += new - old
    return parts.whole()


def forge_buffer(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Change bytes of a buffer, below the compression or above it."""
    parts = Parts(data)
    slots = parts.slots()
    for slot in rng.sample(slots, min(len(slots), rng.choice([1, 1, 3]))):
        at, size = int(slot[0]), int(slot[1])
        stored = bytes(parts.body[at : at + size])
        if len(slot) > 3 and slot[3] != size and rng.random() < 0.7:
            import zstandard

            inner = zstandard.ZstdDecompressor().decompress(stored)
            shrunk = zstandard.ZstdCompressor().compress(_changed(rng, inner))
            # What does not fit the room stays as it was.
            stored = shrunk.ljust(size, b"\0") if len(shrunk) <= size else stored
        else:
            stored = _changed(rng, stored)
        parts.body[at : at + size] = stored
        slot[2] = parts.checksum(stored)
    return parts.whole()


def _changed(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    width = rng.choice([w for w in (1, 1, 4, 8) if w <= len(out)])
    at = rng.randrange(len(out) // width) * width
    old = int.from_bytes(out[at : at + width], "little")
    new = rng.choice([*INTERESTING, old + 1, old - 1, old ^ 1 << rng.randrange(8 * width)])
    out[at : at + width] = (new % 256**width).to_bytes(width, "little")
    return bytes(out)


def forge_trailer(rng: random.Random, data: bytes, other: bytes) -> bytes:
    parts = Parts(data)
    name = rng.choice(["footer", "footer_bytes", "file_bytes"])
    near = getattr(parts.trailer, name) + rng.choice([-64, -1, 1, 64])
    return parts.whole(**{name: rng.choice([*INTERESTING, near, near, near]) % 2**64})


def forge_header(rng: random.Random, data: bytes, other: bytes) -> bytes:
    near = [rng.randrange(0, len(data) + 1, 64), len(data) - 1, len(data) + 64, len(data)]
    told = encode_committed(rng.choice([*INTERESTING, *near, *near]) % 2**64)
    out = data[:COMMITTED_AT] + told + data[COMMITTED_AT + len(told) :]
    return out if rng.random() < 0.7 else out + rng.randbytes(64)


Change = Callable[[random.Random, bytes, bytes], bytes]
BLIND: list[Change] = [flip_bits, flip_bits, set_bytes, cut, extend, splice, duplicate, zero]
FORGED: list[Change] = [forge_json, forge_json, forge_type, forge_text, forge_directory]
FORGED += [forge_directory, forge_rows, forge_buffer, forge_buffer, forge_trailer, forge_header]


def mutant_of(corpus: list[tuple[bytes, list[str]]], seed: int, number: int) -> Mutant:
    """Return mutant ``number``; the same for the same corpus, seed and number."""
    rng = random.Random(f"{seed} {number}")
    (data, contents), (other, more) = rng.choice(corpus), rng.choice(corpus)
    forged = number % 2 == 1
    changes = [rng.choice(FORGED if forged else BLIND)]
    if rng.random() < 0.2:  # a forged file that is also damaged, or one damaged twice
        changes.append(rng.choice(BLIND))
    for change in changes:
        data = change(rng, data, other) or b"\0"
    kind = " ".join(change.__name__ for change in changes)
    return Mutant(data, contents + more, kind, forged)


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
    """Read mutants ``start .. stop``; print what each did, a line before and one after a finding."""
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
        command = [sys.executable, __file__, "--work", str(folder), str(start)]
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
