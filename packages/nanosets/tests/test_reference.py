import json
import struct

import numpy as np
import pytest

from nanorlhf.nanosets import CorruptFileError, load_dataset
from nanorlhf.nanosets.reference import read_reference
from nanorlhf.nanosets.transcode import transcode


class Builder:
    """Writes a file by the published description, with the names that the reader assumes."""

    def __init__(self):
        self.blobs = b""
        self.buffers = []

    def buffer(self, values, dtype):
        raw = np.array(values, dtype).tobytes()
        self.buffers.append({"offset": len(self.blobs), "length": len(raw)})
        self.blobs += raw
        return len(self.buffers) - 1

    def bits(self, mask):
        return self.buffer(np.packbits(mask, bitorder="little"), "u1")

    def write(self, path, names, *batches):
        header = {
            "schema": {"fields": [{"name": name} for name in names]},
            "batches": [{"columns": list(columns)} for columns in batches],
            "buffers": self.buffers,
        }
        raw = json.dumps(header).encode()
        path.write_bytes(b"NANO0" + struct.pack("<I", len(raw)) + raw + self.blobs)
        return path


@pytest.fixture
def file(tmp_path):
    b = Builder()
    flag = {"type": "primitive", "dtype": "bool", "values": b.buffer([1, 0, 1], "?")}
    number = {"type": "primitive", "dtype": "int32", "values": b.buffer([1, 2, 3], "<i4")}
    number["validity"] = b.bits([1, 0, 1])
    text = {"type": "string", "offsets": b.buffer([0, 2, 2, 3], "<i4")}
    text["values"] = b.buffer(list("\u00e9x".encode()), "u1")
    items = {"type": "primitive", "dtype": "float64", "values": b.buffer([0.5, 1.5], "<f8")}
    lists = {"type": "list", "offsets": b.buffer([0, 1, 1, 2], "<i4"), "child": items}
    structs = {"type": "struct", "children": {"k": number}, "validity": b.bits([0, 1, 1])}
    views = {**text, "indices": b.buffer([2, 0], "<i4")}
    short = {"type": "primitive", "dtype": "int64", "values": b.buffer([7, 8], "<i8")}
    names = ["flag", "number", "text", "lists", "structs"]
    first = (flag, number, text, lists, structs)
    second = (
        {**flag, "indices": b.buffer([0, 1], "<i4")},
        short,
        views,
        *({**entry, "indices": b.buffer([1, 2], "<i4")} for entry in (lists, structs)),
    )
    return b, b.write(tmp_path / "old.nano", names, first, second)


def test_a_file_of_the_reference_converts(file, tmp_path, plain):
    _, path = file
    assert transcode(path, tmp_path / "new.nano") == 5
    ds = load_dataset(tmp_path / "new.nano", verify=True)
    assert {name: str(dtype) for name, dtype in ds.schema.items()} == {
        "flag": "bool",
        "number": "int64",
        "text": "utf8",
        "lists": "list<float64>",
        "structs": "struct<k: int32>",
    }
    assert plain(ds.to_dict()) == {
        "flag": [True, False, True, True, False],
        "number": [1, None, 3, 7, 8],
        "text": ["\u00e9", "", "x", "x", "\u00e9"],
        "lists": [[0.5], [], [1.5], [], [1.5]],
        "structs": [None, {"k": None}, {"k": 3}, {"k": None}, {"k": 3}],
    }


def test_no_other_command_reads_one(file):
    with pytest.raises(CorruptFileError, match="header: starts with b'NANO0"):
        load_dataset(file[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [2]}, r"has \['shape'\] or an unknown type"),
        ({"type": "tensor"}, r"has \[\] or an unknown type"),
        ({"dtype": "int8"}, "is none of bool, int32, int64, float32, float64"),
        ({"values": 99}, "IndexError"),
        ({"indices": 2}, "indices .* of 3 values"),
    ],
)
def test_what_is_not_described_is_refused(change, message, tmp_path):
    b = Builder()
    b.buffer([1, 2, 3], "<i4")
    b.buffer([1], "u1")
    b.buffer([5], "<i4")
    entry = {"type": "primitive", "dtype": "int32", "values": 0} | change
    path = b.write(tmp_path / "a.nano", ["a"], [entry])
    with pytest.raises(CorruptFileError, match=message):
        read_reference(path)


def test_a_file_cut_short_anywhere_is_refused(file, tmp_path):
    data = file[1].read_bytes()
    path = tmp_path / "cut.nano"
    for size in range(5, len(data), 7):
        path.write_bytes(data[:size])
        with pytest.raises(CorruptFileError, match="as a file of the reference"):
            read_reference(path)


@pytest.mark.parametrize("offsets", [[1, 1, 1, 3], [0, 2, 1, 3], [0, 1, 2, 9], [0, 1, 2]])
def test_offsets_that_do_not_fit_are_refused(offsets, tmp_path):
    b = Builder()
    entry = {
        "type": "string",
        "offsets": b.buffer(offsets, "<i4"),
        "values": b.buffer([65] * 3, "u1"),
    }
    path = b.write(tmp_path / "a.nano", ["a"], [entry])
    with pytest.raises(CorruptFileError, match="offsets do not run from 0 to 3"):
        read_reference(path)
