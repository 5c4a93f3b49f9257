import subprocess
import sys

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from nanorlhf.nanosets import Dataset, SchemaError, load_dataset
from nanorlhf.nanosets.tables import read_ipc, read_parquet, write_ipc, write_parquet
from nanorlhf.nanosets.transcode import transcode


def mixed(every_type):
    return Dataset.from_dict(every_type, features={t: t for t in every_type})


def test_every_type_goes_through_parquet_and_comes_back(tmp_path, every_type, plain):
    ds = mixed(every_type)
    ds.to_parquet(tmp_path / "a.parquet")
    found = load_dataset(tmp_path / "a.parquet")
    # Parquet has no seconds, and pyarrow no dictionaries of numbers in it.
    lost = {"timestamp[s]", "dictionary<int16>"}
    assert found.cast({**ds.schema}).schema == ds.schema
    assert {n for n in ds.schema if ds.schema[n] != found.schema[n]} <= lost
    assert plain(found.to_list()) == plain(ds.to_list())


def test_every_type_goes_through_arrow_ipc_and_comes_back(tmp_path, every_type, plain):
    ds = mixed(every_type)
    write_ipc(ds, tmp_path / "a.arrow")
    found = load_dataset(tmp_path / "a.arrow")
    assert found.schema == ds.schema
    assert plain(found.to_list()) == plain(ds.to_list())
    assert pa.ipc.open_file(tmp_path / "a.arrow").read_all().num_rows == 3


def test_an_indexed_dataset_over_chunks_is_written_in_its_order(tmp_path):
    Dataset.from_dict({"a": range(1000), "s": list("ab") * 500}).save_to_disk(
        tmp_path / "a.nano", chunk_rows=64
    )
    ds = load_dataset(tmp_path / "a.nano").shuffle(seed=0)
    ds.to_parquet(tmp_path / "a.parquet")
    write_ipc(ds, tmp_path / "a.arrow")
    for name in ("a.parquet", "a.arrow"):
        found = load_dataset(tmp_path / name)
        assert found["a"][:] == ds["a"][:]
        assert len(found["a"].parts) == 1


def test_dictionaries_that_differ_from_chunk_to_chunk_are_one_in_a_file(tmp_path):
    kind = pa.dictionary(pa.int8(), pa.string())
    table = pa.table({"s": pa.chunked_array([pa.array(["x", "y"], kind), pa.array(["z"], kind)])})
    ds = Dataset.from_arrow(table)
    assert ds["s"][:] == ["x", "y", "z"]
    for name in ("a.arrow", "a.parquet", "a.nano"):
        {"a.arrow": write_ipc, "a.parquet": write_parquet, "a.nano": Dataset.save_to_disk}[name](
            ds, tmp_path / name
        )
        assert load_dataset(tmp_path / name)["s"][:] == ["x", "y", "z"]


def test_what_hugging_face_datasets_saved_is_read(tmp_path):
    rows = [{"a": i, "t": [str(i)] * i, "c": i % 2} for i in range(5)]
    datasets = pytest.importorskip("datasets", reason="its files are what is read")
    theirs = datasets.Dataset.from_list(rows).cast_column(
        "c", datasets.ClassLabel(names=["no", "yes"])
    )
    theirs.save_to_disk(tmp_path / "hf")
    found = load_dataset(str(tmp_path / "hf" / "*.arrow"))
    assert found.to_list() == rows


def test_columns_are_read_alone_and_in_the_order_asked_for(tmp_path):
    Dataset.from_dict({"a": [1], "b": ["x"], "c": [{"d": 1}]}).to_parquet(tmp_path / "a.parquet")
    schema, blocks = read_parquet(tmp_path / "a.parquet", columns=["c", "a"])
    assert repr(schema) == "Schema({'c': 'struct<d: int64>', 'a': 'int64'})"
    assert [block.pylist() for block in blocks] == [[{"c": {"d": 1}, "a": 1}]]


def test_rows_come_some_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("nanorlhf.nanosets.tables.BATCH_ROWS", 10)
    Dataset.from_dict({"a": range(35)}).to_parquet(tmp_path / "a.parquet")
    lengths = [block.length for block in read_parquet(tmp_path / "a.parquet").blocks]
    assert lengths == [10, 10, 10, 5]


def test_a_damaged_arrow_file_is_refused_before_its_offsets_are_used(tmp_path):
    path = tmp_path / "a.arrow"
    write_ipc(Dataset.from_dict({"s": ["abc", "def" * 20]}), path)
    data = bytearray(path.read_bytes())
    at = data.index(b"\0\0\0\0\3\0\0\0\x3f\0\0\0")
    data[at + 8 : at + 12] = b"\xff\xff\xff\x7f"
    path.write_bytes(data)
    with pytest.raises((ValueError, OSError), match="offset"):
        list(read_ipc(path).blocks)
    path.write_bytes(b"ARROW1")
    with pytest.raises(ValueError, match="File is too small"):
        load_dataset(path)


