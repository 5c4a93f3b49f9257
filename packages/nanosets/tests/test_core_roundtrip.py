"""Random types, values, chunks and ways to read, against the plain Python values."""

import json
import tempfile
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanorlhf.nanosets import Writer
from nanorlhf.nanosets.bfloat import widened
from nanorlhf.nanosets.build import build, columns
from nanorlhf.nanosets.column import Column
from nanorlhf.nanosets.convert import concat, convert
from nanorlhf.nanosets.reader import File
from nanorlhf.nanosets.types import Schema, parse

FAR = np.datetime64(10**15, "s")
FIELD_NAMES = st.text("ab \u00e9", min_size=1, max_size=3)

relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def micros(unit):
    """Times that a unit holds exactly."""
    step = {"s": 10**6, "ms": 1000, "us": 1, "ns": 1}[unit]
    years = (1700, 2200) if unit == "ns" else (2, 9998)
    first, last = (datetime(year, 1, 1) for year in years)
    return st.datetimes(first, last).map(
        lambda t: t.replace(microsecond=t.microsecond // step * step if step < 10**6 else 0)
    )


def aware(values):
    return values.map(lambda t: t.replace(tzinfo=UTC))


def bits16(bits):
    return float(widened(np.array([bits], np.uint16))[0])


FLAT = {
    "bool": st.booleans(),
    "int8": st.integers(-128, 127),
    "uint64": st.integers(0, 2**64 - 1),
    "float32": st.floats(width=32),
    "bfloat16": st.integers(0, 2**16 - 1).map(bits16),
    "utf8": st.text(st.characters(codec="utf-8"), max_size=6),
    "binary": st.binary(max_size=6),
    "date32": st.dates() | st.just(np.datetime64(-(2**31), "D")),
    "timestamp[s]": micros("s") | st.just(FAR),
    "timestamp[ms, +05:30]": aware(micros("ms")),
    "timestamp[us]": micros("us"),
    "timestamp[us, Asia/Tokyo]": aware(micros("us")),
    "timestamp[ns]": micros("ns") | st.just(np.datetime64(-1, "ns")),
}
LEAVES = st.sampled_from([*FLAT.items(), ("null", st.none())]) | st.sampled_from(
    [(f"dictionary<{name}>", values) for name, values in FLAT.items()]
)


def maybe(values):
    return st.none() | values


def lists_of(inner):
    name, values = inner
    many = st.lists(maybe(values), max_size=4) | st.lists(values, max_size=4)
    return st.sampled_from([(f"list<{name}>", many), (f"large_list<{name}>", many)])


def fixed_of(inner):
    name, values = inner
    return st.integers(0, 3).map(
        lambda n: (f"fixed_list<{name}, {n}>", st.lists(maybe(values), min_size=n, max_size=n))
    )


def tensor_of(name, outer, inner):
    row = st.lists(FLAT[name], min_size=inner, max_size=inner)
    rows = st.lists(row, min_size=outer, max_size=outer)
    return f"tensor<{name}, {outer}, {inner}>", rows


TENSORS = st.builds(
    tensor_of,
    st.sampled_from(["int8", "float32", "bool", "bfloat16"]),
    st.integers(1, 3),
    st.integers(0, 3),
)


def struct_of(fields):
    spelled = ", ".join(f"{json.dumps(name)}: {dtype}" for name, (dtype, _) in fields.items())
    return f"struct<{spelled}>", st.fixed_dictionaries(
        {n: maybe(v) for n, (_, v) in fields.items()}
    )


TYPES = st.recursive(
    LEAVES | TENSORS,
    lambda inner: (
        inner.flatmap(lists_of)
        | inner.flatmap(fixed_of)
        | st.dictionaries(FIELD_NAMES, inner, max_size=2).map(struct_of)
    ),
    max_leaves=4,
)


@st.composite
def typed_values(draw):
    """A type, and values of it with nulls."""
    dtype, values = draw(TYPES)
    return parse(dtype), draw(st.lists(maybe(values), max_size=9))


@st.composite
def encodings(draw):
    """How to write, and how to read back."""
    write = {
        "checksum": draw(st.sampled_from(["crc32", "xxh3_64"])),
        "compression": draw(st.sampled_from([None, None, "zstd"])),
        "chunk_rows": draw(st.integers(1, 5)),
    }
    return write, draw(st.sampled_from(["mmap", "mmap", "pread", "ram"]))


@relaxed
@given(typed=typed_values(), data=st.data())
def test_an_array_is_the_list_of_its_values_however_it_is_taken(typed, data, plain):
    dtype, values = typed
    array = convert(build(values), dtype)
    want = plain(values)
    assert array.dtype == dtype
    assert plain(array.pylist()) == want
    assert [plain(array.item(0, i)) for i in range(len(values))] == want
    start = data.draw(st.integers(0, len(values)))
    stop = data.draw(st.integers(start, len(values)))
    window = array.window(0, start, stop)
    assert plain(window.pylist()) == want[start:stop]
    assert window.nbytes >= sum(b.nbytes for b in window.buffers() if b is not None)
    picks = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=9)) if values else []
    taken = array.take(0, np.array(picks, np.int64))
    assert plain(taken.pylist()) == [want[i] for i in picks]
    both = concat([window, taken, array])
    assert both.dtype == dtype
    assert plain(both.pylist()) == want[start:stop] + [want[i] for i in picks] + want
    assert plain(convert(both, dtype).pylist()) == plain(both.pylist())


