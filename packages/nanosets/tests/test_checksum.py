import sys
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanorlhf.nanosets import CorruptFileError, Writer
from nanorlhf.nanosets.aside import ASIDE_BYTES, SPAN_BYTES, Aside, spans_of
from nanorlhf.nanosets.checksum import OF_PIECES, chosen, crc32_joined, crc32_of, function_of
from nanorlhf.nanosets.column import Column
from nanorlhf.nanosets.reader import File
from nanorlhf.nanosets.slabs import SLAB_BYTES


def test_auto_is_the_fastest_that_is_installed(monkeypatch):
    from nanorlhf.nanosets import checksum

    assert chosen("crc32") == "crc32"
    monkeypatch.setattr(checksum, "find_spec", lambda name: name == "xxhash" or None)
    assert chosen("auto") == "xxh3_64"
    monkeypatch.setattr(checksum, "find_spec", lambda name: None)
    assert chosen("auto") == "crc32"
    with pytest.raises(ValueError, match="checksum='md5' is none of auto, crc32, xxh3_64"):
        chosen("md5")


def test_a_missing_package_is_named_and_stops_verifying_but_not_reading(tmp_path, monkeypatch):
    pytest.importorskip("xxhash")
    with Writer(tmp_path / "a.nano", checksum="xxh3_64") as writer:
        writer.write({"x": 7})
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(ImportError, match="needs xxhash; pip install xxhash"):
        chosen("xxh3_64")
    assert list(Column.of_file(File(tmp_path / "a.nano"), "x")) == [7]
    with pytest.raises(ImportError, match="needs xxhash"):
        File(tmp_path / "a.nano", verify=True)


def test_checksums_are_those_of_their_definition_as_signed_numbers():
    xxhash = pytest.importorskip("xxhash")
    for data in (b"", b"a", bytes(range(256)) * 500):
        assert function_of("crc32")(data) == zlib.crc32(data)
        found = function_of("xxh3_64")(data)
        assert found % 2**64 == xxhash.xxh3_64(data).intdigest()
        assert -(2**63) <= found < 2**63


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_crc32s_of_parts_join_to_that_of_the_whole(parts):
    found = crc32_joined(list(map(zlib.crc32, parts)), list(map(len, parts)))
    assert found == zlib.crc32(b"".join(parts))


@given(st.lists(st.binary(max_size=9), max_size=9), st.integers(1, 20))
def test_spans_are_the_same_bytes_each_but_the_last_of_one_size(pieces, size):
    spans = [b"".join(span) for span in spans_of(list(map(memoryview, pieces)), size)]
    assert b"".join(spans) == b"".join(pieces)
    assert all(len(span) == size for span in spans[:-1])
    assert all(0 < len(span) <= size for span in spans[-1:])


@pytest.mark.parametrize("is_quick", [True, False])
def test_spans_that_the_thread_has_not_begun_are_computed_by_who_asks(is_quick, monkeypatch):
    data = np.random.default_rng(0).integers(0, 256, 2 * SPAN_BYTES + 5, np.uint8).data
    begun, free, own = threading.Event(), threading.Event(), []

    def of(span):
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            free.wait(60)
        else:
            own.append(sum(map(len, span)))
            if len(own) == 2:
                free.set()
        return crc32_of(span)

    monkeypatch.setitem(OF_PIECES, "crc32", of)
    if is_quick:
        free.set()
    aside = Aside()
    checksum = aside.begin("crc32", [data])
    assert begun.wait(60)
    if is_quick:
        aside._thread.submit(int).result(60)  # it is through with all that it was given before
    assert checksum() == zlib.crc32(data)
    assert own == ([] if is_quick else [5, SPAN_BYTES])
    aside.close()


@pytest.mark.parametrize("checksum", ["crc32", "xxh3_64"])
@pytest.mark.parametrize("size", [10, SLAB_BYTES // 8, SLAB_BYTES // 2 + 10, "aside", "spans"])
def test_each_buffer_has_the_checksum_of_its_bytes_in_the_directory(checksum, size, tmp_path):
    path = tmp_path / "a.nano"
    bytes_of = {"aside": ASIDE_BYTES[checksum] + 80, "spans": 3 * SPAN_BYTES + 80}
    size = bytes_of[size] // 8 if size in bytes_of else size
    with Writer(path, checksum=checksum, chunk_rows=size) as writer:
        writer.write_batch({"x": np.arange(2 * size)})
    file, data = File(path, verify=True), path.read_bytes()
    for entry in file.entries.tolist():
        offset, length, found = entry[4:7]
        assert found == function_of(checksum)(data[offset : offset + length])
    damaged = bytearray(data)
    damaged[offset] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CorruptFileError, match="'x': data of chunk 1: checksum does not match"):
        File(path, verify=True)
