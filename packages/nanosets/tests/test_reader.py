import contextlib
import json
import os
import pickle
import random
import struct
import zlib

import pytest

from nanorlhf.nanosets import CorruptFileError, Dataset, load_dataset
from nanorlhf.nanosets.format import TRAILER, Trailer, encode_trailer
from nanorlhf.nanosets.reader import File


def is_right_or_corrupt(path, want, plain):
    """Read everything; return whether the file was refused.

    Without ``verify`` the values may be wrong, but nothing else than the one error is raised.
    """
    with contextlib.suppress(CorruptFileError):
        load_dataset(path).to_list()
    try:
        found = plain(load_dataset(path, verify=True).to_list())
    except CorruptFileError as error:
        return error.path == str(path) and error.where in str(error)
    assert found == want
    return False


def test_flipped_bytes_are_right_or_refused(small_file, rows, plain, tmp_path):
    data, want = small_file.read_bytes(), plain(rows)
    draw = random.Random(0)
    mutant = tmp_path / "mutant.nano"
    refused = 0
    for _ in range(300):
        at = draw.randrange(len(data))
        flipped = bytearray(data)
        flipped[at] ^= draw.randrange(1, 256)
        mutant.write_bytes(flipped)
        refused += is_right_or_corrupt(mutant, want, plain)
    assert refused > 90  # what remains is padding


def test_bytes_of_the_header_trailer_and_footer_may_be_flipped(small_file, rows, plain, tmp_path):
    data, want = small_file.read_bytes(), plain(rows)
    mutant = tmp_path / "mutant.nano"
    footer = struct.unpack_from("<Q", data, len(data) - TRAILER.size)[0]
    for at in [*range(64), *range(footer, len(data) - 64, 5), *range(len(data) - 64, len(data))]:
        flipped = bytearray(data)
        flipped[at] ^= 0x41
        mutant.write_bytes(flipped)
        is_right_or_corrupt(mutant, want, plain)


def test_any_truncation_and_any_extension_is_refused(small_file, rows, plain, tmp_path):
    data = small_file.read_bytes()
    mutant = tmp_path / "mutant.nano"
    for size in [*range(0, len(data), 61), len(data) - 64, len(data) - 1]:
        mutant.write_bytes(data[:size])
        assert is_right_or_corrupt(mutant, None, plain)
    mutant.write_bytes(data + bytes(64))
    assert is_right_or_corrupt(mutant, None, plain)


def test_spliced_and_swapped_blocks_are_right_or_refused(small_file, rows, plain, tmp_path):
    data, want = small_file.read_bytes(), plain(rows)
    draw = random.Random(1)
    mutant = tmp_path / "mutant.nano"
    for _ in range(300):
        a, b = (64 * draw.randrange(len(data) // 64) for _ in range(2))
        mixed = bytearray(data)
        mixed[a : a + 64], mixed[b : b + 64] = data[b : b + 64], data[a : a + 64]
        mutant.write_bytes(mixed)
        is_right_or_corrupt(mutant, want, plain)


def forged(path, *, footer=None, directory=None):
    """Rewrite the footer or directory of a file with checksums that match."""
    data = bytearray(path.read_bytes())
    end = len(data) - TRAILER.size
    trailer = Trailer(*TRAILER.unpack(data[end:])[:5])
    content = json.loads(data[trailer.footer : trailer.footer + trailer.footer_bytes])
    start, size = content["directory"]
    entries = list(struct.unpack_from(f"<{size // 8}q", data, start))
    if directory:
        directory(entries, 1 + 3 * content["slots"])
    if footer:
        footer(content)
    struct.pack_into(f"<{len(entries)}q", data, start, *entries)
    raw = json.dumps(content).encode()
    del data[trailer.footer :]
    data += raw
    crcs = zlib.crc32(raw), zlib.crc32(data[start : start + size])
    data += encode_trailer(Trailer(trailer.footer, len(raw), len(data) + 64, *crcs))
    path.write_bytes(data)


def put(at, value):
    def change(entries, width):
        entries[at] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(0, 5), "chunks do not add up to 9 rows"),
        (put(0, -4), "chunks do not add up"),
        (put(0, 2**62), "chunks do not add up"),
        (put(2, 8), "an absent buffer has a size"),
        (put(4, 65), "offset is not a multiple of 64"),
        (put(4, -64), "starts or ends outside the data"),
        (put(4, 0), "starts or ends outside the data"),
        (put(4, 2**40), "starts or ends outside the data"),
        (put(5, 2**62), "starts or ends outside the data"),
        (put(5, 16), "'id': data has the wrong size"),
        (put(5, 31), "'id': data has the wrong size"),
    ],
)
def test_a_forged_directory_is_refused(change, message, small_file, plain):
    forged(small_file, directory=change)
    with pytest.raises(CorruptFileError, match=message):
        load_dataset(small_file).to_list()


def test_overlapping_buffers_are_refused(small_file):
    def overlap(entries, width):
        entries[4 + width] = entries[4]

    forged(small_file, directory=overlap)
    ds = load_dataset(small_file)
    with pytest.raises(CorruptFileError, match="two buffers overlap"):
        ds[0]
    with pytest.raises(CorruptFileError, match="two buffers overlap"):
        load_dataset(small_file, verify=True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rows", 10, "do not add up to 10 rows"),
        ("rows", -1, "is no count"),
        ("rows", True, "is no count"),
        ("chunks", 2**40, "do not fit"),
        ("slots", 1, "do not fit"),
        ("schema", [{"name": "a", "type": "int31"}], "expected a type name"),
        ("schema", [{"name": "a", "type": 3}], "a column's name or type is no string"),
        ("schema", [{"name": 1, "type": "int8"}], "a column's name or type is no string"),
        ("schema", [{"name": [], "type": "int8"}], "footer: "),
        ("schema", [{"name": "a", "type": "int8"}] * 2, "are not distinct"),
        ("schema", None, "footer: "),
        ("directory", [1], "footer: "),
        ("checksum", "md5", "this reader knows crc32, xxh3_64, without compression or with zstd"),
        ("compression", "lz4", "this reader knows crc32, xxh3_64, without compression or with"),
        ("compression", "zstd", "do not fit"),
        ("dictionaries", [{"rows": 1, "slots": []}], "do not fit"),
        ("dictionaries", [{"rows": -1, "slots": []}], "is no count"),
        ("dictionaries", 5, "footer: "),
    ],
)
def test_a_forged_footer_is_refused(key, value, message, small_file):
    forged(small_file, footer=lambda content: content.update({key: value}))
    with pytest.raises(CorruptFileError, match=message):
        load_dataset(small_file)


