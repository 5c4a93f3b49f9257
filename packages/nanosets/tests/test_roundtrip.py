"""Random schemas, nulls, chunk sizes and picks against plain Python lists."""

import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nanorlhf.nanosets import Dataset, Ragged, Writer, concatenate_datasets, load_dataset

INTS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FLOATS = {"float16": 16, "float32": 32, "float64": 64}
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=4)

relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def maybe(values):
    return st.none() | values


def numbers(name):
    if name in FLOATS:
        return st.floats(width=FLOATS[name])
    info = np.iinfo(name)
    return st.integers(int(info.min), int(info.max))


LEAVES = st.one_of(
    st.sampled_from([*INTS, *FLOATS]).map(lambda name: (name, numbers(name))),
    st.just(("bool", st.booleans())),
    st.just(("utf8", st.text(st.characters(codec="utf-8"), max_size=6))),
    st.just(("null", st.none())),
)


def lists_of(inner):
    name, values = inner
    return f"list<{name}>", st.lists(maybe(values), max_size=5) | st.lists(values, max_size=5)


def structs_of(fields):
    spelled = ", ".join(f"{json.dumps(name)}: {dtype}" for name, (dtype, _) in fields.items())
    return f"struct<{spelled}>", st.fixed_dictionaries(
        {n: maybe(v) for n, (_, v) in fields.items()}
    )


TYPES = st.recursive(
    LEAVES,
    lambda inner: inner.map(lists_of) | st.dictionaries(NAMES, inner, max_size=3).map(structs_of),
    max_leaves=4,
)


@st.composite
def tables(draw):
    """Return (features, rows)."""
    named = draw(st.dictionaries(NAMES, TYPES, min_size=1, max_size=3))
    nulls = draw(st.booleans())
    row = {name: maybe(v) if nulls or dtype == "null" else v for name, (dtype, v) in named.items()}
    rows = draw(st.lists(st.fixed_dictionaries(row), max_size=12))
    return {name: dtype for name, (dtype, _) in named.items()}, rows


@relaxed
@given(table=tables(), data=st.data())
def test_any_table_reads_back_equal_however_it_is_cut_and_picked(table, data, plain):
    features, rows = table
    chunk_rows = data.draw(st.integers(1, 5))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.nano"
        memory = Dataset.from_list(rows, features=features)
        memory.save_to_disk(path, chunk_rows=chunk_rows)
        disk = load_dataset(path, verify=True)
        assert disk.schema == memory.schema
        want = plain(rows)
        for ds in (memory, disk, pickle.loads(pickle.dumps(disk))):
            assert len(ds) == len(rows)
            assert plain(ds.to_list()) == want
            assert [plain(ds[i]) for i in range(-len(rows), 0)] == want
        a, b = data.draw(st.integers(-14, 14)), data.draw(st.integers(-14, 14))
        step = data.draw(st.sampled_from([1, 2, -1]))
        sliced = {name: plain([row[name] for row in rows[a:b:step]]) for name in features}
        assert plain(disk[a:b:step]) == sliced
        picks = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)) if rows else []
        picked = {name: plain([rows[i][name] for i in picks]) for name in features}
        assert plain(disk[picks]) == picked
        chosen = disk.select(picks)
        assert plain(chosen.to_dict()) == picked
        other = Path(folder) / "b.nano"
        chosen.save_to_disk(other, chunk_rows=data.draw(st.integers(1, 4)))
        assert plain(load_dataset(other, verify=True).to_dict()) == picked


