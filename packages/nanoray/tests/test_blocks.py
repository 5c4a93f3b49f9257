import itertools
import random

import pytest

from nanorlhf.nanoray.blocks import PAGE, Blocks, Hole


def overlaps(taken):
    """Whether any two of ``{offset: size}`` share a byte, pair by pair."""
    spans = sorted(taken.items())
    return any(a + size > b for (a, size), (b, _) in itertools.pairwise(spans))


@pytest.mark.parametrize("seed", range(5))
def test_random_blocks_never_overlap_and_all_space_comes_back(seed):
    draw = random.Random(seed)
    blocks, taken = Blocks(64 * PAGE), {}
    for _ in range(500):
        if taken and draw.random() < 0.5:
            offset = draw.choice(list(taken))
            blocks.give(offset)
            del taken[offset]
        else:
            size = draw.randint(1, 10 * PAGE)
            offset = blocks.take(size)
            if offset is not None:
                taken[offset] = size
                assert offset % PAGE == 0
                assert offset + size <= 64 * PAGE
        assert not overlaps(taken)
    for offset in list(taken):
        blocks.give(offset)
    assert blocks.is_empty
    assert blocks.take(64 * PAGE) == 0, "the holes have melted into one"


def test_a_full_arena_gives_nothing():
    blocks = Blocks(2 * PAGE)
    assert blocks.take(2 * PAGE) == 0
    assert blocks.take(1) is None
    assert blocks.used_bytes == 2 * PAGE


def test_a_freed_block_is_the_first_to_be_reused():
    blocks = Blocks(4 * PAGE)
    first, _ = blocks.take(PAGE), blocks.take(PAGE)
    blocks.give(first)
    assert blocks.take(PAGE) == first


def test_holes_are_ordered_by_offset():
    assert Hole(1, 5) < Hole(2, 1)
