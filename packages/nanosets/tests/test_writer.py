import fcntl
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, SchemaError, Writer, load_dataset
from nanorlhf.nanosets.reader import File

KILLED = """
import os, sys
from nanorlhf.nanosets import Writer
with Writer(sys.argv[1], chunk_rows=10) as writer:
    for i in range(100):
        writer.write_batch({"id": [i] * 10})
    if sys.argv[2] == "seal":
        os.replace = lambda *args: os.kill(os.getpid(), 9)
        writer.close()
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("moment", ["write", "seal"])
def test_a_writer_that_is_killed_leaves_the_old_file(moment, tmp_path):
    path = tmp_path / "a.nano"
    Dataset.from_dict({"id": [1, 2, 3]}).save_to_disk(path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, path, moment], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("a.nano.tmp.*"))) == 1
    assert path.read_bytes() == before
    Dataset.from_dict({"id": [4]}).save_to_disk(path)
    assert load_dataset(path).to_dict() == {"id": [4]}
    assert os.listdir(tmp_path) == ["a.nano"]


def test_leftovers_of_dead_writers_go_and_those_of_live_ones_stay(tmp_path):
    path = tmp_path / "a.nano"
    dead = (
        subprocess.run(
            [sys.executable, "-c", "import os; print(os.getpid())"],
            capture_output=True,
            check=True,
            timeout=60,
        )
        .stdout.decode()
        .strip()
    )
    names = [f"a.nano.tmp.{dead}.00", f"b.nano.tmp.{dead}.00", "a.nano.tmp.old", "a.nano.tmp.x.y"]
    names.append(f"a.nano.tmp.{os.getpid()}.00")  # not locked, as one that was just made
    for name in names:
        (tmp_path / name).write_bytes(b"left over")
    locked = tmp_path / f"a.nano.tmp.{dead}.01"
    with Writer(path) as live, locked.open("wb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # as a writer on another machine would hold it
        live.write({"id": 1})
        with Writer(path) as other:
            other.write({"id": 2})
        assert sorted(os.listdir(tmp_path)) == sorted(
            [
                "a.nano",
                locked.name,
                *names[1:],
                os.path.basename(live._sink.path),
            ]
        )
    assert load_dataset(path).to_dict() == {"id": [1]}


def test_many_small_batches_become_chunks_in_linear_time(tmp_path):
    with Writer(tmp_path / "a.nano", chunk_rows=5000) as writer:
        for i in range(4000):
            writer.write_batch({"id": [i]})
    assert load_dataset(tmp_path / "a.nano")["id"].numpy().tolist() == list(range(4000))


def test_an_offset_that_int32_does_not_hold_is_refused():
    from nanorlhf.nanosets.arrays import Nulls
    from nanorlhf.nanosets.nested import lists

    array = lists(np.array([0, 2**31]), Nulls(2**31))
    with pytest.raises(SchemaError, match="holds 2147483648 elements in one chunk; ask for large"):
        list(array.buffers())


def test_a_writer_takes_what_speaks_arrow(tmp_path):
    pa = pytest.importorskip("pyarrow")
    with Writer(tmp_path / "a.nano") as writer:
        writer.write_arrow(pa.table({"id": [1, 2], "s": ["a", None]}))
        writer.write({"id": 3})
    assert load_dataset(tmp_path / "a.nano", verify=True).to_dict() == {
        "id": [1, 2, 3],
        "s": ["a", None, None],
    }


def test_a_writer_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.nano"
    Dataset.from_dict({"id": [1]}).save_to_disk(path)
    with pytest.raises(ZeroDivisionError), Writer(path) as writer:
        writer.write({"id": 1 // 0})
    with pytest.raises(SchemaError, match="row 1, field 'id': holds both"), Writer(path) as writer:
        writer.write_rows([{"id": 1}, {"id": "x"}])
    assert os.listdir(tmp_path) == ["a.nano"]
    assert load_dataset(path).to_dict() == {"id": [1]}


def test_an_open_reader_keeps_the_file_that_it_opened(tmp_path):
    path = tmp_path / "a.nano"
    Dataset.from_dict({"id": [1]}).save_to_disk(path)
    old = load_dataset(path)
    old.map(lambda row: {"id": row["id"] + 1}, output=path)
    assert old.to_dict() == {"id": [1]}
    assert load_dataset(path).to_dict() == {"id": [2]}


def test_chunks_have_equal_rows_and_stay_below_the_byte_limit(tmp_path):
    path = tmp_path / "a.nano"
    with Writer(path, chunk_rows=100) as writer:
        for start in range(0, 1050, 70):
            writer.write_batch({"id": np.arange(start, start + 70)})
    assert File(path).chunk_rows.tolist() == [100] * 10 + [50]
    with Writer(path, chunk_bytes=800) as writer:
        writer.write_batch({"id": np.arange(1000)})
    assert File(path).chunk_rows.tolist() == [100] * 10
    assert load_dataset(path)["id"].numpy().tolist() == list(range(1000))


def test_long_rows_among_short_ones_are_split_off(tmp_path):
    rows = [[1]] * 10 + [[2] * 1000] * 2 + [[3]] * 10
    with Writer(tmp_path / "a.nano", chunk_bytes=4000) as writer:
        writer.write_batch({"t": rows})
    file = File(tmp_path / "a.nano", verify=True)
    assert len(file.chunk_rows) > 2
    sizes = [file.array("t").window(c, 0, n).nbytes for c, n in enumerate(file.chunk_rows.tolist())]
    assert max(sizes) < 2 * 8100
    assert [len(t) for t in load_dataset(tmp_path / "a.nano")["t"]] == [len(t) for t in rows]


def test_later_portions_widen_the_columns_already_written(tmp_path, plain):
    path = tmp_path / "a.nano"
    with Writer(path, chunk_rows=2) as writer:
        writer.write_batch({"a": [1, 2, 3], "b": [None, None, None], "c": [[], [], []]})
        writer.write_batch({"a": [0.5], "b": ["x"], "c": [[1]], "d": [True]})
    ds = load_dataset(path, verify=True)
    assert repr(ds.schema) == (
        "Schema({'a': 'float64', 'b': 'utf8', 'c': 'list<int64>', 'd': 'bool'})"
    )
    assert plain(ds.to_dict()) == {
        "a": [1.0, 2.0, 3.0, 0.5],
        "b": [None, None, None, "x"],
        "c": [[], [], [], [1]],
        "d": [None, None, None, True],
    }
    assert os.listdir(tmp_path) == ["a.nano"]


def test_an_error_names_the_row_counted_through_the_file(tmp_path):
    path = tmp_path / "a.nano"
    mixed = ({"a": "x" if i == 1501 else i} for i in range(1600))
    with pytest.raises(SchemaError, match="row 1501, field 'a': holds"), Writer(path) as writer:
        writer.write_rows(mixed)
    large = ({"a": 300 if i == 1300 else 1} for i in range(1600))
    writer = Writer(path, features={"a": "int8"})
    with pytest.raises(SchemaError, match="row 1300, field 'a': 300 does not fit"), writer:
        writer.write_rows(large)


def test_types_asked_for_are_kept(tmp_path):
    with Writer(tmp_path / "a.nano", features={"t": "list<int32>", "m": "list<bool>"}) as writer:
        writer.write({"t": [1], "m": [True]})
        writer.write({"t": None})
    ds = load_dataset(tmp_path / "a.nano")
    assert str(ds.schema["t"]) == "list<int32>"
    assert ds[0]["t"].dtype == np.int32
    assert ds[1] == {"t": None, "m": None}


def test_an_empty_file_and_one_without_columns_read_back(tmp_path):
    with Writer(tmp_path / "a.nano", features={"a": "list<int8>"}):
        pass
    ds = load_dataset(tmp_path / "a.nano", verify=True)
    assert len(ds) == 0
    assert ds.to_list() == []
    assert ds.gather("a").offsets.tolist() == [0]
    with Writer(tmp_path / "b.nano"):
        pass
    assert load_dataset(tmp_path / "b.nano", verify=True).column_names == []


def test_metadata_is_kept_and_files_do_not_depend_on_their_path(tmp_path):
    with Writer(tmp_path / "a.nano", metadata={"source": ["x", 1]}) as writer:
        writer.write({"a": 1})
    assert File(tmp_path / "a.nano").footer.metadata == {"source": ["x", 1]}


def test_misuse_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a directory; name a file in it"):
        Writer(tmp_path)
    with pytest.raises(ValueError, match="chunk_rows=0 and chunk_bytes=67108864 are positive"):
        Writer(tmp_path / "a.nano", chunk_rows=0)
    for end in (Writer.close, Writer.abort):
        writer = Writer(tmp_path / "a.nano")
        end(writer)
        writer.close()
        writer.abort()
        with pytest.raises(ValueError, match="is closed; open another one"):
            writer.write({"a": 1})
    deep = [1]
    for _ in range(40):
        deep = [deep]
    with pytest.raises(SchemaError, match="nests deeper than 32 levels"):
        Dataset.from_dict({"a": [deep]}).save_to_disk(tmp_path / "b.nano")
    assert sorted(os.listdir(tmp_path)) == ["a.nano"]


def test_a_write_waits_for_the_disk_unless_it_is_told_not_to(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    for append in (False, True):
        for sync in (False, True):
            synced.clear()
            with Writer(tmp_path / "a.nano", append=append, sync=sync) as writer:
                writer.write({"a": 1})
            assert bool(synced) == sync
    assert load_dataset(tmp_path / "a.nano", verify=True)["a"][:] == [1, 1, 1]