@relaxed
@given(table=tables(), data=st.data())
def test_concatenations_of_indexed_parts_are_concatenated_lists(table, data, plain):
    features, rows = table
    cut = data.draw(st.integers(0, len(rows)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.nano"
        Dataset.from_list(rows[:cut], features=features).save_to_disk(path, chunk_rows=3)
        order = data.draw(st.permutations(range(cut)))
        first = load_dataset(path).select(order)
        second = Dataset.from_list(rows[cut:], features=features)
        both = concatenate_datasets([first, second, first])
        want = [rows[i] for i in order]
        want = plain(want + rows[cut:] + want)
        assert plain(both.to_list()) == want
        picks = data.draw(st.lists(st.integers(0, len(want) - 1), max_size=6)) if want else []
        assert plain(both.select(picks).to_list()) == [want[i] for i in picks]
        assert [plain(both[i]) for i in picks] == [want[i] for i in picks]
        both.save_to_disk(Path(folder) / "c.nano", chunk_rows=2)
        assert plain(load_dataset(Path(folder) / "c.nano").to_list()) == want
        order = data.draw(st.permutations(range(len(want))))
        both.select(order).save_to_disk(Path(folder) / "d.nano")
        assert plain(load_dataset(Path(folder) / "d.nano").to_list()) == [want[i] for i in order]


@relaxed
@given(
    rows=st.lists(st.none() | st.lists(st.integers(-9, 9), max_size=80), max_size=20),
    chunk_rows=st.integers(1, 7),
    data=st.data(),
)
def test_gather_packs_any_pick_as_a_loop_over_rows_does(rows, chunk_rows, data):
    column = {"tokens": rows, "mask": [None if r is None else [v > 0 for v in r] for r in rows]}
    types = {"tokens": "list<int32>", "mask": "list<bool>"}
    memory = Dataset.from_dict(column, features=types)
    picks = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=12)) if rows else []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.nano"
        memory.save_to_disk(path, chunk_rows=chunk_rows)
        disk = load_dataset(path)
        twice = concatenate_datasets([disk, memory]).select(range(len(rows), 2 * len(rows)))
        for ds in (memory, disk, twice, disk.select(np.arange(len(rows)))):
            for name in ("tokens", "mask"):
                found = [ds[name][i] for i in picks]
                lists = [[] if value is None else list(value) for value in found]
                values, offsets = ds.gather(name, picks)
                assert values.tolist() == [v for one in lists for v in one]
                assert np.diff(offsets).tolist() == [len(one) for one in lists]
                assert ds[name].lengths(picks).tolist() == [len(one) for one in lists]
                assert values.flags.writeable
                assert offsets.dtype == np.int64
            assert ds.gather("tokens", picks).values.dtype == np.int32


@relaxed
@given(table=tables(), data=st.data())
def test_a_writer_fed_in_any_portions_writes_what_inference_over_all_rows_gives(table, data, plain):
    """Types settle only at the last row, so earlier chunks must be widened."""
    features, rows = table
    # Whether small ints are int64 or uint64 is settled for all rows, or for one portion.
    assume("uint64" not in str(features))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.nano"
        left = list(rows)
        whole = Dataset.from_list(rows)
        with Writer(path, chunk_rows=data.draw(st.integers(1, 4))) as writer:
            while left:
                size = data.draw(st.integers(1, len(left)))
                portion, left = left[:size], left[size:]
                if data.draw(st.booleans()):
                    writer.write_rows(portion)
                else:
                    columns = {name: [row.get(name) for row in portion] for name in portion[0]}
                    writer.write_batch(columns)
        found = load_dataset(path, verify=True)
        assert found.schema == whole.schema
        assert plain(found.to_list()) == plain(whole.to_list())


@pytest.mark.slow
def test_a_million_rows_read_back_equal(tmp_path):
    lengths = np.random.default_rng(0).integers(0, 40, 1_000_000)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = Ragged(np.arange(offsets[-1], dtype=np.int32), offsets)
    Dataset.from_dict({"tokens": tokens}).save_to_disk(tmp_path / "a.nano")
    found = load_dataset(tmp_path / "a.nano", verify=True).gather("tokens")
    assert np.array_equal(found.values, tokens.values)
    assert np.array_equal(found.offsets, offsets)
