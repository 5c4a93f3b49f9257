"""Chunks that are written in pieces read as if their rows had come at once."""

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, Ragged, SchemaError, Writer, load_from_disk
from nanorlhf.nanosets.build import build
from nanorlhf.nanosets.types import Schema


def tables(rows, count):
    """Columns of many kinds in ``count`` batches, long enough for pieces to stay apart."""
    rng = np.random.default_rng(0)
    for start in range(0, rows * count, rows):
        lengths = rng.integers(0, 400, rows)
        edges = np.concatenate([[0], np.cumsum(lengths)])
        yield {
            "id": np.arange(start, start + rows),
            "ids": Ragged(rng.integers(0, 9, edges[-1]).astype(np.int32), edges),
            "text": ["x" * (i % 300) for i in range(start, start + rows)],
            "maybe": [None if i % 7 == 0 else i * 0.5 for i in range(start, start + rows)],
            "chat": [[{"role": "user", "n": i}] * (i % 3) for i in range(start, start + rows)],
            "flag": [i % 2 == 0 for i in range(start, start + rows)],
            "kind": [("a", "b")[i % 2] for i in range(start, start + rows)],
        }


@pytest.mark.parametrize("kind", ["utf8", "dictionary<utf8>"])
@pytest.mark.parametrize("options", [{}, {"checksum": "crc32"}, {"compression": "zstd"}])
def test_many_batches_make_the_chunks_of_one(tmp_path, plain, options, kind):
    some = list(tables(300, 7))
    types = {name: str(build(some[0][name]).dtype) for name in some[0]}
    types["kind"] = kind
    with Writer(tmp_path / "a.nano", features=types, chunk_rows=1000, **options) as writer:
        for batch in some:
            writer.write_batch(batch)
    found = load_from_disk(tmp_path / "a.nano", verify=True)
    assert found.schema == Schema.of(types)
    want = [row for batch in some for row in Dataset.from_dict(batch).cast(types).to_list()]
    assert plain(found.to_list()) == plain(want)


@pytest.mark.parametrize(
    "rows",
    [
        [np.arange(3), np.arange(6)[::2], np.zeros(0, np.int64)],
        [np.zeros(0, np.float32)] * 2,
        [np.zeros(2, "M8[us]"), np.ones(3, "M8[us]")],
        [np.arange(3, dtype=">i4"), np.arange(1, dtype=">i4")],
        [np.arange(2, dtype=np.int32), np.arange(2, dtype=np.float32)],
        [np.array([True, False]), np.array([True])],
    ],
)
def test_arrays_of_any_make_become_their_rows(rows, plain):
    want = [row.tolist() for row in rows]
    assert plain(Dataset.from_dict({"c": build(rows)})["c"][:]) == want


def test_arrays_of_different_dimensions_are_refused_even_if_their_bytes_would_fit():
    with pytest.raises(SchemaError, match=r"arrays of \[1, 2\] dimensions"):
        build([np.zeros(2, np.int32), np.zeros((3, 1), np.int32)])
