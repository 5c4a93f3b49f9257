import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, Ragged, SchemaError, load_dataset


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