def test_a_forged_directory_place_is_refused(small_file):
    forged(small_file, footer=lambda content: content["directory"].__setitem__(0, 2**50))
    with pytest.raises(CorruptFileError, match="is not before the footer"):
        load_dataset(small_file)


@pytest.mark.parametrize("edges", [[0, 2, 1, 3], [1, 1, 2, 3], [0, -1, 2, 3]])
def test_offsets_that_run_backwards_are_refused_without_verify(edges, tmp_path):
    path = tmp_path / "a.nano"
    Dataset.from_dict({"t": [[1], [2], [3]]}).save_to_disk(path)
    data = path.read_bytes()
    good = struct.pack("<4i", 0, 1, 2, 3)
    assert data.count(good) == 1
    path.write_bytes(data.replace(good, struct.pack("<4i", *edges)))
    ds = load_dataset(path)
    with pytest.raises(CorruptFileError, match="'t': offsets of chunk 0 run backwards"):
        ds.gather("t", [0])


def test_offsets_beyond_the_child_are_refused_without_verify(tmp_path):
    path = tmp_path / "a.nano"
    Dataset.from_dict({"t": [[1], [2], [3]]}).save_to_disk(path)
    good, bad = struct.pack("<4i", 0, 1, 2, 3), struct.pack("<4i", 0, 1, 2, 400)
    path.write_bytes(path.read_bytes().replace(good, bad))
    with pytest.raises(CorruptFileError, match="data has the wrong size"):
        load_dataset(path)[0]


def test_a_string_that_is_not_utf8_is_refused_without_verify(tmp_path):
    path = tmp_path / "a.nano"
    Dataset.from_dict({"s": ["abcdefgh", "x"]}).save_to_disk(path)
    path.write_bytes(path.read_bytes().replace(b"abcdefgh", b"abc\xffefgh"))
    ds = load_dataset(path)
    for read in (lambda: ds[0], lambda: ds[:], lambda: ds.to_list()):
        with pytest.raises(CorruptFileError, match="'s': a string is not UTF-8"):
            read()


def test_damaged_data_is_named_by_column_and_chunk(tmp_path):
    path = tmp_path / "a.nano"
    ds = Dataset.from_dict({"x": [1, 2, 3], "s": ["one", "two", "threefold"]})
    ds.save_to_disk(path, chunk_rows=2)
    path.write_bytes(path.read_bytes().replace(b"threefold", b"threefol!"))
    with pytest.raises(
        CorruptFileError, match="column 's': data of chunk 1: checksum does not match"
    ):
        load_dataset(path, verify=True)
    assert load_dataset(path)[2]["s"] == "threefol!"


def test_a_newer_format_and_unknown_flags_are_refused_by_name(small_file):
    data = small_file.read_bytes()
    small_file.write_bytes(data[:8] + b"\x02" + data[9:])
    with pytest.raises(CorruptFileError, match="format version 2, this reader knows 1"):
        load_dataset(small_file)
    small_file.write_bytes(data[:12] + b"\x01" + data[13:])
    with pytest.raises(CorruptFileError, match="flags 0x1 ask for features"):
        load_dataset(small_file)
    small_file.write_bytes(data[:10] + b"\x07" + data[11:])
    assert len(load_dataset(small_file)) == 9  # a newer minor version adds, and breaks nothing


def test_an_unfinished_file_and_another_kind_of_file_are_told_apart(small_file):
    data = small_file.read_bytes()
    small_file.write_bytes(data[:-64])
    with pytest.raises(CorruptFileError, match="trailer: missing, so the file is incomplete"):
        load_dataset(small_file)
    small_file.write_bytes(b"{}" * 200)
    with pytest.raises(CorruptFileError, match=r"so it is no \.nano file"):
        load_dataset(small_file)
    small_file.write_bytes(b"")
    with pytest.raises(CorruptFileError, match="the file has 0 bytes"):
        load_dataset(small_file)


def test_buffers_lie_at_multiples_of_64_and_the_footer_is_canonical(small_file):
    file = File(small_file)
    offsets = file._slots[..., 0]
    assert (offsets[offsets >= 0] % 64 == 0).all()
    assert os.path.getsize(small_file) % 64 == 0
    again = small_file.with_name("again.nano")
    load_dataset(small_file).save_to_disk(again, chunk_rows=4)
    first, second = small_file.read_bytes(), again.read_bytes()
    assert first[64:] == second[64:]


def test_a_file_pickles_as_its_path_and_a_replaced_one_is_noticed(small_file):
    ds = load_dataset(small_file)
    data = pickle.dumps(ds.select([3, 1]))
    assert len(data) < 1500
    assert pickle.loads(data)["id"][:] == [3, 1]
    Dataset.from_dict({"id": [1]}).save_to_disk(small_file)
    with pytest.raises(CorruptFileError, match="was replaced after the dataset was pickled"):
        pickle.loads(data)
