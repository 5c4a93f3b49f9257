"""What is written is what arrays and rows held when they were passed, whatever becomes of them."""

import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, Ragged, Writer, load_from_disk
from nanorlhf.nanosets.owned import owned_columns


def test_a_batch_may_be_filled_again(tmp_path):
    path = tmp_path / "a.nano"
    flat, pair = np.arange(3), np.arange(6).reshape(3, 2)
    values, offsets = np.arange(4), np.array([0, 1, 1, 4])
    lists = [np.arange(2), np.arange(0), np.arange(3)]
    with Writer(path) as writer:
        for _ in range(2):
            batch = {"flat": flat, "pair": pair, "ragged": Ragged(values, offsets), "lists": lists}
            writer.write_batch(batch)
            for array in (flat, pair, values, *lists):
                array += 10
            offsets[:] = [0, 3, 4, 4]
    found = load_from_disk(path).with_format("python").to_dict()
    assert found["flat"] == [0, 1, 2, 10, 11, 12]
    assert found["pair"] == [[0, 1], [2, 3], [4, 5], [10, 11], [12, 13], [14, 15]]
    assert found["ragged"] == [[0], [], [1, 2, 3], [10, 11, 12], [13], []]
    assert found["lists"] == [[0, 1], [], [0, 1, 2], [10, 11], [], [10, 11, 12]]


def rows_of_one_dict():
    """One dict, its list, dict and array, changed after each row."""
    row = {"x": 0, "list": [[0]], "deep": {"y": [0]}, "array": np.zeros(2, np.int64)}
    row["b"] = bytearray(b"0")
    row["both"] = [b"x", row["b"]]
    for i in range(3):
        row["x"] = i
        row["list"][0].append(i)
        row["deep"]["y"][0] = i
        row["array"][:] = i
        row["b"][:] = b"%d" % i
        yield row


WANT = {
    "x": [0, 1, 2],
    "list": [[[0, 0]], [[0, 0, 1]], [[0, 0, 1, 2]]],
    "deep": [{"y": [0]}, {"y": [1]}, {"y": [2]}],
    "array": [[0, 0], [1, 1], [2, 2]],
    "b": [b"0", b"1", b"2"],
    "both": [[b"x", b"0"], [b"x", b"1"], [b"x", b"2"]],
}


def test_a_row_may_be_changed_and_written_again(tmp_path):
    path = tmp_path / "a.nano"
    with Writer(path) as writer:
        writer.write_rows(rows_of_one_dict())
    assert load_from_disk(path).with_format("python").to_dict() == WANT


@pytest.mark.parametrize("to_file", [False, True])
def test_a_generator_may_yield_one_dict(to_file, tmp_path):
    output = tmp_path / "a.nano" if to_file else None
    found = Dataset.from_generator(rows_of_one_dict, output=output)
    assert found.with_format("python").to_dict() == WANT


@pytest.mark.parametrize("output", [None, "a.nano"])
def test_a_mapped_function_may_fill_its_arrays_for_every_batch(output, tmp_path):
    flat, values = np.zeros(2, np.int64), np.zeros(4, np.int64)

    def filled(batch):
        flat[:] = batch["i"]
        values[:] = np.repeat(batch["i"], 2)
        return {"flat": flat, "pair": (values, np.array([0, 2, 4])), "view": flat[:]}

    ds = Dataset.from_dict({"i": range(8)})
    output = None if output is None else tmp_path / output
    made = ds.map(filled, batched=True, batch_size=2, output=output)
    found = made.with_format("python").to_dict()
    assert found["flat"] == found["view"] == list(range(8))
    assert found["pair"] == [[i, i] for i in range(8)]


def test_tensors_are_copied_too():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16):
        tensor = torch.arange(3, dtype=dtype)
        kept = owned_columns({"x": tensor})
        tensor += 1
        assert Dataset.from_dict(kept)["x"][:] == [0, 1, 2]


def test_columns_of_pandas_are_copied_though_they_are_arrow_arrays_too():
    pandas = pytest.importorskip("pandas")
    series = pandas.Series([1.5, 2.5])
    kept = owned_columns({"x": series})
    series.iloc[:] = 0
    assert Dataset.from_dict(kept)["x"][:] == [1.5, 2.5]


def test_what_cannot_change_is_not_copied():
    array = np.frombuffer(b"abc", np.uint8)
    assert owned_columns({"x": array})["x"] is array
    base = np.arange(3)
    view = base[:]
    view.flags.writeable = False
    assert owned_columns({"x": view})["x"] is not view
