"""Ways to damage a ``.nano`` file; see ``fuzz_nano``.

A blind change knows nothing of the format. A forged one takes the file apart, changes something
and puts it together with every checksum right.
"""

import copy
import datetime
import json
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

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


class Mutant(NamedTuple):
    """A damaged file, and which contents it may have without being forged."""

    data: bytes
    contents: list[str]
    kind: str
    forged: bool


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
            alike = [
                f"fixed_list<{old}, 2>",
                old.replace(", 3>", ", 2147483647>"),
                "list<struct<>>",
            ]
            alike += [old.replace("list<", "large_list<"), old.replace("int", "uint")]
            names = rng.choice([alike, list(TYPES)])
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
