"""The bytes of a file, made and taken apart by hand: the format is what is written down."""

import json
import struct
import zlib

import numpy as np
import pytest

from nanorlhf.nanosets import Writer
from nanorlhf.nanosets.column import Column
from nanorlhf.nanosets.reader import File

MAGIC = b"\x89NANO\r\n\x1a"
ABSENT = [-1, -1, -1]


class Pen:
    """Writes padded buffers and remembers where they are."""

    def __init__(self):
        self.data = bytearray(struct.pack("<8sHHI16s32x", MAGIC, 1, 0, 0, bytes(range(16))))

    def put(self, buffer):
        at = len(self.data)
        self.data += buffer + bytes(-len(buffer) % 64)
        return [at, len(buffer), zlib.crc32(buffer)]

    def finish(self, schema, chunks):
        slots = len(chunks[0][1])
        flat = [n for rows, found in chunks for n in (rows, *(x for slot in found for x in slot))]
        directory = struct.pack(f"<{len(flat)}q", *flat)
        at, size, directory_crc = self.put(directory)
        footer = {
            "schema": [
                {"name": n, "type": t, "nullable": True, "meta": {}} for n, t in schema.items()
            ],
            "rows": sum(rows for rows, _ in chunks),
            "chunks": len(chunks),
            "slots": slots,
            "directory": [at, size],
            "checksum": "crc32",
            "compression": None,
            "metadata": {"by": "hand"},
            "writer": "test",
        }
        start, size, footer_crc = self.put(json.dumps(footer).encode())
        end = len(self.data) + 64
        checked = struct.pack("<QQQII", start, size, end, footer_crc, directory_crc)
        self.data += checked + struct.pack("<I20x8s", zlib.crc32(checked), MAGIC)


def test_a_file_of_version_1_0_written_by_hand_is_read(tmp_path):
    pen = Pen()
    ids = [pen.put(struct.pack("<2q", 1, 2)), pen.put(struct.pack("<q", 3))]
    text = [
        [pen.put(b"\x02"), pen.put(struct.pack("<3i", 0, 0, 2)), pen.put("\u00e9".encode())],
        [ABSENT, pen.put(struct.pack("<2i", 0, 1)), pen.put(b"x")],
    ]
    tokens = [
        [
            ABSENT,
            pen.put(struct.pack("<3i", 0, 2, 3)),
            ABSENT,
            pen.put(struct.pack("<3h", 7, 8, 9)),
        ],
        [pen.put(b"\x00"), pen.put(struct.pack("<2i", 0, 0)), ABSENT, pen.put(b"")],
    ]
    chunks = [(2 - c, [ABSENT, ids[c], *text[c], *tokens[c]]) for c in (0, 1)]
    pen.finish({"id": "int64", "text": "utf8", "tokens": "list<int16>"}, chunks)
    path = tmp_path / "old.nano"
    path.write_bytes(pen.data)
    for io in ("mmap", "pread", "ram"):
        file = File(path, verify=True, io=io)
        assert file.uuid == bytes(range(16))
        assert file.footer.metadata == {"by": "hand"}
        assert list(Column.of_file(file, "id")) == [1, 2, 3]
        assert list(Column.of_file(file, "text")) == [None, "\u00e9", "x"]
        found = list(Column.of_file(file, "tokens"))
        assert [v if v is None else v.tolist() for v in found] == [[7, 8], [9], None]
    with Writer(path, append=True) as writer:
        writer.write({"id": 4})
    assert list(Column.of_file(File(path, verify=True), "id")) == [1, 2, 3, 4]


def test_a_file_taken_apart_by_hand_holds_what_was_written(tmp_path):
    path = tmp_path / "a.nano"
    features = {"d": "dictionary<utf8>", "f": "fixed_list<int16, 2>", "l": "large_list<bool>"}
    with Writer(path, features=features, checksum="crc32") as writer:
        writer.write_batch({"d": ["x", None, "yy", "x"], "f": [[1, 2]] * 4, "l": [[True]] * 4})
    data = path.read_bytes()
    start, size, end, footer_crc, directory_crc, crc = struct.unpack_from(
        "<QQQIII", data, len(data) - 64
    )
    assert (end, crc) == (len(data), zlib.crc32(data[-64:-32]))
    raw = data[start : start + size]
    assert footer_crc == zlib.crc32(raw)
    footer = json.loads(raw)
    assert [column["type"] for column in footer["schema"]] == list(features.values())
    at, size = footer["directory"]
    assert directory_crc == zlib.crc32(data[at : at + size])
    rows, *entry = struct.unpack_from(f"<{size // 8}q", data, at)
    assert rows == 4

    def buffers(slots):
        for offset, length, checksum in slots:
            found = None if offset < 0 else data[offset : offset + length]
            assert found is None or zlib.crc32(found) == checksum
            assert offset < 0 or offset % 64 == 0
            yield found

    slots = [entry[i : i + 3] for i in range(0, len(entry), 3)]
    assert list(buffers(slots)) == [
        *(b"\x0d", struct.pack("<4i", 0, 0, 1, 0)),
        *(None, None, struct.pack("<8h", *[1, 2] * 4)),
        *(None, struct.pack("<5q", 0, 1, 2, 3, 4), None, b"\x0f"),
    ]
    (values,) = footer["dictionaries"]
    assert values["rows"] == 2
    assert list(buffers(values["slots"])) == [None, struct.pack("<3i", 0, 1, 3), b"xyy"]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 64])
def test_windows_of_a_file_are_views_of_it(length, tmp_path):
    values = {"i": np.arange(length), "b": [i % 3 == 0 for i in range(length)], "l": [[1]] * length}
    values["n"] = [None if i == 0 else i for i in range(length)]
    with Writer(tmp_path / "a.nano") as writer:
        writer.write_batch(values)
    file = File(tmp_path / "a.nano")
    for name in values:
        for buffer in file.chunk(name, 0).buffers():
            assert buffer is None or np.shares_memory(buffer, file._source.whole)
