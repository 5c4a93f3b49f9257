"""``map`` and ``filter`` in several processes, forks and fresh interpreters."""

import functools
import gc
import os
import signal
import sys
import tempfile
import time

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, SchemaError, WorkerError, load_from_disk
from nanorlhf.nanosets.workers import is_importable

FUNCTIONS = """
import os
import sys

def lengths(row, extra=0):
    return {"n": len(row["t"] or []) + extra, "pid": os.getpid()}

def is_odd(row):
    return row["i"] % 2 == 1

def job_bytes(row):
    return {"n": os.path.getsize(sys.argv[1])}

def fails(row):
    if row["i"] == 23:
        raise ValueError("23 is a bad number")
    return {"n": 1}

def dies(row):
    if row["i"] == 23:
        os._exit(7)
    return {"n": 1}
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """A module that other processes can import too."""
    (tmp_path / "functions_of_a_test.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    import functions_of_a_test

    yield functions_of_a_test
    del sys.modules["functions_of_a_test"]


@pytest.fixture
def ds(tmp_path):
    """Forty rows of a file, in another order."""
    columns = {"i": range(40), "t": [None if i == 3 else [i] * (i % 4) for i in range(40)]}
    Dataset.from_dict(columns).save_to_disk(tmp_path / "in.nano", chunk_rows=7)
    return load_from_disk(tmp_path / "in.nano").shuffle(seed=0)


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    yield
    gc.collect()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_forks_make_what_one_process_makes(ds, plain):
    def double(row):
        return {"i": row["i"] * 2, "x": None if row["i"] < 30 else row["i"] / 2}

    options = {"batch_size": 3}
    alone = ds.map(double, **options)
    for num_proc in (2, 5, 100):
        found = ds.map(double, **options, num_proc=num_proc)
        assert found.schema == alone.schema
        assert plain(found.to_list()) == plain(alone.to_list())
    assert found.columns["t"].parts == ds.columns["t"].parts


def test_fresh_interpreters_make_what_one_process_makes(ds, functions, plain):
    memory = Dataset.from_list(ds.to_list())
    options = {"batch_size": 8, "fn_kwargs": {"extra": 2}}
    want = [len(t or []) + 2 for t in ds.to_dict()["t"]]
    found = memory.map(functions.lengths, **options, num_proc=2)
    assert found["n"][:] == want
    assert len({os.getpid(), *found["pid"]}) == 3
    large = memory.add_column("text", ["x" * 10_000] * 40)
    small_job = large.map(functions.job_bytes, num_proc=2, batch_size=20)
    assert max(small_job["n"]) < 10_000  # the rows travel in a file of their own
    kept = ds.filter(functions.is_odd, num_proc=2, batch_size=9)
    assert kept.to_list() == [row for row in ds.to_list() if row["i"] % 2]


def test_what_pickle_cannot_name_elsewhere_is_forked(ds, functions, monkeypatch):
    main_class = type("OfMain", (), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "OfMain", main_class, raising=False)
    assert not is_importable(functions.lengths, {"k": main_class()})
    assert is_importable(functools.partial(functions.lengths, extra=1))
    assert not is_importable(functools.partial(functions.lengths, extra=main_class()))
    assert is_importable(functions.lengths, {})
    assert not is_importable(functions.lengths, {"k": lambda: 0})
    assert not is_importable(lambda row: row)
    assert not is_importable(type("Local", (), {"__call__": lambda self, row: row})())
    parent = os.getpid()
    found = ds.map(lambda row: {"pid": os.getpid()}, num_proc=2, batch_size=20)
    assert len({parent, *found["pid"]}) == 3


def test_a_row_gets_its_number_through_the_whole_dataset(ds):
    found = ds.map(lambda row, at: {"at": at}, with_indices=True, num_proc=3, batch_size=4)
    assert found["at"][:] == list(range(40))
    kept = ds.filter(lambda row, at: at % 10 == 9, with_indices=True, num_proc=3, batch_size=4)
    assert kept["i"][:] == ds["i"][9::10]


def test_parts_are_there_as_long_as_a_dataset_over_them(ds, tmp_path):
    folder = tmp_path / "tmp"
    found = ds.map(lambda row: {"n": row["i"]}, num_proc=2, batch_size=10)
    picked = found.select([3, 1]).select_columns(["n"])
    del found
    gc.collect()
    assert len(list(folder.glob("*/part-*.nano"))) == 2
    assert picked["n"][:] == [ds["i"][3], ds["i"][1]]
    del picked
    gc.collect()
    assert list(folder.iterdir()) == []


def test_an_output_is_written_beside_its_parts_and_they_go(ds, tmp_path):
    out = tmp_path / "deep" / "out.nano"
    found = ds.map(lambda row: {"n": row["i"]}, num_proc=2, batch_size=10, output=out)
    assert found.columns["n"].parts[0].source == str(out)
    assert load_from_disk(out, verify=True)["n"][:] == ds["i"][:]
    gc.collect()
    assert list(out.parent.iterdir()) == [out]


def test_types_of_the_parts_are_widened_to_hold_all(ds):
    def late(row, at):
        return {"x": 1 if at < 25 else 1.5, "y": None if at < 25 else "y"}

    found = ds.map(late, with_indices=True, num_proc=4, batch_size=5)
    assert found["x"][:] == [1.0] * 25 + [1.5] * 15
    assert found["y"][:] == [None] * 25 + ["y"] * 15
    with pytest.raises(SchemaError, match="holds both int64 and utf8"):
        ds.map(
            lambda row, at: {"x": 1 if at < 20 else "z"},
            with_indices=True,
            num_proc=4,
            batch_size=5,
        )


def test_a_function_may_return_nothing_or_other_rows(ds):
    assert ds.map(lambda row: None, num_proc=2, batch_size=10).to_list() == ds.to_list()
    grown = ds.map(
        lambda batch: {"i": [i for i in batch["i"] for _ in range(2)]},
        batched=True,
        batch_size=7,
        remove_columns=["t"],
        num_proc=3,
    )
    assert grown["i"][:] == [i for i in ds["i"] for _ in range(2)]
    none = ds.map(
        lambda batch: {"i": []}, batched=True, batch_size=9, remove_columns=["t"], num_proc=2
    )
    assert len(none) == 0


@pytest.mark.parametrize("fresh", [True, False])
def test_a_function_that_raises_is_one_error_with_its_rows(fresh, ds, functions):
    fails = functions.fails if fresh else lambda row: functions.fails(row)
    start = ds["i"][:].index(23) // 2 * 2
    message = rf"rows {start} \.\. {start + 2}: ValueError: 23 is a bad number"
    with pytest.raises(WorkerError, match=message) as found:
        ds.map(fails, num_proc=3, batch_size=2)
    assert found.value.rows == (start, start + 2)
    assert "in fails" in str(found.value)
    assert isinstance(found.value.__cause__, ValueError)
    with pytest.raises(WorkerError, match=message):
        ds.filter(fails, num_proc=3, batch_size=2)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_worker_that_dies_is_one_error_with_its_rows(fresh, ds, functions):
    dies = functions.dies if fresh else lambda row: functions.dies(row)
    start = ds["i"][:].index(23) // 2 * 2
    with pytest.raises(WorkerError, match=rf"rows {start} \.\. .* the worker died of exit code 7"):
        ds.map(dies, num_proc=3, batch_size=2)

    def killed(row):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerError, match="the worker died of signal SIGKILL; if memory ran out"):
        ds.filter(killed, num_proc=2, batch_size=5)


def test_the_others_are_ended_when_one_raises(ds):
    def slow(row, at):
        if at == 0:
            raise ValueError("the first")
        time.sleep(60)

    start = time.monotonic()
    with pytest.raises(WorkerError, match="the first"):
        ds.map(slow, with_indices=True, num_proc=4, batch_size=10)
    assert time.monotonic() - start < 30


def test_a_bad_answer_is_named_by_its_row(ds):
    def bad(row, at):
        return {"x": object() if at == 17 else 1}

    with pytest.raises(WorkerError, match="row 17, field 'x': object is no column type") as found:
        ds.map(bad, with_indices=True, num_proc=2, batch_size=10)
    assert isinstance(found.value.__cause__, SchemaError)
    assert found.value.__cause__.row == 17


def test_what_a_worker_cannot_import_is_said(ds, functions, tmp_path):
    (tmp_path / "functions_of_a_test.py").write_text("1 / 0")
    with pytest.raises(WorkerError, match="ZeroDivisionError"):
        ds.map(functions.lengths, num_proc=2, batch_size=10)


def test_an_error_that_pickle_cannot_carry_is_still_told(ds):
    class LocalError(Exception):
        pass

    def bad(row):
        raise LocalError("only here")

    with pytest.raises(WorkerError, match="LocalError: only here") as found:
        ds.map(bad, num_proc=2, batch_size=10)
    assert found.value.__cause__ is None


def test_without_fork_a_local_function_is_refused(ds, monkeypatch):
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(ValueError, match="needs a function that another process can import"):
        ds.map(lambda row: row, num_proc=2, batch_size=10)


def test_a_format_travels_to_the_workers(ds):
    def lengths(batch):
        return {"n": batch["i"] + 1}

    found = (
        ds.select_columns("i")
        .with_format("numpy")
        .map(lengths, batched=True, batch_size=6, num_proc=2)
    )
    assert found["n"][:] == (np.array(ds["i"][:]) + 1).tolist()
