import struct
import sys

import numpy as np
import pytest

from nanorlhf.nanosets import CorruptFileError, Writer
from nanorlhf.nanosets.column import Column
from nanorlhf.nanosets.reader import File
from nanorlhf.nanosets.zstd import MAX_RATIO, Compressor, expand

zstandard = pytest.importorskip("zstandard")


def raw(data):
    return np.frombuffer(data, np.uint8)


@pytest.mark.parametrize("size", [0, 1, 64, 1000, 1_000_003])
def test_what_is_shrunk_expands_to_itself(size):
    noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    for data in (noise, noise // 64, np.zeros(size, np.uint8)):
        stored = Compressor().shrink(data)
        assert len(stored) <= size <= len(stored) * MAX_RATIO
        assert np.array_equal(expand(stored, size), data)


def test_what_does_not_shrink_is_stored_as_it_is():
    noise = np.random.default_rng(0).integers(0, 256, 1000, dtype=np.uint8)
    assert Compressor().shrink(noise) is noise


@pytest.mark.parametrize(
    ("stored", "size", "message"),
    [
        (b"1234", 3, "4 stored bytes cannot stand for 3"),
        (b"1234", 4 * MAX_RATIO + 1, "4 stored bytes cannot stand for"),
        (b"1234", 5, "zstd: "),
        (
            zstandard.compress(bytes(100)) + bytes(50),
            200,
            "frame says 100 bytes, the directory 200",
        ),
        (zstandard.compress(bytes(100))[:-1], 100, "zstd: "),
    ],
)
def test_what_does_not_expand_to_its_size_is_refused(stored, size, message):
    with pytest.raises(ValueError, match=message):
        expand(raw(stored), size)


def test_a_frame_that_hides_its_size_is_refused_before_anything_is_allocated():
    writer = zstandard.ZstdCompressor(write_content_size=False)
    with pytest.raises(ValueError, match="the compressed frame says"):
        expand(raw(writer.compress(bytes(10_000)) + bytes(100)), 10_000)


def test_a_compressed_file_is_smaller_and_reads_the_same_by_chunk(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 50, (500, 40)).astype(np.int64)
    sizes = {}
    for compression in (None, "zstd"):
        with Writer(tmp_path / "a.nano", compression=compression, chunk_rows=64) as writer:
            writer.write_batch({"tokens": tokens, "id": np.arange(500)})
        sizes[compression] = (tmp_path / "a.nano").stat().st_size
    assert sizes["zstd"] < sizes[None] / 3
    file = File(tmp_path / "a.nano", verify=True)
    column = Column.of_file(file, "tokens")
    assert len(column.parts) == 8
    picks = [499, 0, 63, 64, 200]
    assert np.array_equal(column.gather(picks).values.reshape(5, 40), tokens[picks])
    assert np.array_equal(Column.of_file(file, "id").numpy(), np.arange(500))


def test_a_decompressed_size_that_is_not_the_types_is_refused(tmp_path):
    with Writer(tmp_path / "a.nano", compression="zstd", checksum="crc32") as writer:
        writer.write_batch({"x": np.zeros(1000, np.int64)})
    file = File(tmp_path / "a.nano")
    entries = file.entries.ravel().tolist()
    assert entries[:6] == [1000, -1, -1, -1, -1, 64]
    assert entries[8] == 8000
    data = bytearray((tmp_path / "a.nano").read_bytes())
    at = file.footer.directory + 8 * 8
    import zlib

    data[at : at + 8] = struct.pack("<q", 8001)
    size = file.footer.directory_bytes
    crc = zlib.crc32(data[file.footer.directory : file.footer.directory + size])
    end = len(data) - 64
    struct.pack_into("<I", data, end + 28, crc)
    struct.pack_into("<I", data, end + 32, zlib.crc32(data[end : end + 32]))
    (tmp_path / "a.nano").write_bytes(data)
    with pytest.raises(CorruptFileError, match="'x': data has the wrong size"):
        list(Column.of_file(File(tmp_path / "a.nano"), "x"))


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    with Writer(tmp_path / "a.nano", compression="zstd", checksum="crc32") as writer:
        writer.write_batch({"x": np.zeros(1000, np.int64)})
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ImportError, match="needs zstandard; pip install zstandard"):
        Writer(tmp_path / "b.nano", compression="zstd")
    column = Column.of_file(File(tmp_path / "a.nano"), "x")
    assert len(column) == 1000
    with pytest.raises(ImportError, match="needs zstandard; pip install zstandard"):
        column[0]
    with pytest.raises(ValueError, match="compression='lz4' is neither None nor 'zstd'"):
        Writer(tmp_path / "b.nano", compression="lz4")
