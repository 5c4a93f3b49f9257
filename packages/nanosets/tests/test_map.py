import gc
import tempfile

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, Ragged, SchemaError, calls, load_dataset, parts, results


@pytest.fixture
def ds():
    """Ten shuffled rows."""
    features = {"i": "int32", "t": "list<int32>"}
    rows = [{"i": i, "t": [i] * (i % 3)} for i in range(10)]
    return Dataset.from_list(rows, features=features).shuffle(seed=0)


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_map_adds_and_replaces_columns_by_rows_or_batches(ds, batch_size):
    by_row = ds.map(lambda row: {"i": row["i"] + 1, "n": len(row["t"])}, batch_size=batch_size)
    by_batch = ds.map(
        lambda batch: {"i": np.array(batch["i"]) + 1, "n": [len(t) for t in batch["t"]]},
        batched=True,
        batch_size=batch_size,
    )
    for found in (by_row, by_batch):
        assert found.column_names == ["i", "t", "n"]
        assert found["i"][:] == [i + 1 for i in ds["i"]]
        assert found["n"][:] == [i % 3 for i in ds["i"]]
        assert str(found.schema["i"]) == "int32"  # it still fits the type it had
        assert found.columns["t"].parts == ds.columns["t"].parts


def test_a_replaced_column_that_outgrows_its_type_is_widened(ds):
    assert str(ds.map(lambda row: {"i": row["i"] << 40}).schema["i"]) == "int64"
    assert str(ds.map(lambda row: {"i": str(row["i"])}).schema["i"]) == "utf8"


def test_a_batch_may_change_the_number_of_rows_when_no_old_column_stays(ds):
    def double(batch):
        return {"i": [i for i in batch["i"] for _ in range(2)]}

    found = ds.map(double, batched=True, batch_size=4, remove_columns="t")
    assert found["i"][:] == [i for i in ds["i"] for _ in range(2)]
    message = r"returned 8 rows for a batch of 4, and the columns \['t'\] stay; name them in remove"
    with pytest.raises(ValueError, match=message):
        ds.map(double, batched=True, batch_size=4)


def test_map_takes_indices_ragged_results_and_types(ds):
    found = ds.map(lambda row, i: {"at": i}, with_indices=True, batch_size=3)
    assert found["at"][:] == list(range(10))

    def pack(batch, indices):
        return {"r": Ragged(np.array(indices), np.arange(len(indices) + 1))}

    found = ds.map(pack, batched=True, with_indices=True, batch_size=4, remove_columns=["i", "t"])
    assert [r.tolist() for r in found["r"]] == [[i] for i in range(10)]
    typed = ds.map(lambda row: {"n": 1}, features={"i": "int8", "t": "list<int8>", "n": "uint8"})
    assert repr(typed.schema) == "Schema({'i': 'int8', 't': 'list<int8>', 'n': 'uint8'})"
    with pytest.raises(SchemaError, match=r"asked are \['n'\], the result has \['i', 't', 'n'\]"):
        ds.map(lambda row: {"n": 1}, features={"n": "uint8"})


def test_a_function_that_returns_nothing_changes_nothing(ds):
    seen = []
    assert ds.map(lambda row: seen.append(row["i"])).to_dict()["i"] == ds.to_dict()["i"] == seen
    assert ds.map(lambda batch: None, batched=True, remove_columns="t").column_names == ["i"]


def test_types_settle_over_all_batches(ds):
    found = ds.map(lambda row, i: {"x": None if i < 5 else i / 2}, with_indices=True, batch_size=2)
    assert found["x"][:] == [None] * 5 + [2.5, 3.0, 3.5, 4.0, 4.5]


def test_map_to_a_file_gives_what_map_in_memory_gives(ds, tmp_path, plain):
    def function(row, i):
        return {"x": None if i < 5 else i / 2, "i": row["i"] * 2}

    options = {"with_indices": True, "batch_size": 3}
    memory = ds.map(function, **options)
    disk = ds.map(function, **options, output=tmp_path / "a.nano")
    assert disk.schema == memory.schema
    assert plain(disk.to_list()) == plain(memory.to_list())
    assert plain(load_dataset(tmp_path / "a.nano").to_list()) == plain(memory.to_list())
    ds.map(lambda row: None, output=tmp_path / "b.nano")
    assert plain(load_dataset(tmp_path / "b.nano").to_list()) == plain(ds.to_list())


