import ctypes
import gc
import subprocess
import sys
import weakref

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from nanorlhf.nanosets import Dataset, Writer, load_dataset
from nanorlhf.nanosets.arrow import export_array, export_schema, import_array, import_stream
from nanorlhf.nanosets.arrow_abi import ArrowArray, inner_structs, opened, release, take
from nanorlhf.nanosets.build import build
from nanorlhf.nanosets.convert import convert
from nanorlhf.nanosets.types import parse


@pytest.fixture(scope="module")
def typed(every_type, tmp_path_factory):
    """A column of each type, in memory and over chunks of a file, whole and sliced."""
    found = {}
    for spelling, values in every_type.items():
        ds = Dataset.from_dict({"x": values * 3}, features={"x": spelling})
        path = tmp_path_factory.mktemp("typed") / "x.nano"
        ds.save_to_disk(path, chunk_rows=4)
        chunked = load_dataset(path)
        found[spelling] = [ds, chunked, chunked.select([8, 0, 4, 4]), chunked.select([])]
    return found


def same(a, b, plain):
    return plain(a) == plain(b)


def test_every_type_reaches_pyarrow_value_by_value_and_comes_back(typed, plain):
    for spelling, forms in typed.items():
        for ds in forms:
            table = pa.table(ds)
            table.validate(full=True)
            back = Dataset.from_arrow(table)
            assert back.schema == ds.schema, spelling
            assert same(back.to_list(), ds.to_list(), plain), spelling
            if not spelling.startswith(("tensor", "bfloat16")):
                assert same(table["x"].to_pylist(), ds["x"].to_list(), plain), spelling


def test_the_extension_types_reach_pyarrow_as_what_they_are(typed):
    tensor = pa.table(typed["tensor<float32, 2, 3>"][1])["x"]
    assert tensor.type == pa.fixed_shape_tensor(pa.float32(), [2, 3])
    assert tensor.chunk(0).take([0, 0]).to_numpy_ndarray().tolist() == [[[0, 1, 2], [3, 4, 5]]] * 2
    bfloat = pa.table(typed["bfloat16"][0])["x"]
    assert bfloat.to_pylist()[:3] == [0x3F80, None, 0x4040]


def test_every_type_reaches_polars_and_comes_back(typed, plain):
    for spelling, forms in typed.items():
        for ds in forms:
            frame = pl.DataFrame(ds)
            assert frame.height == len(ds)
            back = Dataset.from_arrow(frame)
            assert same(back.to_list(), ds.to_list(), plain), spelling
            if not spelling.startswith(("tensor", "bfloat16")):
                assert same(frame["x"].to_list(), ds["x"].to_list(), plain), spelling


def test_duckdb_reads_a_dataset_and_a_dataset_reads_duckdb(typed, plain):
    ds = Dataset.from_dict({"i": [1, None, 3], "s": ["a", "b", None], "l": [[1], None, []]})
    assert duckdb.sql("select sum(i), max(s), count(l) from ds").fetchall() == [(4, "b", 2)]
    answer = duckdb.sql("select i + 1 as j, {'a': l} as s from ds order by i")
    assert plain(Dataset.from_arrow(answer).to_list()) == [
        {"j": 2, "s": {"a": [1]}},
        {"j": 4, "s": {"a": []}},
        {"j": None, "s": {"a": None}},
    ]
    for spelling in ("bool", "utf8", "timestamp[us]", "list<int32>", "dictionary<utf8>"):
        ds = typed[spelling][1]
        found = duckdb.sql("select * from ds").fetchall()
        assert same([row[0] for row in found], ds["x"].to_list(), plain), spelling


def test_a_column_goes_out_as_one_array_or_chunk_by_chunk(typed):
    column = typed["list<int32>"][1]["x"]
    assert pa.array(column).to_pylist() == pa.chunked_array(column).to_pylist()
    assert pa.chunked_array(column).num_chunks == 3
    assert pl.Series(column).to_list() == pa.array(column).to_pylist()
    assert pa.schema(typed["list<int32>"][1]) == pa.schema({"x": pa.list_(pa.int32())})
    assert pa.field(column).type == pa.list_(pa.int32())


def test_chunks_of_a_file_leave_and_enter_at_their_own_addresses(tmp_path):
    rows = {"n": np.arange(9), "t": [list(range(i)) for i in range(9)], "s": list("abcdefghi")}
    rows["v"] = [None, *range(8)]
    Dataset.from_dict(rows).save_to_disk(tmp_path / "a.nano", chunk_rows=4)
    ds = load_dataset(tmp_path / "a.nano")
    table = pa.table(ds)
    assert [len(c) for c in table["n"].chunks] == [4, 4, 1]
    for name in rows:
        for number, chunk in enumerate(table[name].chunks):
            array = ds[name].parts[0].file.chunk(name, number)
            ours = [None if b is None else b.ctypes.data for b in array.buffers()]
            theirs = [None if b is None else b.address for b in chunk.buffers()]
            assert theirs[: len(ours)] == ours or name == "t", name
            assert None in (theirs[0], *theirs) or name == "v"
            back = next(iter(import_stream(pa.table({"x": pa.chunked_array([chunk])})).blocks))
            again = list(back.children["x"].buffers())
            assert again[-1].ctypes.data == chunk.buffers()[-1].address


