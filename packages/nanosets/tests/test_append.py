"""Appending: what it adds, what it refuses, and what a crash leaves."""

import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest

from nanorlhf.nanosets import CorruptFileError, SchemaError, Writer
from nanorlhf.nanosets.column import Column
from nanorlhf.nanosets.reader import File

KILLED = """
import os, sys
from nanorlhf.nanosets import Writer, place

path, moment = sys.argv[1:]
die = lambda *_: os.kill(os.getpid(), 9)
commit = place.Appended._commit
if moment == "commit":
    place.Appended._commit = lambda self, size: (
        commit(self, size) if size == self.before.end else die()
    )
writer = Writer(path, append=True, chunk_rows=10)
for i in range(100):
    writer.write_batch({"id": [i] * 10, "word": ["new"] * 10})
if moment == "seal":
    os.fsync = die
writer.close() if moment != "write" else die()
"""


def ids(path, **how):
    return list(Column.of_file(File(path, verify=True, **how), "id"))


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "a.nano"
    features = {"id": "int64", "word": "dictionary<utf8>"}
    with Writer(found, features=features, chunk_rows=2, metadata={"a": 1}) as writer:
        writer.write_batch({"id": [1, 2, 3], "word": ["x", None, "y"]})
    return found


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("checksum", ["crc32", "xxh3_64"])
def test_appended_rows_follow_the_old_ones(compression, checksum, tmp_path):
    path = tmp_path / "a.nano"
    how = {"compression": compression, "checksum": checksum}
    with Writer(path, metadata={"a": 1}, **how, append=True) as writer:
        writer.write_batch({"id": [1, 2], "t": [[1], None]})
    for i in (3, 4):
        with Writer(path, metadata={"b": i}, append=True) as writer:
            writer.write({"id": i, "t": [i] * i})
    file = File(path, verify=True)
    assert file.footer.checksum == checksum
    assert file.footer.compression == compression
    assert file.footer.metadata == {"a": 1, "b": 4}
    assert file.chunk_rows.tolist() == [2, 1, 1]
    assert ids(path) == [1, 2, 3, 4]
    assert [None if v is None else v.tolist() for v in Column.of_file(file, "t")] == [
        [1],
        None,
        [3, 3, 3],
        [4] * 4,
    ]
    assert os.listdir(tmp_path) == ["a.nano"]


def test_a_dictionary_grows_and_keeps_its_codes(path):
    with Writer(path, append=True) as writer:
        writer.write_batch({"id": [4, 5, 6], "word": ["y", "z", "x"]})
    file = File(path, verify=True)
    column = Column.of_file(file, "word")
    assert list(column) == ["x", None, "y", "y", "z", "x"]
    assert file.array("word").values.pylist() == ["x", "y", "z"]


def test_a_file_that_is_open_or_pickled_reads_as_it_was(path):
    old = File(path)
    column = Column.of_file(old, "word")
    before = pickle.dumps(column)
    with Writer(path, append=True) as writer:
        writer.write({"id": 4, "word": "new"})
    assert list(column) == ["x", None, "y"]
    assert list(pickle.loads(before)) == ["x", None, "y"]
    assert len(Column.of_file(File(path), "id")) == 4
    assert pickle.loads(pickle.dumps(old)).footer.rows == 3


def test_types_that_the_file_cannot_hold_are_refused_and_leave_it_as_it_was(path):
    for row, message in (
        ({"id": "x"}, "row 0, field 'id': holds utf8, asked is int64"),
        ({"id": 4, "more": 1}, "field 'more': is not among the asked fields"),
    ):
        with pytest.raises(SchemaError, match=message), Writer(path, append=True) as writer:
            writer.write(row)
    assert ids(path) == [1, 2, 3]
    with Writer(path, append=True) as writer:
        writer.write({"id": 4})
    assert ids(path) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"features": {"id": "int8"}}, "features=.*is asked and .*; leave it out"),
        ({"compression": "zstd"}, "compression='zstd' is asked and .* has None"),
        ({"checksum": "crc32"}, "checksum='crc32' is asked and .* has 'xxh3_64'"),
    ],
)
def test_what_is_not_how_the_file_was_written_is_refused(how, message, path):
    with pytest.raises(ValueError, match=message):
        Writer(path, append=True, **how)
    with Writer(path, append=True, features=File(path).schema, checksum="xxh3_64"):
        pass
    assert ids(path) == [1, 2, 3]


def test_two_appends_at_once_do_not_meet(path):
    with Writer(path, append=True) as writer:
        with pytest.raises(BlockingIOError, match="is being appended to; wait for that writer"):
            Writer(path, append=True)
        writer.write({"id": 4})
    assert ids(path) == [1, 2, 3, 4]


def test_an_append_to_a_file_that_was_replaced_meanwhile_is_refused(path):
    writer = Writer(path, append=True)
    with Writer(path) as other:
        other.write({"id": 9})
    writer.write({"id": 4})
    with pytest.raises(OSError, match="was replaced while rows were appended to it; append again"):
        writer.close()
    assert ids(path) == [9]


def test_a_damaged_file_is_not_appended_to(path):
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(CorruptFileError, match="trailer"):
        Writer(path, append=True)
    assert path.read_bytes() == data[:-1]


@pytest.mark.parametrize("moment", ["write", "seal", "commit"])
def test_an_append_that_is_killed_leaves_the_file_as_it_was(moment, path):
    size = path.stat().st_size
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", KILLED, path, moment], timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL
        assert path.stat().st_size > size
        for io in ("mmap", "pread", "ram"):
            assert ids(path, io=io) == [1, 2, 3]
    with Writer(path, append=True) as writer:
        writer.write({"id": 4, "word": "y"})
    assert ids(path) == [1, 2, 3, 4]
    assert list(Column.of_file(File(path), "word")) == ["x", None, "y", "y"]


def test_every_cut_of_an_appended_file_is_the_old_file_or_refused(path, tmp_path):
    committed = path.stat().st_size
    with Writer(path, append=True) as writer:
        writer.write_batch({"id": np.arange(20)})
    data = path.read_bytes()
    mutant = tmp_path / "mutant.nano"
    for size in range(committed - 64, len(data), 32):
        mutant.write_bytes(data[:size])
        with pytest.raises(CorruptFileError, match=f"header: {len(data)} bytes count"):
            File(mutant)
    mutant.write_bytes(data + b"rest of an append")
    assert len(ids(mutant)) == 23


def test_a_flipped_byte_among_the_committed_bytes_is_refused(path):
    with Writer(path, append=True) as writer:
        writer.write({"id": 4})
    data = bytearray(path.read_bytes())
    data[33] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match="header: checksum of the committed bytes"):
        File(path)
