import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanorlhf.nanosets import Ragged
from nanorlhf.nanosets.gather import JOINED_ROWS, expand, offsets_of, packed, resolve

RANGES = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 90)), max_size=8)


def as_arrays(ranges):
    starts = np.array([a for a, _ in ranges], np.int64)
    lengths = np.array([n for _, n in ranges], np.int64)
    return starts, lengths


@given(RANGES)
def test_packed_equals_a_loop_over_ranges_short_or_long(ranges):
    values = np.arange(300)[::-1].copy()
    starts, lengths = as_arrays(ranges)
    want = [v for a, n in ranges for v in values[a : a + n].tolist()]
    assert packed(values, starts, starts + lengths).tolist() == want


@given(RANGES)
def test_expand_lists_every_position(ranges):
    want = [p for a, n in ranges for p in range(a, a + n)]
    assert expand(*as_arrays(ranges)).tolist() == want


def test_ranges_that_follow_one_another_are_a_view():
    values = np.arange(10)
    found = packed(values, np.array([2, 4, 4]), np.array([4, 4, 9]))
    assert found.base is values
    assert found.tolist() == [2, 3, 4, 5, 6, 7, 8]


@given(st.lists(st.lists(st.integers(1, 9), max_size=5), max_size=6), st.booleans())
def test_padding_equals_a_loop_over_rows(rows, left):
    flat = np.array([v for row in rows for v in row], np.int32)
    ragged = Ragged(flat, offsets_of(np.array([len(row) for row in rows], np.int64)))
    width = max(map(len, rows), default=0)
    fill = [[-1] * (width - len(row)) for row in rows]
    want = [f + r if left else r + f for r, f in zip(rows, fill, strict=True)]
    found = ragged.padded(pad_value=-1, left=left)
    assert found.tolist() == want
    assert found.dtype == np.int32
    assert [row.tolist() for row in ragged.rows()] == rows
    assert ragged.padded(length=width + 2).shape == (len(rows), width + 2)


def test_padding_below_the_longest_row_is_refused():
    ragged = Ragged(np.arange(3), np.array([0, 3]))
    with pytest.raises(ValueError, match="length=2 is below the longest row, 3; raise it"):
        ragged.padded(length=2)


@pytest.mark.parametrize(
    ("key", "want"),
    [
        (slice(None, None, -2), [4, 2, 0]),
        (range(3, 1, -1), [3, 2]),
        ([-1, 0], [4, 0]),
        (np.array([1, 1], np.uint8), [1, 1]),
        ([], []),
        (range(0), []),
        ((i for i in (4, 2)), None),
    ],
)
def test_rows_are_picked_by_slice_range_list_or_array(key, want):
    if want is None:
        with pytest.raises(TypeError, match="picked by a slice, range, list or array"):
            resolve(key, 5)
    else:
        assert resolve(key, 5).tolist() == want


@pytest.mark.parametrize("key", [[True, False], 1.5, "ab", [[1]], [1.0], None])
def test_anything_else_is_refused_with_the_way_out(key):
    with pytest.raises(TypeError, match=r"for a mask use np\.flatnonzero"):
        resolve(key, 2)


@pytest.mark.parametrize(("key", "bad"), [([5], 5), ([-6], -6), (range(3, 7), 6)])
def test_a_row_out_of_range_is_named(key, bad):
    with pytest.raises(IndexError, match=rf"row {bad} is not in a dataset of 5 rows; use 0 \.\. 4"):
        resolve(key, 5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16])
@pytest.mark.parametrize("mean", [4, 40, 400, 3000])
def test_ranges_of_every_length_are_packed_whatever_way_is_fastest(mean, dtype):
    rng = np.random.default_rng(mean)
    values = rng.integers(0, 100, 50_000).astype(dtype)
    starts = rng.integers(0, 40_000, JOINED_ROWS + 7)
    stops = starts + rng.integers(0, 2 * mean, len(starts))
    found = packed(values, starts, stops)
    assert found.dtype == dtype
    assert found.flags.owndata
    assert found.flags.writeable
    want = [values[a:b] for a, b in zip(starts, stops, strict=True)]
    assert np.array_equal(found, np.concatenate(want))
