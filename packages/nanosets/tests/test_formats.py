from datetime import date

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, Ragged, load_from_disk


@pytest.fixture
def ds(tmp_path):
    """Rows of a file in chunks of four."""
    columns = {
        "i": np.arange(10, dtype=np.int32),
        "f": [i % 2 == 0 for i in range(10)],
        "s": [str(i) for i in range(10)],
        "t": [[i] * (i % 3) for i in range(10)],
        "n": [None if i == 5 else i for i in range(10)],
        "m": [{"k": [i]} for i in range(10)],
    }
    Dataset.from_dict(columns).save_to_disk(tmp_path / "a.nano", chunk_rows=4)
    return load_from_disk(tmp_path / "a.nano")


def test_python_rows_hold_lists(ds):
    row = ds.with_format("python")[4]
    assert row == {"i": 4, "f": True, "s": "4", "t": [4], "n": 4, "m": {"k": [4]}}
    assert ds.with_format("python")[1:3]["t"] == [[1], [2, 2]]
    assert isinstance(ds[4]["t"], np.ndarray)
    assert ds.with_format("python").with_format()[4]["t"].tolist() == [4]


@pytest.mark.parametrize(
    ("key", "rows"),
    [
        (slice(1, 3), [1, 2]),
        (slice(2, 7), [2, 3, 4, 5, 6]),
        ([9, 0, 5], [9, 0, 5]),
        (slice(8, None, -3), [8, 5, 2]),
        (slice(3, 3), []),
        ([], []),
    ],
)
def test_numpy_batches_are_arrays_and_ragged(key, rows, ds):
    found = ds.with_format("numpy")[key]
    assert found["i"].dtype == np.int32
    assert found["i"].tolist() == rows
    assert found["f"].tolist() == [i % 2 == 0 for i in rows]
    assert found["s"] == [str(i) for i in rows]
    assert isinstance(found["t"], Ragged)
    assert [t.tolist() for t in found["t"].rows()] == [[i] * (i % 3) for i in rows]
    nulls = [None if i == 5 else i for i in rows]
    assert (found["n"] if 5 in rows else found["n"].tolist()) == nulls


def test_numpy_batches_of_one_chunk_are_views_of_the_file(ds):
    found = ds.with_format("numpy")[4:8]
    assert not found["i"].flags.owndata
    assert not found["i"].flags.writeable
    assert np.shares_memory(found["i"], ds.columns["i"].parts[0].array.values)
    assert np.shares_memory(found["t"].values, ds.columns["t"].parts[0].array.child.values)


def test_rows_are_cut_from_the_formatted_batch(ds):
    rows = list(ds.with_format("numpy"))
    assert len(rows) == 10
    assert rows[4]["i"] == np.int32(4)
    assert rows[4]["t"].tolist() == [4]
    assert ds.with_format("numpy")[-6]["t"].tolist() == [4]
    assert [row["t"].tolist() for row in ds.with_format("numpy").__getitems__([4, 3])] == [[4], []]
    with pytest.raises(IndexError, match="row 10 is not in a dataset of 10 rows"):
        ds.with_format("numpy")[10]


def test_types_beyond_numbers_have_their_numpy_form():
    days = Dataset.from_dict({"d": [date(2020, 1, 1)]}).with_format("numpy")[:]
    assert days["d"].dtype == np.dtype("M8[D]")
    features = {"b": "bfloat16", "x": "tensor<float32, 2, 2>", "v": "fixed_list<int8, 3>"}
    columns = {"b": [1.5, 2.0], "x": np.ones((2, 2, 2), np.float32), "v": [[1, 2, 3], [4, 5, 6]]}
    found = Dataset.from_dict(columns, features=features).with_format("numpy")[:]
    assert found["b"].tolist() == [1.5, 2.0]
    assert found["x"].shape == (2, 2, 2)
    assert found["v"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_torch_batches_are_tensors(ds):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    found = ds.select_columns(["i", "t", "s"]).with_format("torch")
    batch = found[2:5]
    assert batch["i"].dtype == torch.int32
    assert batch["i"].tolist() == [2, 3, 4]
    assert [t.tolist() for t in batch["t"]] == [[2, 2], [], [4]]
    assert batch["s"] == ["2", "3", "4"]
    assert found[4]["t"].tolist() == [4]
    batch["i"][0] = 7  # a copy: what lies in the file stays
    assert found[2]["i"].item() == 2


def test_a_dataloader_reads_formatted_rows(ds):
    data = pytest.importorskip("torch.utils.data", reason="torch is not installed")
    loader = data.DataLoader(ds.select_columns(["i"]).with_format("torch"), batch_size=4)
    assert [batch["i"].tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_columns_may_be_left_out_or_not_formatted(ds):
    found = ds.with_format("numpy", columns=["t", "i"])
    assert set(found[:2]) == {"t", "i"}
    found = ds.with_format("numpy", columns=["i"], output_all_columns=True)
    assert found[4:6]["i"].tolist() == [4, 5]
    assert [t.tolist() for t in found[4:6]["t"]] == [[4], [5, 5]]
    with pytest.raises(KeyError, match="no column 'z'"):
        ds.with_format("numpy", columns=["z"])


def test_a_format_outlives_other_verbs(ds):
    found = ds.with_format("numpy", columns=["i", "s"])
    assert set(found.rename_column("n", "m2").shuffle(seed=0)[:1]) == {"i", "s"}
    assert set(found.add_column("new", range(10))[:1]) == {"i", "s", "new"}
    assert isinstance(found.take(3)[:]["i"], np.ndarray)
    assert set(found.map(lambda row: {"j": 1})[:1]) == {"i", "s", "j"}


def test_a_transform_makes_every_batch(ds):
    seen = []

    def double(batch):
        seen.append(len(batch["i"]))
        return {"d": [2 * i for i in batch["i"]]}

    found = ds.with_transform(double)
    assert found[3] == {"d": 6}
    assert found[[1, 2]] == {"d": [2, 4]}
    assert [row["d"] for row in found] == [2 * i for i in range(10)]
    assert seen == [1, 2, 10]
    kept = ds.with_transform(double, columns=["i"], output_all_columns=True)[:1]
    assert kept["d"] == [0]
    assert kept["s"] == ["0"]


def test_a_format_that_is_none_is_refused(ds):
    with pytest.raises(ValueError, match=r"type='jax' is no format; use None or one of"):
        ds.with_format("jax")


def test_mapped_functions_get_formatted_batches(ds):
    def lengths(batch):
        assert isinstance(batch["t"], Ragged)
        return {"l": batch["t"].lengths, "sum": batch["i"] + 1}

    found = ds.with_format("numpy").map(lengths, batched=True, batch_size=3)
    assert found["l"][:] == [i % 3 for i in range(10)]
    assert found["sum"][:] == list(range(1, 11))
    kept = ds.with_format("numpy").filter(lambda batch: batch["i"] > 6, batched=True, batch_size=4)
    assert kept["i"][:] == [7, 8, 9]
