import sys
import zlib

import numpy as np
import pytest

from nanorlhf.nanosets import CorruptFileError, Writer
from nanorlhf.nanosets.checksum import chosen, function_of
from nanorlhf.nanosets.column import Column
from nanorlhf.nanosets.reader import File
from nanorlhf.nanosets.sink import ASIDE_BYTES
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


@pytest.mark.parametrize("checksum", ["crc32", "xxh3_64"])
@pytest.mark.parametrize("size", [10, SLAB_BYTES // 8, SLAB_BYTES // 2 + 10, "aside"])
def test_each_buffer_has_the_checksum_of_its_bytes_in_the_directory(checksum, size, tmp_path):
    path = tmp_path / "a.nano"
    size = ASIDE_BYTES[checksum] // 8 + 10 if size == "aside" else size
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