def test_a_type_that_parquet_holds_and_we_do_not_is_refused_by_name(tmp_path):
    table = pa.table({"price": pa.array([None], pa.decimal128(10))})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(SchemaError, match="'price': the Arrow type 'd:10,0' is no column type"):
        load_dataset(tmp_path / "a.parquet")


def test_without_pyarrow_and_polars_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ImportError, match=r"or polars; pip install 'nanosets\[tables\]'"):
        read_parquet(tmp_path / "a.parquet")


def test_polars_reads_and_writes_where_there_is_no_pyarrow(tmp_path, plain, monkeypatch):
    pytest.importorskip("polars", reason="it is what stands in")
    columns = {"i": range(3), "t": [[1], None, []], "s": ["x", None, "z"], "m": [{"a": 1.5}] * 3}
    ds = Dataset.from_dict(columns).select([2, 0, 1])
    ds.to_parquet(tmp_path / "by_pyarrow.parquet")
    ds.to_ipc(tmp_path / "by_pyarrow.arrow")
    table = pa.table({"i": [2, 0, 1]})
    with pa.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as stream:
        stream.write_table(table)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ds.to_parquet(tmp_path / "by_polars.parquet", compression="zstd")
    ds.to_ipc(tmp_path / "by_polars.arrow")
    assert load_dataset(tmp_path / "stream.arrow")["i"][:] == [2, 0, 1]
    some = Dataset.from_parquet(tmp_path / "by_pyarrow.parquet", columns=["s", "i"])
    assert some.to_dict() == {"s": ["z", "x", None], "i": [2, 0, 1]}
    monkeypatch.undo()
    for by in ("by_pyarrow", "by_polars"):
        for kind in ("parquet", "arrow"):
            assert plain(load_dataset(tmp_path / f"{by}.{kind}").to_list()) == plain(ds.to_list())


def test_a_damaged_table_is_an_error_of_polars_too(tmp_path, monkeypatch):
    pytest.importorskip("polars", reason="it is what stands in")
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(60) + b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"a\.parquet"):
        load_dataset(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow", "nano"])
def test_files_convert_from_kind_to_kind(kind, tmp_path, plain):
    rows = [{"id": i, "text": f"t{i}", "score": i / 4} for i in range(10)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "a.nano", chunk_rows=3)
    assert transcode(tmp_path / "a.nano", tmp_path / f"b.{kind}") == 10
    assert transcode(tmp_path / f"b.{kind}", tmp_path / "c.nano", compression="zstd") == 10
    assert plain(load_dataset(tmp_path / "c.nano", verify=True).to_list()) == rows
    asked = {"id": "int8", "text": "utf8", "score": "float32"}
    transcode(tmp_path / f"b.{kind}", tmp_path / "d.nano", features=asked)
    found = load_dataset(tmp_path / "d.nano")
    assert {name: str(dtype) for name, dtype in found.schema.items()} == asked
    assert plain(found.to_list()) == rows


def test_a_parquet_file_without_rows_keeps_its_columns(tmp_path):
    pa.parquet.write_table(
        pa.table({"a": pa.array([], pa.list_(pa.int8()))}), tmp_path / "a.parquet"
    )
    assert transcode(tmp_path / "a.parquet", tmp_path / "a.nano") == 0
    assert str(load_dataset(tmp_path / "a.nano").schema["a"]) == "list<int8>"
    with pytest.raises(ValueError, match=r"b\.txt ends in none of \.nano, .*; rename it"):
        transcode(tmp_path / "a.nano", tmp_path / "b.txt")


@pytest.mark.slow
def test_a_parquet_file_converts_in_less_memory_than_it_takes(tmp_path):
    code = """
import resource, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from nanorlhf.nanosets.transcode import transcode
folder = sys.argv[1]
schema = pa.schema({"x": pa.list_(pa.int64())})
def rss():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with pq.ParquetWriter(folder + "/a.parquet", schema, compression="none", use_dictionary=False) as w:
    for i in range(60):
        values = pa.array(np.arange(1 << 20) + i)
        offsets = pa.array(np.arange(0, (1 << 20) + 1, 1024, dtype="i4"))
        w.write_table(pa.table({"x": pa.ListArray.from_arrays(offsets, values)}, schema=schema))
before = rss()
assert transcode(folder + "/a.parquet", folder + "/a.nano") == 60 * 1024
print(rss() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.nano").stat().st_size > 480 << 20
    assert int(done.stdout) < 300 << 10