@relaxed
@given(typed=typed_values(), encoding=encodings(), data=st.data())
def test_a_file_reads_back_equal_however_it_is_written_and_read(typed, encoding, data, plain):
    dtype, values = typed
    write, io = encoding
    want = plain(values)
    cut = data.draw(st.integers(0, len(values)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.nano"
        with Writer(path, features={"x": dtype}, **write) as writer:
            writer.write_batch({"x": values[:cut]})
        with Writer(path, append=True, chunk_rows=3) as writer:
            writer.write_rows({"x": value} for value in values[cut:])
        column = Column.of_file(File(path, io=io, verify=True), "x")
        assert column.dtype == dtype
        assert plain(list(column)) == want
        assert [plain(column[i]) for i in range(len(values))] == want
        assert plain(column.block(0, len(values)).pylist()) == want
        size = data.draw(st.integers(1, 4))
        found = [plain(v) for block in column.blocks(size) for v in block.pylist()]
        assert found == want
        picks = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=9)) if values else []
        rows = np.array(picks, np.int64)
        assert plain(column.take(rows).pylist()) == [want[i] for i in picks]
        chosen = column.select(rows)
        assert plain(chosen[:]) == [want[i] for i in picks]
        assert [plain(v) for b in chosen.blocks(size) for v in b.pylist()] == plain(chosen[:])


@relaxed
@given(typed=typed_values())
def test_buffers_are_what_the_directory_names(typed):
    """Buffers of a compact array fill the slots of its type, offsets from 0, at their width."""
    from nanorlhf.nanosets.directory import slots_of

    dtype, values = typed
    array = convert(build(values), dtype).window(0, 0, len(values))
    kinds, buffers = list(slots_of(dtype)), list(array.buffers())
    assert len(kinds) == len(buffers)
    for kind, buffer in zip(kinds, buffers, strict=True):
        if kind == "offsets":
            assert buffer[0] == 0
            assert buffer.dtype in (np.dtype("<i4"), np.dtype("<i8"))
        assert kind == "validity" or buffer is not None


@relaxed
@given(named=st.dictionaries(FIELD_NAMES, typed_values(), max_size=3), encoding=encodings())
def test_tables_of_several_columns_keep_their_slots_apart(named, encoding, plain):
    write, io = encoding
    length = min((len(values) for _, values in named.values()), default=0)
    features = Schema.of({name: dtype for name, (dtype, _) in named.items()})
    want = {name: plain(values[:length]) for name, (_, values) in named.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.nano"
        with Writer(path, features=features, **write) as writer:
            writer.write_batch({name: values[:length] for name, (_, values) in named.items()})
        file = File(path, io=io, verify=True)
        assert file.schema == features
        found = {name: plain(list(Column.of_file(file, name))) for name in file.schema}
    assert found == want


def test_plain_values_of_every_flat_kind_have_the_type_that_they_look_like():
    stamp = datetime(2024, 5, 6, 7, 8, 9, 10)
    rows = columns({"b": [b"x", None], "d": [date(2024, 5, 6), None], "t": [stamp, None]})
    assert str(rows.dtype) == "struct<b: binary, d: date32, t: timestamp[us]>"
    assert rows.pylist()[0] == {"b": b"x", "d": date(2024, 5, 6), "t": stamp}


@pytest.mark.parametrize("io", ["mmap", "pread", "ram"])
def test_a_column_pickles_and_reads_the_same_in_every_mode(io, tmp_path):
    import pickle

    with Writer(tmp_path / "a.nano", chunk_rows=2) as writer:
        writer.write_batch({"x": ["a", None, "c", "d", "e"]})
    column = Column.of_file(File(tmp_path / "a.nano", io=io), "x")
    assert list(pickle.loads(pickle.dumps(column))) == ["a", None, "c", "d", "e"]