@pytest.mark.parametrize(
    ("function", "batched", "message"),
    [
        (lambda row: {"x": object()}, False, "row 0, field 'x': object is no column type"),
        (
            lambda row: {"x": "a" if row["t"] is None else row["i"] or "z"},
            False,
            "row 4, field 'x'",
        ),
        (lambda row: 3, False, "a row is a mapping, not 3"),
        (lambda batch: [1], True, "a mapped function returns a dict or None, not a list"),
        (lambda batch: {"x": [1], "y": [1, 2]}, True, "columns differ in length"),
    ],
)
def test_a_bad_answer_is_named_by_row_and_field(function, batched, message, ds):
    ds = ds.select(np.argsort(ds["i"].numpy())).select([1, 2, 3, 4, 0])
    with pytest.raises(SchemaError, match=message):
        ds.map(function, batched=batched)


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_filter_keeps_the_true_rows_in_order(ds, batch_size):
    want = [i for i in ds["i"] if i % 2]
    options = {"batch_size": batch_size}
    assert ds.filter(lambda row: row["i"] % 2, **options)["i"][:] == want
    found = ds.filter(lambda batch: np.array(batch["i"]) % 2 == 1, batched=True, **options)
    assert found["i"][:] == want
    assert ds.filter(lambda i: i % 2, input_columns="i", **options)["i"][:] == want
    first = ds.filter(lambda t, i: i < 3, input_columns=["t"], with_indices=True, **options)
    assert first["i"][:] == ds["i"][:3]
    assert len(ds.filter(lambda row: False, **options)) == 0
    assert ds.filter(lambda row: True).columns["t"].parts == ds.columns["t"].parts


def test_filter_wants_one_answer_for_each_row(ds):
    with pytest.raises(ValueError, match="the function gave 1 answers for 10 rows; give one each"):
        ds.filter(lambda batch: [True], batched=True)


def test_functions_get_plain_lists_that_can_be_joined(ds):
    found = ds.map(lambda row: {"u": row["t"] + row["t"]})
    assert [u.tolist() for u in found["u"]] == [2 * t.tolist() for t in ds["t"]]
    assert ds.filter(lambda batch: [t == [1] for t in batch["t"]], batched=True)["i"][:] == [
        i for i in ds["i"] if i == 1
    ]


def test_only_the_columns_asked_for_are_read(ds):
    def look(batch):
        assert list(batch) == ["i", "t"]
        assert "t" in batch
        assert len(batch) == 2
        assert batch.read == {}
        assert batch["i"]
        assert list(batch.read) == ["i"]
        return {}

    ds.map(look, batched=True)
    ds.map(lambda row: {"read": list(row.batch.read)})


def test_a_function_may_return_what_it_got_with_changes(ds):
    def row_changed(row):
        row["n"] = len(row["t"])
        assert "n" in row
        assert "z" not in row
        return row

    def batch_changed(batch):
        batch["n"] = [len(t) for t in batch["t"]]
        assert "n" in batch
        assert "z" not in batch
        return batch

    want = [{**row, "n": len(row["t"])} for row in ds.to_list()]
    assert ds.map(row_changed, batch_size=3).to_list() == want
    found = ds.map(batch_changed, batched=True, batch_size=3)
    assert found.to_list() == want
    assert found.schema["t"] == ds.schema["t"]
    dropped = ds.map(batch_changed, batched=True, remove_columns="t")
    assert dropped.column_names == ["i", "n"]


def test_columns_that_some_batches_never_looked_at_are_whole(ds):
    def sometimes(row, at):
        if at >= 6:
            row["t"] = [at]
        return row

    found = ds.map(sometimes, with_indices=True, batch_size=2).to_list()
    assert found == [
        {"i": row["i"], "t": row["t"] if at < 6 else [at]} for at, row in enumerate(ds.to_list())
    ]


