import csv
import json

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, load_dataset
from nanorlhf.nanosets.blocks import cuts


@pytest.fixture
def ds(rows):
    return Dataset.from_list(rows).select([8, 1, 2, 7, 3])


@pytest.fixture
def picked(rows):
    return [rows[i] for i in (8, 1, 2, 7, 3)]


def test_lists_and_dicts_hold_plain_values(ds, picked):
    assert ds.to_list() == picked
    assert ds.to_dict() == {name: [row[name] for row in picked] for name in picked[0]}
    assert ds.with_format("numpy").to_list() == picked
    assert json.loads(json.dumps(ds.to_list())) == picked


def test_json_lines_come_back(ds, picked, tmp_path):
    ds.to_json(tmp_path / "a.jsonl")
    written = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in written] == picked
    assert load_dataset(tmp_path / "a.jsonl").to_list() == picked


def test_flat_columns_come_back_from_csv(ds, picked, tmp_path):
    flat = ds.select_columns(["id", "score", "text"])
    flat.to_csv(tmp_path / "a.csv")
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as handle:
        found = list(csv.DictReader(handle))
    assert [row["id"] for row in found] == [str(row["id"]) for row in picked]
    again = Dataset.from_csv(tmp_path / "a.csv")
    assert again["score"][:] == [row["score"] for row in picked]


def test_tables_of_other_libraries_hold_the_same_rows(ds, picked):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table = ds.to_arrow()
    table.validate(full=True)
    assert table.to_pylist() == picked
    assert Dataset.from_arrow(table).to_list() == picked


def test_pandas_and_polars_frames_hold_the_same_values(ds, picked):
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = ds.to_pandas()
    assert frame["id"].tolist() == [row["id"] for row in picked]
    assert [list(t) if t is not None else None for t in frame["tokens"]] == [
        row["tokens"] for row in picked
    ]
    pytest.importorskip("polars", reason="polars is not installed")
    assert ds.remove_columns("nothing").to_polars()["text"].to_list() == [
        row["text"] for row in picked
    ]


def test_parquet_files_come_back(ds, picked, tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    ds.remove_columns("nothing").to_parquet(tmp_path / "a.parquet")
    found = Dataset.from_parquet(tmp_path / "a.parquet", columns=["id", "messages"])
    assert found.to_list() == [{"id": r["id"], "messages": r["messages"]} for r in picked]


def test_a_shuffled_file_is_saved_in_its_order_and_in_large_chunks(tmp_path):
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 9, k).tolist() for k in rng.integers(0, 50, 3000)]
    Dataset.from_dict({"t": rows, "i": range(3000)}).save_to_disk(
        tmp_path / "a.nano", chunk_rows=100
    )
    shuffled = load_dataset(tmp_path / "a.nano").shuffle(seed=5)
    shuffled.save_to_disk(tmp_path / "b.nano")
    found = load_dataset(tmp_path / "b.nano", verify=True)
    order = np.random.default_rng(5).permutation(3000)
    assert found["i"][:] == order.tolist()
    assert found.to_dict()["t"] == [rows[i] for i in order]
    assert len(found.columns["i"].parts[0].chunk_rows) == 1


def test_blocks_to_gather_are_bounded_where_rows_grow_long():
    lengths = [1] * 3000 + [2000] * 50 + [100_000] + [1] * 500
    columns = {"t": [np.zeros(n, np.int8) for n in lengths], "i": range(len(lengths))}
    ds = Dataset.from_dict(columns).select(np.arange(len(lengths)))
    found = cuts(ds.columns, max_rows=1000, max_bytes=20_000)
    assert [rows.start for rows in found] == [0] + [rows.stop for rows in found[:-1]]
    assert found[-1].stop == len(lengths)
    assert max(rows.stop - rows.start for rows in found) <= 1000
    for start, stop in found:
        assert stop - start == 1 or ds.block(start, stop).nbytes <= 60_000
    assert len(found) < 30


def test_no_rows_and_rows_of_any_length_are_saved(tmp_path):
    lengths = [0] * 2000 + [5000] * 30 + [1] * 2000
    rows = [{"t": [i % 7] * n, "m": {"s": "x" * (n // 9)}} for i, n in enumerate(lengths)]
    ds = Dataset.from_list(rows)
    for order in ([], list(range(len(rows))), list(range(len(rows) - 1, -1, -1))):
        ds.select(order).save_to_disk(tmp_path / "a.nano", chunk_bytes=20_000)
        found = load_dataset(tmp_path / "a.nano")
        assert found.to_list() == [rows[i] for i in order]
        assert found.schema == ds.schema
