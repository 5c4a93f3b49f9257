import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanorlhf.nanovllm.pages import PagePool, page_digest

NUM_PAGES = 6


def check_pool(pool, holders):
    """Every page is in one state, and its count is the number of its holders."""
    for page in range(pool.num_pages):
        assert pool.refs(page) == sum(held.count(page) for held in holders)
    free = [page for page in range(pool.num_pages) if pool.refs(page) == 0]
    assert pool.num_free == len(free)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "share", "drop", "name"]), st.integers(0, 99))))
def test_no_page_leaks_or_has_two_owners_whatever_happens(actions):
    pool, holders, named = PagePool(NUM_PAGES), [], {}
    for action, number in actions:
        if action == "take" and number % 4 <= pool.num_free:
            taken = pool.allocate(number % 4)
            assert all(taken.count(page) == 1 for page in taken)
            assert not {page for held in holders for page in held} & set(taken)
            named = {name: page for name, page in named.items() if page not in taken}
            holders.append(taken)
        elif action == "share":
            name = b"%d" % (number % 9)
            found = pool.match([name])
            assert found == ([named[name]] if name in named else [])
            pool.share(found)
            holders.append(found)
        elif holders and action == "drop":
            pool.release(holders.pop(number % len(holders)))
        elif holders and action == "name" and holders[-1]:
            page, name = holders[-1][0], b"%d" % (number % 9)
            pool.register(page, name)
            if name not in named and page not in named.values():
                named[name] = page
        check_pool(pool, holders)
    for held in holders:
        pool.release(held)
    assert pool.num_free == NUM_PAGES
    assert sorted(pool.allocate(NUM_PAGES)) == list(range(NUM_PAGES))


def test_the_least_recently_released_prefix_is_evicted_first_and_its_end_before_its_beginning():
    pool = PagePool(4)
    first, second = pool.allocate(2), pool.allocate(2)
    for name, page in zip([b"a0", b"a1", b"b0", b"b1"], first + second, strict=True):
        pool.register(page, name)
    pool.release(first)
    pool.release(second)
    assert pool.allocate(1) == [first[1]]
    assert pool.match([b"a0", b"a1"]) == [first[0]]
    assert pool.allocate(1) == [first[0]]
    assert pool.match([b"b0", b"b1"]) == second


def test_blank_pages_are_handed_out_before_cached_ones():
    pool = PagePool(3)
    [page] = pool.allocate(1)
    pool.register(page, b"kept")
    pool.release([page])
    pool.allocate(2)
    assert pool.match([b"kept"]) == [page]


def test_a_prefix_registered_twice_is_found_at_its_first_page():
    pool = PagePool(2)
    first, second = pool.allocate(2)
    pool.register(first, b"x")
    pool.register(second, b"x")
    assert pool.match([b"x"]) == [first]
    pool.release([second])
    assert pool.num_cached([first]) == 0
    assert pool.match([b"x"]) == [first]


def test_forgetting_frees_cached_pages_and_starts_a_chain_nothing_old_matches():
    pool = PagePool(2, salt="old")
    tokens = np.arange(4, dtype=np.int32)
    old = page_digest(pool.root, tokens)
    pages = pool.allocate(2)
    pool.register(pages[0], old)
    pool.release(pages)
    pool.forget(salt="new")
    assert pool.match([old]) == []
    assert page_digest(pool.root, tokens) != old
    assert sorted(pool.allocate(2)) == [0, 1]


def test_a_digest_covers_the_tokens_their_order_and_what_came_before():
    digests = {
        page_digest(before, np.array(tokens, np.int32))
        for before in (b"x" * 16, b"y" * 16)
        for tokens in ([1, 2], [2, 1], [1, 3])
    }
    assert len(digests) == 6


def test_releasing_a_page_twice_is_caught():
    pool = PagePool(1)
    pages = pool.allocate(1)
    pool.release(pages)
    with pytest.raises(AssertionError, match="released more often than it is held"):
        pool.release(pages)
