import numpy as np
import pytest

from nanorlhf.nanosets.arrays import Numbers
from nanorlhf.nanosets.bits import Bits
from nanorlhf.nanosets.build import build, struct
from nanorlhf.nanosets.column import Column
from nanorlhf.nanosets.nested import lists


def lists_with_hidden_values():
    """[[1, 2], None, [4]] where the null covers a 3, as Arrow allows."""
    array = build([[1, 2], [3], [4]])
    array.valid = Bits.pack(np.array([True, False, True]))
    return array


def test_elements_under_a_null_list_stay_hidden():
    column = Column.of(lists_with_hidden_values())
    assert [None if v is None else v.tolist() for v in column] == [[1, 2], None, [4]]
    values, offsets = column.gather()
    assert values.tolist() == [1, 2, 4]
    assert offsets.tolist() == [0, 2, 2, 3]
    assert column.lengths().tolist() == [2, 0, 1]
    taken = column.take(np.array([1, 2]))
    assert [b.tolist() for b in taken.buffers() if b is not None] == [[2], [0, 0, 1], [4]]


def test_strings_under_a_null_need_not_be_utf8():
    array = build(["a", "b", "c"])
    array.child = Numbers(array.child.dtype, np.frombuffer(b"a\xffc", np.uint8))
    array.valid = Bits.pack(np.array([True, False, True]))
    assert array.pylist() == ["a", None, "c"]
    assert [array.item(0, i) for i in range(3)] == ["a", None, "c"]


@pytest.mark.parametrize("words", [["a", "bc", ""], ["a", "\u00e9", "\u20ac\U0001f600", ""]])
@pytest.mark.parametrize("nulls", [False, True])
def test_strings_that_follow_one_another_are_those_read_one_by_one(nulls, words):
    values = [None if nulls and i % 5 == 3 else words[i % len(words)] for i in range(30)]
    array = build(values)
    for start, stop in ((0, 30), (7, 23), (4, 4)):
        assert array.stretch(0, start, stop) == values[start:stop]
        window = array.window(0, start, stop)
        assert window.pylist() == [window.item(0, i) for i in range(stop - start)]
    structs = build([{"s": v} if v != "" else None for v in values])
    assert structs.stretch(0, 2, 9) == [{"s": v} if v != "" else None for v in values[2:9]]


def test_a_null_struct_hides_its_fields():
    array = struct({"a": build([1, 2])}, length=2, valid=np.array([False, True]))
    assert array.pylist() == [None, {"a": 2}]
    assert array.window(0, 0, 1).pylist() == [None]


def test_a_window_counts_from_zero_and_shares_the_values():
    child = build(np.arange(10, dtype=np.int16))
    array = lists(np.array([0, 4, 4, 10]), child)
    window = array.window(0, 1, 3)
    assert window.edges.tolist() == [0, 0, 6]
    assert np.shares_memory(window.child.values, child.values)
    assert [v.tolist() for v in window.pylist()] == [[], [4, 5, 6, 7, 8, 9]]


def test_bits_cross_bytes_and_chunks_without_bits_are_all_ones():
    mask = np.random.default_rng(0).random(50) < 0.5
    bits = Bits(np.packbits(mask, bitorder="little"), np.array([0, -1, 16]))
    assert bits.test(0, np.arange(50)).tolist() == mask.tolist()
    assert bits.run(2, 3, 30).tolist() == mask[19:46].tolist()
    assert bits.run(1, 0, 3).all()
    assert bits.window(1, 0) is None
    mixed = bits.test(np.array([0, 1, 2]), np.array([5, 5, 5]))
    assert mixed.tolist() == [mask[5], True, mask[21]]
    assert [bits.one(c, 5) for c in range(3)] == mixed.tolist()


def test_the_buffer_of_some_bits_begins_with_them_and_ends_in_zeros():
    mask = np.random.default_rng(1).random(40) < 0.7
    for start in (0, 3, 8):
        for stop in (start + 1, 13, 16, 40):
            want = np.packbits(mask[start:stop], bitorder="little")
            found = Bits(Bits.pack(mask).data, np.array([start])).buffer(stop - start)
            assert found.tolist() == want.tolist()
    assert Bits.pack(np.ones(9, np.bool_)).buffer_unless_all(9) is None
    whole = Bits.pack(mask)
    assert np.shares_memory(whole.buffer(40), whole.data)