def test_a_column_cannot_be_deleted_from_within(ds):
    def delete(batch):
        del batch["t"]

    message = "column 't' cannot be deleted from within; name it in remove_columns"
    for batched in (True, False):
        with pytest.raises(TypeError, match=message):
            ds.map(delete, batched=batched)

    def twice(row):
        row["n"] = 1
        assert repr(row) == repr({**row})
        del row["n"]
        return row

    assert ds.map(twice).column_names == ["i", "t"]


def test_a_pair_of_arrays_is_values_and_offsets(ds):
    def pair(batch):
        lengths = [len(t) for t in batch["t"]]
        return {
            "u": (
                np.concatenate([np.array(t, np.int32) for t in batch["t"]]),
                np.cumsum([0, *lengths]),
            )
        }

    found = ds.map(pair, batched=True, batch_size=4)
    assert [u.tolist() for u in found["u"]] == [t.tolist() for t in ds["t"]]
    assert str(found.schema["u"]) == "list<int32>"
    for offsets in ([0, 1], [1, 2], [0, 3, 2]):
        with pytest.raises(SchemaError, match="offsets run from 0 up to the 2 values"):
            ds.map(lambda batch, o=offsets: {"u": (np.zeros(2), np.array(o))}, batched=True)
    with pytest.raises(SchemaError, match="a pair of arrays is"):
        ds.map(lambda batch: {"u": (np.zeros(2), np.zeros(2))}, batched=True)


def test_a_filter_takes_a_mask(ds):
    lengths = ds["t"].lengths()
    assert ds.filter(lengths > 1)["i"][:] == [i for i in ds["i"] if i % 3 > 1]
    assert ds.filter([i == 4 for i in ds["i"]])["i"][:] == [4]
    with pytest.raises(ValueError, match="a mask is 10 bools, one a row, not int64"):
        ds.filter(lengths)
    with pytest.raises(ValueError, match=r"a mask is 10 bools, one a row, not bool \[3\]"):
        ds.filter(np.zeros(3, bool))


def test_a_function_returns_columns_for_all_rows_or_none(ds, tmp_path):
    def sometimes(batch):
        return None if 0 in batch["i"] else {"n": batch["i"]}

    with pytest.raises(ValueError, match="the function returned None for some rows only"):
        ds.map(sometimes, batched=True, batch_size=2)


def test_an_empty_dataset_gets_the_columns_asked_for(tmp_path):
    empty = Dataset.from_list([], features={"t": "list<int8>"})
    features = {"t": "list<int8>", "n": "int32"}
    found = empty.map(lambda row: {"n": 1}, features=features)
    assert found.column_names == ["t", "n"]
    empty.map(lambda row: {"n": 1}, features=features, output=tmp_path / "a.nano", num_proc=4)
    assert load_dataset(tmp_path / "a.nano").schema == found.schema


def test_large_answers_lie_in_a_temporary_file_that_goes_with_them(ds, tmp_path, monkeypatch):
    def widening(row):
        return {"n": row["i"] if row["i"] < 5 else row["i"] / 2, "s": None if row["i"] else "zero"}

    want = ds.map(widening, batch_size=2)
    monkeypatch.setattr(results, "MEMORY_BYTES", 30)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = ds.map(widening, batch_size=2)
    assert len(list(tmp_path.glob("nanosets-*/part.nano"))) == 1
    assert found.schema == want.schema
    assert str(found.to_list()) == str(want.to_list())
    with pytest.raises(ZeroDivisionError):
        ds.map(lambda row: {"n": 1 / (row["i"] - ds["i"][-1])}, batch_size=2)
    with pytest.raises(ValueError, match="returned None for some rows only"):
        ds.map(lambda row: {"n": 1} if row["i"] != ds["i"][-1] else None, batch_size=1)
    del found
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("batch_size", "rows"), [(2, [8, 2]), (3, [9, 1]), (20, [9, 1])])
def test_chunks_of_a_temporary_file_are_whole_batches_if_they_fit(
    batch_size, rows, ds, monkeypatch
):
    monkeypatch.setattr(results, "MEMORY_BYTES", 30)
    monkeypatch.setattr(parts, "PART_CHUNK_ROWS", 9)
    found = ds.map(lambda row: {"n": row["i"]}, batch_size=batch_size)
    assert found["n"].parts[0].chunk_rows.tolist() == rows
    assert found["n"][:] == ds["i"][:]


