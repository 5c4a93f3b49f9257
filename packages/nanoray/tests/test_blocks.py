import itertools

from hypothesis import given
from hypothesis import strategies as st

from nanorlhf.nanoray.blocks import PAGE, Blocks

PAGES = 24


class PageMap:
    """One flag a page: slow and obviously right."""

    def __init__(self):
        self.pages = [None] * PAGES
        self.names = itertools.count()

    def take(self, offset, size):
        first, num = offset // PAGE, -(-size // PAGE)
        name = next(self.names)
        assert offset % PAGE == 0
        assert first + num <= PAGES
        for page in range(first, first + num):
            assert self.pages[page] is None, "a block lies on another"
            self.pages[page] = name

    def give(self, offset):
        name = self.pages[offset // PAGE]
        self.pages = [None if page == name else page for page in self.pages]

    def holes(self):
        runs = itertools.groupby(self.pages, key=lambda page: page is None)
        return [len(list(run)) for is_free, run in runs if is_free]

    def starts(self):
        pages = enumerate(self.pages)
        return [
            page * PAGE
            for page, name in pages
            if name is not None and (not page or self.pages[page - 1] != name)
        ]


@given(
    st.lists(
        st.one_of(st.tuples(st.just("give"), st.integers(0, 99)), st.integers(0, 9 * PAGE)),
        max_size=60,
    )
)
def test_blocks_agree_with_one_flag_a_page(steps):
    blocks, pages = Blocks(PAGES * PAGE), PageMap()
    for step in steps:
        starts = pages.starts()
        if not isinstance(step, int) and starts:
            offset = starts[step[1] % len(starts)]
            blocks.give(offset)
            pages.give(offset)
        elif isinstance(step, int):
            num = max(1, -(-step // PAGE))
            offset = blocks.take(step)
            if offset is None:
                assert max(pages.holes(), default=0) < num, "a hole that fits was overlooked"
                continue
            fits = [hole for hole in pages.holes() if hole >= num]
            before = sorted(pages.holes())
            pages.take(offset, num * PAGE)
            before.remove(min(fits))
            left = min(fits) - num
            assert sorted(pages.holes()) == sorted([*before, *[left] * bool(left)]), "best fit"
        assert blocks.used_bytes == PAGE * sum(page is not None for page in pages.pages)
        assert blocks.is_empty == (not pages.starts())
    for offset in pages.starts():
        blocks.give(offset)
    assert blocks.take(PAGES * PAGE) == 0, "the holes have melted into one"


def test_a_full_arena_gives_nothing():
    blocks = Blocks(2 * PAGE)
    assert blocks.take(2 * PAGE) == 0
    assert blocks.take(1) is None
    assert blocks.used_bytes == 2 * PAGE


def test_a_freed_block_is_the_first_to_be_reused():
    blocks = Blocks(8 * PAGE)
    first, _ = blocks.take(PAGE), blocks.take(PAGE)
    assert blocks.give(first) == PAGE
    assert blocks.take(PAGE) == first


def test_taking_looks_at_few_of_many_holes():
    """Counted in comparisons, not seconds: ten thousand holes cost as much as ten."""
    comparisons = 0

    class Counted(tuple):
        __slots__ = ()

        def __lt__(self, other):
            nonlocal comparisons
            comparisons += 1
            return tuple.__lt__(self, other)

    blocks = Blocks(20_001 * PAGE)
    for _ in range(20_000):
        blocks.take(1)
    for offset in range(0, 20_000 * PAGE, 2 * PAGE):
        blocks.give(offset)
    blocks._by_size[:] = [Counted(hole) for hole in blocks._by_size]
    assert blocks.take(2 * PAGE) is None
    assert blocks.take(PAGE) is not None
    assert comparisons < 60
