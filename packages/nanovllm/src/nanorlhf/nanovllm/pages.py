"""The pool of KV pages: reference counts, and an index from a prefix to the pages that hold it.

A page holds the keys and values of ``page_size`` consecutive tokens in every layer. Each page is in
exactly one of three states:

```
            allocate                       release, registered
   blank ------------> in use (refs >= 1) ---------------------> cached (refs 0, least recent first)
     ^                  |       ^                                  |   |
     |    release,      |       |  share: a prompt begins alike    |   |
     +-- unregistered --+       +----------------------------------+   |
     +-- allocate takes it when no blank page is left (evicted) -------+
```

Prefixes are named by a chain of digests: the digest of a page covers its tokens and the digest of
the page before it, hence the whole prefix. The root of the chain is salted, so that pages computed
under other weights can never match. A digest is 128 bits of BLAKE2b and stands for its tokens.

Nothing here knows a device: a page is a number.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16


def root_digest(salt: str) -> bytes:
    """Return the digest that stands before the first page of every prefix."""
    return blake2b(salt.encode(), digest_size=DIGEST_BYTES).digest()


def page_digest(before: bytes, tokens: NDArray[np.int32]) -> bytes:
    """Return the digest of the prefix that ends with these tokens, a full page.

    Args:
        before: The digest of the prefix without this page.
        tokens: int32 [page_size], the page's tokens.
    """
    return blake2b(before + tokens.tobytes(), digest_size=DIGEST_BYTES).digest()


class PagePool:
    """Hands out pages, counts who uses them and remembers which prefix each one holds.

    >>> pool = PagePool(2)
    >>> [page] = pool.allocate(1)
    >>> pool.register(page, b"a prefix")
    >>> pool.release([page])
    >>> pool.match([b"a prefix", b"a longer one"]) == [page]
    True
    """

    def __init__(self, num_pages: int, *, salt: str = "") -> None:
        self.num_pages = num_pages
        self.root = root_digest(salt)
        # Popped from the end, so low pages are touched first and memory is used as it is needed.
        self._blank = list(range(num_pages - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._refs = [0] * num_pages
        self._digest_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Pages that :meth:`allocate` could hand out now, cached ones included."""
        return len(self._blank) + len(self._cached)

    def refs(self, page: int) -> int:
        """Return how many sequences use a page."""
        return self._refs[page]

    def allocate(self, count: int) -> list[int]:
        """Return pages of unknown content; the caller holds one reference to each.

        The caller has checked :attr:`num_free`.
        """
        assert count <= self.num_free, f"{count} pages asked, {self.num_free} free"
        pages = [self._blank.pop() if self._blank else self._evict() for _ in range(count)]
        for page in pages:
            self._refs[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Take one more reference to each page, in use or cached."""
        for page in pages:
            if self._refs[page] == 0:
                del self._cached[page]
            self._refs[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Give back one reference to each page of a sequence, first page first.

        The last pages become the first to be evicted: a prefix without its end is of use, an end
        without its beginning is not.
        """
        for page in reversed(pages):
            assert self._refs[page] > 0, f"page {page} is released more often than it is held"
            self._refs[page] -= 1
            if self._refs[page] == 0:
                if page in self._digest_of:
                    self._cached[page] = None
                else:
                    self._blank.append(page)

    def register(self, page: int, digest: bytes) -> None:
        """Let later prompts find a page. Its keys and values must be computed by now.

        Where two sequences computed the same prefix at once, the first page registered is the one
        that is found and the other stays private.
        """
        assert self._refs[page] > 0, f"page {page} is registered while nobody holds it"
        if digest not in self._page_of and page not in self._digest_of:
            self._page_of[digest] = page
            self._digest_of[page] = digest

    def match(self, digests: Iterable[bytes]) -> list[int]:
        """Return the pages of the longest known prefix; the caller shares those it wants."""
        pages: list[int] = []
        for digest in digests:
            page = self._page_of.get(digest)
            if page is None:
                break
            pages.append(page)
        return pages

    def num_cached(self, pages: Iterable[int]) -> int:
        """Return how many of the pages are cached, so that sharing them makes fewer free."""
        return sum(self._refs[page] == 0 for page in pages)

    def forget(self, *, salt: str) -> None:
        """Drop the index and begin a new chain, after the weights changed."""
        self.root = root_digest(salt)
        self._blank.extend(reversed(self._cached))
        self._cached.clear()
        self._digest_of.clear()
        self._page_of.clear()

    def _evict(self) -> int:
        page, _ = self._cached.popitem(last=False)
        del self._page_of[self._digest_of.pop(page)]
        return page
