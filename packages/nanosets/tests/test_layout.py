"""Damaged and forged buffers of every type: right values or the one error, never another."""

import contextlib
import random
import struct
import tracemalloc
import zlib
from datetime import UTC, datetime

import numpy as np
import pytest

from nanorlhf.nanosets import CorruptFileError, SchemaError, Writer, reader
from nanorlhf.nanosets.build import build
from nanorlhf.nanosets.column import Column
from nanorlhf.nanosets.convert import convert
from nanorlhf.nanosets.layout import MAX_WEIGHTLESS, lists_weightless, weightless
from nanorlhf.nanosets.reader import File
from nanorlhf.nanosets.types import parse

FEATURES = {
    "bin": "binary",
    "day": "date32",
    "time": "timestamp[us, UTC]",
    "half": "bfloat16",
    "large": "large_list<int16>",
    "pair": "fixed_list<utf8, 2>",
    "image": "tensor<uint8, 2, 2>",
    "word": "dictionary<utf8>",
    "words": "list<dictionary<binary>>",
    "nulls": "list<null>",
}
VALUES = {
    "bin": [b"a", None, b""],
    "day": [np.datetime64(i, "D").item() for i in range(3)],
    "time": [datetime(2024, 1, 1, tzinfo=UTC), None, datetime(1900, 1, 1, tzinfo=UTC)],
    "half": [0.5, None, -1.0],
    "large": [[1, 2], None, [3]],
    "pair": [["a", None], None, ["", "b"]],
    "image": [[[1, 2], [3, 4]], None, [[5, 6], [7, 8]]],
    "word": ["x", None, "\u00e9"],
    "words": [[b"\xff", b"y"], [], [b"y", None]],
    "nulls": [[None], [], [None, None]],
}


def read(path, **how):
    file = File(path, **how)
    return {name: list(Column.of_file(file, name)) for name in file.schema}