def test_memory_of_another_library_is_given_back_with_the_last_view():
    before = pa.total_allocated_bytes()
    table = pa.table(
        {"x": pa.array(np.arange(1 << 16)) if False else pa.nulls(1 << 16, pa.int64())}
    )
    table = table.set_column(0, "x", table["x"].fill_null(7))
    del_table = Dataset.from_arrow(table)
    view = del_table["x"].block(10, 20).values
    del table, del_table
    gc.collect()
    assert pa.total_allocated_bytes() > before
    assert view.tolist() == [7] * 10
    del view
    gc.collect()
    assert pa.total_allocated_bytes() == before


class Memory(bytearray):
    """Bytes that a weak reference can watch."""


def watched(numbers):
    """Return an array, and a weak reference to its memory."""
    memory = Memory(np.array(numbers, np.int64).tobytes())
    return np.frombuffer(memory, np.int64), weakref.ref(memory)


def test_memory_of_ours_is_given_back_by_the_consumer():
    values, gone = watched(range(1000))
    table = pa.table(Dataset.from_dict({"x": values}))
    sliced = table["x"].slice(990)
    del values, table
    gc.collect()
    assert sliced.to_pylist() == list(range(990, 1000))
    assert gone() is not None
    del sliced
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("make", ["schema", "array", "stream"])
def test_a_capsule_that_nobody_uses_gives_its_memory_back(make):
    values, gone = watched(range(10))
    ds = Dataset.from_dict({"x": values})
    if make == "schema":
        capsule = export_schema(ds.schema)
    else:
        capsule = ds.__arrow_c_stream__() if make == "stream" else export_array(ds.block(0, 10))
    del values, ds, capsule
    gc.collect()
    assert gone() is None


def test_children_that_were_moved_out_outlive_their_parent_and_the_rest_goes_with_it():
    values, gone = zip(*(watched(range(i, i + 10)) for i in range(3)), strict=True)
    ds = Dataset.from_dict(dict(zip("abc", values, strict=True)))
    parent = opened(export_array(ds.block(0, 10)).array, "arrow_array")
    del values, ds
    _, second, _ = inner_structs(parent)
    child = take(ctypes.addressof(second), ArrowArray)
    release(parent)
    assert parent.release is None
    assert [ref() is None for ref in gone] == [True, False, True]
    data = (ctypes.c_int64 * 10).from_address(child.buffers[1])
    assert list(data) == list(range(1, 11))
    release(child)
    assert gone[1]() is None


def test_out_structs_full_of_rubbish_are_filled_whole():
    stream = opened(Dataset.from_dict({"x": [1]}).__arrow_c_stream__(), "arrow_array_stream")
    get = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    for number in range(2):
        out = ArrowArray.from_buffer_copy(b"\xaa" * ctypes.sizeof(ArrowArray))
        assert get(stream.get_next)(ctypes.addressof(stream), ctypes.addressof(out)) == 0
        assert (out.length, out.n_children) == ((1, 1) if number == 0 else (0, 0))
        assert not out.dictionary
        release(out)
        assert out.release is None
    release(stream)


def nothing(*_):
    """Takes what is made, then something fails."""


def test_an_exception_on_its_way_survives_the_release_of_what_we_exported(typed):
    ds = typed["list<int32>"][1]
    makers = [
        lambda: pa.table(ds),
        lambda: pl.DataFrame(ds),
        lambda: pa.RecordBatchReader.from_stream(ds),
        ds.__arrow_c_stream__,
        ds.__arrow_c_schema__,
        ds["x"].__arrow_c_array__,
    ]
    for make in makers:
        # In one frame, which the interpreter unwinds itself ...
        try:
            nothing(make(), 1 / 0)
        except ZeroDivisionError as error:
            assert error.args == ("division by zero",)  # noqa: PT017 - the frame is the point
        # ... and through another one.
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            nothing(make(), 1 / 0)


def test_an_error_while_a_consumer_reads_is_its_error_with_our_message(tmp_path):
    with Writer(tmp_path / "a.nano") as writer:
        writer.write_batch({"s": ["x" * 10] * 9})
    data = bytearray((tmp_path / "a.nano").read_bytes())
    at = data.index(b"x" * 90) - 64
    data[at + 4 : at + 8] = b"\xff\xff\xff\x7f"
    (tmp_path / "a.nano").write_bytes(data)
    with pytest.raises(OSError, match=r"CorruptFileError: .*a\.nano: column 's': offsets"):
        pa.table(load_dataset(tmp_path / "a.nano"))


