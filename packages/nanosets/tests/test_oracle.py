"""Random tables through random programs of verbs and files, against lists of dicts.

What comes out is read by nanosets itself in every way it has, and by pyarrow, polars and duckdb
through the Arrow capsules, and has to be the same values each time.
"""

import json
import math
import pickle
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanorlhf.nanosets import Dataset, Writer, concatenate_datasets, load_dataset
from nanorlhf.nanosets.bfloat import widened
from nanorlhf.nanosets.directory import dictionaries_of
from nanorlhf.nanosets.types import (
    Dictionary,
    FixedList,
    LargeList,
    List,
    Number,
    Struct,
    Tensor,
    Timestamp,
    parse,
)

repeatable = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
COLUMNS = ["a", "b b", "\u00e9", "d"]
FIELDS = st.text("xy \u00e9", min_size=1, max_size=2)
STAMPS = st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1))
"""Times that every unit and every peer holds."""


def stamps(unit):
    step = {"s": 10**6, "ms": 1000, "us": 1, "ns": 1}[unit]
    return STAMPS.map(lambda t: t.replace(microsecond=t.microsecond // step * step % 10**6))


def integers(name):
    info = np.iinfo(name)
    return st.integers(int(info.min), int(info.max))


FLAT = {
    "bool": st.booleans(),
    **{f"{sign}int{bits}": integers(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 64)},
    **{f"{sign}int{bits}": integers(f"{sign}int{bits}") for sign in ("", "u") for bits in (16, 32)},
    **{f"float{bits}": st.floats(width=bits) for bits in (16, 32, 64)},
    "bfloat16": st.integers(0, 2**16 - 1).map(lambda b: float(widened(np.array([b], "u2"))[0])),
    "utf8": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5),
    "binary": st.binary(max_size=5),
    "date32": st.dates(),
    **{f"timestamp[{unit}]": stamps(unit) for unit in ("s", "ms", "us", "ns")},
    "timestamp[us, UTC]": stamps("us").map(lambda t: t.replace(tzinfo=UTC)),
    "timestamp[ms, Asia/Tokyo]": stamps("ms").map(lambda t: t.replace(tzinfo=UTC)),
    "timestamp[ns, +05:30]": stamps("ns").map(lambda t: t.replace(tzinfo=UTC)),
}


def maybe(values):
    return st.none() | values


def nested(inner):
    """Lists, fixed lists and structs of a type."""
    name, values = inner
    some = st.lists(maybe(values), max_size=4) | st.lists(values, max_size=4)
    return st.one_of(
        st.sampled_from([(f"list<{name}>", some), (f"large_list<{name}>", some)]),
        st.integers(0, 3).map(
            lambda n: (
                f"fixed_list<{name}, {n}>",
                st.lists(maybe(values), min_size=n, max_size=n),
            )
        ),
    )


def struct_of(fields):
    spelled = ", ".join(f"{json.dumps(name)}: {dtype}" for name, (dtype, _) in fields.items())
    return f"struct<{spelled}>", st.fixed_dictionaries(
        {name: maybe(values) for name, (_, values) in fields.items()}
    )


def tensor_of(name, outer, inner):
    row = st.lists(FLAT[name], min_size=inner, max_size=inner)
    return f"tensor<{name}, {outer}, {inner}>", st.lists(row, min_size=outer, max_size=outer)


LEAVES = st.one_of(
    st.sampled_from([*FLAT.items(), ("null", st.none())]),
    st.sampled_from([(f"dictionary<{name}>", values) for name, values in FLAT.items()]),
    st.builds(
        tensor_of,
        st.sampled_from(["uint8", "float16", "float32", "bool"]),
        st.integers(1, 2),
        st.integers(0, 3),
    ),
)
TYPES = st.recursive(
    LEAVES,
    lambda inner: inner.flatmap(nested) | st.dictionaries(FIELDS, inner, max_size=2).map(struct_of),
    max_leaves=3,
)


@st.composite
def tables(draw):
    """Return (features, rows)."""
    names = draw(st.permutations(COLUMNS))[: draw(st.integers(1, 3))]
    types = {name: draw(TYPES) for name in names}
    row = {
        name: maybe(values) if dtype == "null" or draw(st.booleans()) else values
        for name, (dtype, values) in types.items()
    }
    rows = draw(st.lists(st.fixed_dictionaries(row), max_size=10))
    return {name: dtype for name, (dtype, _) in types.items()}, rows


def built(draw, features, rows, path):
    """Return the rows as a dataset, made in one of the ways there are."""
    way = draw(st.sampled_from(["list", "dict", "generator", "file", "appended"]))
    if way == "list":
        return Dataset.from_list(rows, features=features)
    if way == "dict":
        return Dataset.from_dict({n: [row[n] for row in rows] for n in features}, features=features)
    if way == "generator":
        return Dataset.from_generator(lambda: iter(rows), features=features)
    cut = draw(st.integers(0, len(rows))) if way == "appended" else len(rows)
    with Writer(path, features=features, **encoding(draw)) as writer:
        writer.write_rows(rows[:cut])
    if way == "appended":
        with Writer(path, append=True, chunk_rows=draw(st.integers(1, 4))) as writer:
            writer.write_batch({name: [row[name] for row in rows[cut:]] for name in features})
    return reopened(draw, path)


def encoding(draw):
    return {
        "checksum": draw(st.sampled_from(["crc32", "xxh3_64"])),
        "compression": draw(st.sampled_from([None, None, "zstd"])),
        "chunk_rows": draw(st.integers(1, 5)),
    }


def reopened(draw, path):
    return load_dataset(path, verify=True, io=draw(st.sampled_from(["mmap", "pread", "ram"])))


VERBS = ["select", "mask", "skip", "take", "repeat", "shard", "concat", "shuffle", "save", "pickle"]


def step(draw, ds, rows, path):
    """Apply one verb to a dataset and to its rows."""
    verb, size = draw(st.sampled_from(VERBS)), len(rows)
    if verb == "select":
        picks = draw(st.lists(st.integers(0, size - 1), max_size=8)) if rows else []
        return ds.select(picks), [rows[i] for i in picks]
    if verb == "mask":
        mask = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        return ds.filter(mask), [row for row, keep in zip(rows, mask, strict=True) if keep]
    if verb in ("skip", "take"):
        count = draw(st.integers(0, size))
        return getattr(ds, verb)(count), rows[count:] if verb == "skip" else rows[:count]
    if verb == "repeat":
        return ds.repeat(2), rows * 2
    if verb == "shard":
        shards, contiguous = draw(st.integers(1, 3)), draw(st.booleans())
        parts = [ds.shard(shards, i, contiguous=contiguous) for i in range(shards)]
        cut = np.array_split(np.arange(size), shards)
        index = draw(st.integers(0, shards - 1))
        wanted = cut[index] if contiguous else range(index, size, shards)
        return parts[index], [rows[i] for i in wanted]
    if verb == "concat":
        cut = draw(st.integers(0, size))
        return concatenate_datasets([ds.skip(cut), ds]), rows[cut:] + rows
    if verb == "shuffle":
        order = ds.select_columns([]).add_column("at", np.arange(size)).shuffle(seed=size)["at"]
        return ds.shuffle(seed=size), [rows[i] for i in order]
    if verb == "save":
        ds.save_to_disk(path, **encoding(draw))
        return reopened(draw, path), rows
    return pickle.loads(pickle.dumps(ds)), rows


@settings(repeatable, max_examples=150)
@given(table=tables(), data=st.data())
def test_any_program_of_verbs_and_files_does_what_it_does_to_a_list(table, data):
    features, rows = table
    with tempfile.TemporaryDirectory() as folder:
        ds = built(data.draw, features, rows, Path(folder) / "start.nano")
        for number in range(data.draw(st.integers(0, 4))):
            ds, rows = step(data.draw, ds, rows, Path(folder) / f"{number}.nano")
        want = plain(rows)
        assert {name: str(dtype) for name, dtype in ds.schema.items()} == {
            name: str(parse(dtype)) for name, dtype in features.items()
        }
        assert plain(ds.to_list()) == plain(list(ds)) == want
        assert [plain(ds[i]) for i in range(-len(rows), 0)] == want
        start, stop = data.draw(st.integers(-9, 9)), data.draw(st.integers(-9, 9))
        some = slice(start, stop, data.draw(st.sampled_from([1, 2, -1])))
        assert plain(ds[some]) == {name: [row[name] for row in want[some]] for name in features}
        size = data.draw(st.integers(1, 4))
        batches = [plain(batch) for batch in ds.iter(size)]
        assert batches == [
            {name: [row[name] for row in want[at : at + size]] for name in features}
            for at in range(0, len(want), size)
        ]


@settings(repeatable, max_examples=150)
@given(table=tables(), data=st.data())
def test_pyarrow_polars_and_duckdb_read_the_same_values(table, data):
    features, rows = table
    with tempfile.TemporaryDirectory() as folder:
        ds = built(data.draw, features, rows, Path(folder) / "start.nano")
        for number in range(data.draw(st.integers(0, 2))):
            ds, rows = step(data.draw, ds, rows, Path(folder) / f"{number}.nano")
        peers_agree(ds, rows)


def peers_agree(ds, rows):
    """Compare what each peer makes of a dataset with the rows, column by column."""
    table = pa.table(ds)
    table.validate(full=True)
    assert table.num_rows == len(rows)
    assert Dataset.from_arrow(ds).schema == ds.schema
    assert plain(Dataset.from_arrow(ds).to_list()) == plain(rows)
    for name, dtype in ds.schema.items():
        want = [stored(dtype, row[name]) for row in rows]
        one = ds.select_columns(name)
        if refusal(dtype, NOT_BACK_FROM_PYARROW) is None:
            back = Dataset.from_arrow(pa.table(one))
            assert back.schema == one.schema
            assert plain(back[name].to_list()) == plain([row[name] for row in rows])
        assert plain(pa.table(one)[name].to_pylist()) == plain(want)
        if refusal(dtype, NOT_IN_POLARS) is None:
            assert plain(pl.DataFrame(one)[name].to_list()) == plain(want)
        if refusal(dtype, NOT_IN_DUCKDB) is None:
            found = duckdb.sql("select * from one").fetchall()
            assert plain([value for (value,) in found]) == plain(want)


NOT_BACK_FROM_PYARROW = {
    "drops the extension name of a dictionary's values": lambda dtype: (
        isinstance(dtype, Dictionary) and dtype.value == Number("bfloat16")
    ),
}
NOT_IN_POLARS = {
    "knows zones by name, and panics at an offset such as +05:30": lambda dtype: (
        isinstance(dtype, Timestamp) and dtype.tz is not None and dtype.tz[0] in "+-"
    ),
    "cannot tell how many lists of size 0 there are": lambda dtype: (
        isinstance(dtype, FixedList | Tensor) and dtype.size == 0
    ),
}
NOT_IN_DUCKDB = {
    "has arrays of one element and more": lambda dtype: (
        isinstance(dtype, FixedList | Tensor) and dtype.size == 0
    ),
    "has no float16": lambda dtype: dtype == Number("float16"),
    "misreads codes in fixed lists (pyarrow's own too), refuses them in lists that are all empty": (
        lambda dtype: (
            isinstance(dtype, List | LargeList | FixedList) and any(dictionaries_of(dtype))
        )
    ),
    "misreads lists in fixed lists of which null ones hold values (pyarrow's own too)": (
        lambda dtype: (
            isinstance(dtype, FixedList) and isinstance(dtype.children[0], List | LargeList)
        )
    ),
    "makes Python values of zoned times with pytz, which is not installed": lambda dtype: (
        isinstance(dtype, Timestamp) and dtype.tz is not None
    ),
}


def refusal(dtype, reasons):
    """Return why a peer has no such type, None if it has."""
    for reason, holds in reasons.items():
        if holds(dtype):
            return reason
    inner = (dtype.value,) if isinstance(dtype, Dictionary) else dtype.children
    return next(filter(None, (refusal(child, reasons) for child in inner)), None)


def stored(dtype, value):
    """Return a value as libraries without our two extension types see it.

    bfloat16 are the uint16 of their bits, a tensor is one list of its elements.
    """
    if value is None:
        return None
    if isinstance(dtype, Dictionary):
        return stored(dtype.value, value)
    if isinstance(dtype, Number) and dtype.is_bfloat16:
        return int(np.float32(value).view(np.uint32)) >> 16
    if isinstance(dtype, Tensor):
        return [stored(dtype.item, v) for row in value for v in row]
    if isinstance(dtype, List | LargeList | FixedList):
        return [stored(dtype.item, item) for item in value]
    if isinstance(dtype, Struct):
        return {field.name: stored(field.dtype, value[field.name]) for field in dtype.fields}
    return value


def plain(value):
    """Arrays and tuples as lists, numpy's floats as Python's, NaN as a str: for ``==``."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return "nan" if isinstance(value, float) and math.isnan(value) else value