@pytest.fixture
def make(tmp_path):
    def write(path=tmp_path / "a.nano", features=FEATURES, values=VALUES, **how):
        with Writer(
            path, features=features, checksum="crc32", **{"chunk_rows": 2, **how}
        ) as writer:
            writer.write_batch(values)
        return path

    return write


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("io", ["mmap", "pread", "ram"])
def test_flipped_bytes_are_right_or_refused(compression, io, make, plain, tmp_path):
    data = make(compression=compression).read_bytes()
    mutant, draw, refused = tmp_path / "mutant.nano", random.Random(0), 0
    for _ in range(250):
        flipped = bytearray(data)
        for _ in range(draw.choice([1, 1, 4])):
            flipped[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        mutant.write_bytes(flipped)
        with contextlib.suppress(CorruptFileError):
            read(mutant, io=io)  # the values may be wrong, but nothing else is raised
        try:
            assert plain(read(mutant, io=io, verify=True)) == VALUES
        except CorruptFileError:
            refused += 1
    assert refused > 80  # what remains is padding


def replaced(path, good, bad):
    """Change the only place where a buffer stands."""
    data = path.read_bytes()
    assert data.count(good) == 1
    path.write_bytes(data.replace(good, bad))
    return path


@pytest.mark.parametrize(
    ("dtype", "values", "good", "bad", "message"),
    [
        ("large_list<int8>", [[1], [2, 3]], (0, 1, 3), (0, 5, 3), "run backwards"),
        ("large_list<int8>", [[1], [2, 3]], (0, 1, 3), (0, 1, 4), "data has the wrong size"),
        ("large_list<int8>", [[1], [2, 3]], (0, 1, 3), (0, 1, 2**62), "data has the wrong size"),
        ("large_list<int8>", [[1], [2, 3]], (0, 1, 3), (0, 1, 2**62 + 1), "run backwards"),
        ("large_list<int64>", [[1], [2, 3]], (0, 1, 3), (0, 1, 2**61), "data has the wrong size"),
        ("large_list<null>", [[], [None] * 3], (0, 0, 3), (0, 0, 2**40), "which take no bytes"),
        ("large_list<struct<>>", [[], [{}] * 3], (0, 0, 3), (0, 0, 2**40), "which take no bytes"),
    ],
)
def test_large_offsets_that_lie_are_refused_without_verify(dtype, values, good, bad, message, make):
    path = make(features={"x": dtype}, values={"x": values})
    replaced(path, struct.pack("<3q", *good), struct.pack("<3q", *bad))
    tracemalloc.start()
    with pytest.raises(CorruptFileError, match=f"column 'x': .*{message}"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("bad", [(0, 2, 0, 1), (0, -1, 0, 1), (2**31 - 1, 1, 0, 1)])
def test_codes_that_name_no_value_are_refused_without_verify(bad, make):
    values = {"x": ["aa", "bb", "aa", "bb"]}
    path = make(features={"x": "dictionary<utf8>"}, values=values, chunk_rows=9)
    replaced(path, struct.pack("<4i", 0, 1, 0, 1), struct.pack("<4i", *bad))
    with pytest.raises(
        CorruptFileError, match="column 'x': codes of chunk 0 name none of 2 values"
    ):
        read(path)


def test_text_of_a_dictionary_that_is_not_utf8_is_refused_without_verify(make):
    path = make(features={"x": "dictionary<utf8>"}, values={"x": ["first", "second"]})
    replaced(path, b"firstsecond", b"first\x80econd")
    with pytest.raises(CorruptFileError, match="'x': dictionary 0: a string is not UTF-8"):
        read(path)
    whole = make(features={"x": "dictionary<utf8>"}, values={"x": ["a\u00e9", "b"]})
    # Every byte stands in a character, but a string starts inside of one.
    replaced(whole, struct.pack("<3i", 0, 3, 4), struct.pack("<3i", 0, 2, 4))
    with pytest.raises(CorruptFileError, match="dictionary 0: a string is not UTF-8"):
        read(whole)


def test_a_fixed_list_whose_elements_overflow_or_weigh_nothing_is_refused(make):
    for old, new, message in (
        ("tensor<uint8, 2, 2>", "fixed_list<uint8, 2147483647>", "data has the wrong size"),
        ("tensor<uint8, 2, 2>", "tensor<uint8, 2147483647>", "data has the wrong size"),
        ("fixed_list<null, 1>", "fixed_list<null, 2147483647>", "which take no bytes"),
        (
            "fixed_list<fixed_list<null, 1>, 1>",
            "fixed_list<fixed_list<null, 2147483647>, 2147483647>",
            "which take no bytes",
        ),
        (
            "fixed_list<fixed_list<fixed_list<int8, 1>, 1>, 1>",
            "fixed_list<fixed_list<fixed_list<int8, 2147483647>, 2147483647>, 2147483647>",
            "elements of a fixed_list",
        ),
    ):
        values = [None] if "null" in old else [np.ones((2, 2), np.uint8)]
        values = [np.ones((1, 1, 1), np.int8)] if "int8, 1" in old else values
        path = make(features={"x": old}, values={"x": values})
        forge_footer(path, old.encode(), new.encode())
        assert str(File(path).schema["x"]) == new
        with pytest.raises(CorruptFileError, match=message):
            read(path)


def forge_footer(path, old, new):
    """Rewrite a word of the footer, with checksums that match."""
    data = path.read_bytes()
    start, size = struct.unpack_from("<QQ", data, len(data) - 64)
    raw = data[start : start + size].replace(old, new)
    assert raw != data[start : start + size]
    directory_crc = struct.unpack_from("<I", data, len(data) - 64 + 28)[0]
    end = start + len(raw) + 64
    checked = struct.pack("<QQQII", start, len(raw), end, zlib.crc32(raw), directory_crc)
    magic = data[:8]
    tail = checked + struct.pack("<I20x8s", zlib.crc32(checked), magic)
    path.write_bytes(data[:start] + raw + tail)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"rows":2,"slots":[', b'"rows":3,"slots":[', "'x': offsets has the wrong size"),
        (b'"rows":2,"slots":[[', b'"rows":2,"slots":[[1.5,', "lies at something that is no number"),
        (b'"rows":2,"slots":[[', b'"rows":2,"slots":[[0,', "slot is not 3 numbers"),
        (
            b'"rows":2,"slots":[[-1,-1,-1],[',
            b'"rows":2,"slots":[[-1,-1,-1],[1',
            "multiple of 64|data",
        ),
        (b'"slots":[[-1,-1,-1],', b'"slots":[[', "footer: "),
    ],
)
def test_a_dictionary_that_the_footer_misplaces_is_refused(old, new, message, make):
    path = make(features={"x": "dictionary<utf8>"}, values={"x": ["first", "second"]})
    forge_footer(path, old, new)
    with pytest.raises(CorruptFileError, match=message):
        read(path)


def test_a_list_of_nulls_longer_than_a_reader_allows_is_split_or_refused(tmp_path):
    half = MAX_WEIGHTLESS // 2 + 1
    with Writer(tmp_path / "a.nano") as writer:
        writer.write_batch({"x": [[None] * half, [None] * half]})
    file = File(tmp_path / "a.nano", verify=True)
    assert file.chunk_rows.tolist() == [1, 1]
    assert Column.of_file(file, "x").lengths().tolist() == [half, half]
    match = f"a list of nulls holds {2 * half} values that take no bytes, a file {MAX_WEIGHTLESS}"
    with pytest.raises(SchemaError, match=match), Writer(tmp_path / "a.nano") as writer:
        writer.write_batch({"x": build([[None] * (2 * half)])})


@pytest.mark.parametrize(
    ("dtype", "value", "weight"),
    [
        ("list<null>", [None, None], 2),
        ("large_list<null>", [None, None], 2),
        ("fixed_list<null, 2>", [None, None], 2),
        ("list<struct<>>", [{}, {}], 2),
        ("list<fixed_list<utf8, 0>>", [[], []], 2),
        ("list<list<null>>", [[None], [None]], 2),
        ("fixed_list<list<null>, 1>", [[None, None]], 2),
        ("large_list<list<null>>", [[None, None]], 2),
        ("struct<a: int8, b: list<null>>", {"a": 1, "b": [None, None]}, 2),
        ("list<struct<a: null>>", [{"a": None}] * 2, 2),
        ("list<int8>", [1, 2], 0),
        ("list<struct<a: null, b: bool>>", [{"a": None, "b": True}], 0),
        ("list<utf8>", ["a"], 0),
        ("null", None, 0),
        ("fixed_list<fixed_list<bool, 1>, 2>", [[True], [False]], 0),
    ],
)
def test_types_tell_whether_lists_may_hold_what_takes_no_bytes(dtype, value, weight):
    array = convert(build([value]), parse(dtype))
    assert weightless(array) == weight
    assert lists_weightless(array.dtype) == (weight > 0)


def test_a_tensor_with_a_null_inside_is_refused(make):
    path = make(features={"x": "fixed_list<int8, 2>"}, values={"x": [[1, None]]})
    forge_footer(path, b"fixed_list<int8, 2>", b"tensor<int8, 2>")
    with pytest.raises(CorruptFileError, match="an element of a tensor is null"):
        read(path)


def test_chunks_that_are_read_are_kept_up_to_a_limit(make, monkeypatch):
    monkeypatch.setattr(reader, "CACHE_BYTES", 200)
    path = make(features={"x": "int64"}, values={"x": list(range(100))}, chunk_rows=10)
    file = File(path, io="pread")
    assert list(Column.of_file(file, "x")) == list(range(100))
    assert len(file._chunks) == 2
    assert file._chunks.size_bytes == 160
    first = file.chunk("x", 0)
    assert file.chunk("x", 0) is first
    file.chunk("x", 1)
    file.chunk("x", 0)
    file.chunk("x", 2)
    assert file.chunk("x", 0) is first  # the one used least recently went