def test_arrays_that_are_alike_or_not_become_the_same_lists(ds):
    kinds = [np.int32, np.int64, np.float32]
    for dtypes in ([np.int32], kinds):
        made = [np.arange(i % 3, dtype=dtypes[i % len(dtypes)]) for i in range(10)]
        found = ds.map(lambda row, i, made=made: {"a": made[i]}, with_indices=True)
        assert [a.tolist() for a in found["a"]] == [a.tolist() for a in made]
    square = ds.map(lambda row: {"a": np.eye(2, dtype=np.int8)})
    assert str(square.schema["a"]) == "list<list<int8>>"


def test_a_function_that_stops_an_iteration_is_an_error_not_an_end(ds):
    def stop(row, i):
        return {"n": next(iter([])) if i == 7 else i}

    with pytest.raises(RuntimeError, match="the function raised StopIteration at row 7; catch it"):
        ds.map(stop, with_indices=True, batch_size=4, remove_columns=["i", "t"])
    with pytest.raises(RuntimeError, match="raised StopIteration at row 0"):
        ds.filter(lambda row: next(iter([])))


@pytest.mark.parametrize("kind", [None, "python", "numpy"])
def test_a_function_by_rows_gets_what_one_by_batches_gets(kind, ds):
    ds = ds.with_format(kind)
    options = {"fn_kwargs": {"by": 2}, "with_indices": True, "batch_size": 4}

    def row(i, t, at, by):
        return {"n": i * by + at, "u": list(t) * by}

    def batch(numbers, lists, at, by):
        lists = lists.rows() if isinstance(lists, Ragged) else lists
        made = [row(i, t, a, by) for i, t, a in zip(numbers, lists, at, strict=True)]
        return {name: [m[name] for m in made] for name in ("n", "u")}

    found = ds.map(row, input_columns=["i", "t"], **options)
    want = ds.map(batch, input_columns=["i", "t"], batched=True, **options)
    assert str(found[:]) == str(want[:])
    assert found["n"][:] == [2 * i + at for at, i in enumerate(ds["i"])]
    whole = ds.map(lambda row, at, by: {"n": row["i"] * by + at}, **options)
    assert whole["n"][:] == found["n"][:]


def test_a_transform_feeds_functions_by_rows_and_makes_as_many(ds):
    doubled = ds.with_transform(lambda batch: {"i": [2 * i for i in batch["i"]]})
    assert doubled.map(lambda i: {"e": i + 1}, input_columns="i", batch_size=4)["e"][:] == [
        2 * i + 1 for i in ds["i"]
    ]
    fewer = ds.with_transform(lambda batch: {"d": batch["i"][1:]})
    with pytest.raises(ValueError, match="the transform made 3 rows of 4; make one of each"):
        fewer.map(lambda row: {"e": 1}, batch_size=4)


def test_the_garbage_collector_waits_for_short_ranges_and_is_back_after_an_error(ds, monkeypatch):
    seen = []
    ds.map(lambda row: seen.append(gc.isenabled()), batch_size=5)
    ds.filter(lambda row: seen.append(gc.isenabled()), batch_size=5)
    assert seen == [False] * 20
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        ds.map(lambda row: {"n": 1 // 0})
    assert gc.isenabled()
    seen.clear()
    monkeypatch.setattr(calls, "PAUSED_ROWS", 4)
    ds.map(lambda row: seen.append(gc.isenabled()), batch_size=5)
    assert seen == [True] * 10
    gc.disable()
    try:
        ds.map(lambda row: None)
        assert not gc.isenabled()
    finally:
        gc.enable()