def test_a_stream_that_fails_is_an_error_with_its_message():
    def batches():
        yield pa.record_batch({"a": [1]})
        raise ValueError("no more today")

    reader = pa.RecordBatchReader.from_batches(pa.schema({"a": pa.int64()}), batches())
    with pytest.raises(OSError, match=r"the Arrow stream failed: .*no more today"):
        Dataset.from_arrow(reader)


def test_slices_at_odd_bits_and_nested_offsets_come_in_right(typed, plain):
    for spelling, forms in typed.items():
        if spelling == "bfloat16":
            continue  # a bare array of pyarrow has no place for the name of the extension
        array = pa.chunked_array([pa.array(forms[0]["x"])]).combine_chunks()
        array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
        for start, stop in [(0, 9), (1, 9), (3, 8), (5, 6), (4, 4)]:
            found = import_array(array[start:stop])
            assert same(found.pylist(), forms[0]["x"][start:stop], plain), spelling


def test_a_table_without_rows_or_columns_keeps_its_schema():
    empty = Dataset.from_arrow(pa.table({"a": pa.array([], pa.float16())}))
    assert (len(empty), str(empty.schema["a"])) == (0, "float16")
    assert pa.table(Dataset.from_dict({})).num_columns == 0
    assert Dataset.from_arrow(pl.DataFrame()).column_names == []


def test_an_array_beyond_32_bit_offsets_leaves_in_pieces(monkeypatch):
    monkeypatch.setattr("nanorlhf.nanosets.arrow.MAX_BYTES", 64)
    ds = Dataset.from_dict({"s": ["x" * i for i in range(20)]})
    table = pa.table(ds)
    assert table["s"].num_chunks > 3
    assert table["s"].to_pylist() == ds["s"][:]


def test_going_out_and_in_a_thousand_times_leaks_nothing():
    array = convert(build([[1, None]] * 50_000), parse("list<int32>"))
    ds = Dataset.from_dict({"a": np.arange(50_000), "t": array, "s": ["xy"] * 50_000})

    def round_trips(count):
        for _ in range(count):
            table = pa.table(ds)
            Dataset.from_arrow(table)
            ds.__arrow_c_stream__()
            assert pa.array(ds["a"])[-1].as_py() == 49_999

    round_trips(20)
    gc.collect()
    before, allocated = resident_bytes(), pa.total_allocated_bytes()
    round_trips(200)
    gc.collect()
    assert pa.total_allocated_bytes() == allocated
    # One leaked table in ten would be 20 times 1 MB.
    assert resident_bytes() - before < 8 << 20


def resident_bytes():
    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[1]) * 4096


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_tables_alive_at_exit_end_the_process_in_peace():
    code = """
import builtins, sys, threading
import numpy as np, polars as pl, pyarrow as pa
from nanorlhf.nanosets import Dataset
ds = Dataset.from_dict({"a": np.arange(1000), "s": ["x"] * 1000})
table, frame, capsule = pa.table(ds), pl.DataFrame(ds), ds.__arrow_c_stream__()
builtins.kept = [pa.table(ds), ds["a"].__arrow_c_array__()]
reader = pa.RecordBatchReader.from_stream(ds)
pa.kept = loop = [pa.table(ds)]
loop.append(loop)
class Late:
    def __del__(self, table=pa.table(ds)): del table
late = Late()
back = Dataset.from_arrow(pa.table({"a": [1, 2]}))
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_it_needs_no_arrow_library():
    code = """
import sys
from nanorlhf.nanosets import Dataset
ds = Dataset.from_arrow(Dataset.from_dict({"a": [1, None], "t": [[1], []]}))
assert [row["a"] for row in ds] == [1, None]
assert not {"pyarrow", "polars", "torch", "pandas"} & set(sys.modules)
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_ctrl_c_while_a_consumer_reads_never_ends_the_process():
    code = """
import os, random, signal, threading, time
import numpy as np, pyarrow as pa
from nanorlhf.nanosets import Dataset, concatenate_datasets
ds = concatenate_datasets([Dataset.from_dict({"a": np.arange(10), "t": [[1]] * 10})] * 100)
random.seed(0)
seen, busy = set(), threading.Event()
def attack():
    while True:
        busy.wait()
        time.sleep(random.random() * 0.004)
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGINT)
            busy.clear()
threading.Thread(target=attack, daemon=True).start()
end = time.monotonic() + 8
count = 0
while time.monotonic() < end:
    try:
        busy.set()
        while True:
            table = pa.table(ds)
            table = None
    except KeyboardInterrupt:
        seen.add("interrupt")
    except OSError as error:
        assert "KeyboardInterrupt" in str(error), error
        seen.add("stream")
    count += 1
assert seen == {"interrupt", "stream"}, seen
print("done", count)
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("done")
