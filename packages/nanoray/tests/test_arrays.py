"""How values are cut: what stays out of the stream, and what comes back."""

import pickle

import numpy as np
import pytest

from nanorlhf.nanoray.value import pickled


def there_and_back(value):
    """Rebuild a value from read-only buffers, as a reader does."""
    cut = pickled(value)
    buffers = [
        bytearray(buffer) if is_cow else bytes(buffer)
        for buffer, is_cow in zip(cut.buffers, cut.is_cow, strict=True)
    ]
    return cut, pickle.loads(b"".join(cut.chunks), buffers=buffers)


class Tagged(np.ndarray):
    """A subclass with nothing of its own."""


class Stubborn(np.ndarray):
    """A subclass that pickles itself."""

    def __reduce__(self):
        return str, (f"{self.size} numbers",)


ARRAYS = {
    "plain": np.arange(5000.0),
    "0-d": np.array(3.5),
    "empty": np.zeros((0, 4)),
    "Fortran": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "strided": np.arange(100)[::3],
    "reversed": np.arange(10)[::-1],
    "transposed middle": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    "broadcast": np.broadcast_to(np.arange(3), (4, 3)),
    "structured": np.array([(1, 2.5, b"x")], dtype=[("a", "i4"), ("b", "f8"), ("c", "S3")]),
    "record": np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]).view(np.recarray),
    "dates": np.array(["2024-01-01", "NaT"], dtype="M8[D]"),
    "Fortran dates": np.asfortranarray(np.zeros((3, 2), "m8[ns]")),
    "text": np.array(["a", "bcd"]),
    "big-endian": np.arange(4, dtype=">i4"),
    "half": np.arange(4, dtype=np.float16),
    "complex": np.array([1 + 2j]),
    "matrix": np.eye(3).view(np.matrix),
    "subclass": np.arange(9).view(Tagged),
    "read-only": np.frombuffer(b"12345678", np.int64),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_one_buffer_and_come_back_read_only(name):
    array = ARRAYS[name]
    cut, found = there_and_back(array)
    assert type(found) is type(array)
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)
    assert [buffer.nbytes for buffer in cut.buffers] == [array.nbytes]
    assert not found.flags.writeable or not array.size
    if array.flags.f_contiguous:
        assert found.flags.f_contiguous


def test_a_slice_does_not_carry_the_array_it_was_cut_from():
    assert pickled(np.zeros((1000, 1000))[:, 3]).size < 9000


def test_arrays_of_objects_masks_and_own_ways_are_left_to_pickle():
    mixed = np.array([1, "a", None, {"x": [1]}], dtype=object)
    assert there_and_back(mixed)[1].tolist() == mixed.tolist()
    masked = np.ma.masked_array([1.0, 2.0], mask=[True, False])
    assert there_and_back(masked)[1].tolist() == [None, 2.0]
    assert there_and_back(np.arange(3).view(Stubborn))[1] == "3 numbers"
    assert there_and_back(np.float32(2.5))[1] == np.float32(2.5)


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"a": [x, x]}], ids=["bare", "nested"])
def test_long_bytes_are_chunks_of_the_stream_without_a_copy(kind, wrap):
    data = kind(b"ab" * 100_000)
    cut, found = there_and_back(wrap(data))
    assert any(chunk is data for chunk in cut.chunks)
    assert found == wrap(data)
    assert cut.size < 200_000 + 200


def test_arrow_columns_stay_out_of_the_stream():
    pa = pytest.importorskip("pyarrow", reason="Arrow columns need pyarrow")
    table = pa.table({"a": np.arange(100_000), "b": ["x"] * 100_000})
    cut, found = there_and_back(table)
    assert found.equals(table)
    assert cut.stream_size < 2000


def test_polars_frames_travel():
    pl = pytest.importorskip("polars", reason="frames need polars")
    frame = pl.DataFrame({"a": np.arange(1000), "b": ["x"] * 1000})
    assert there_and_back(frame)[1].equals(frame)
