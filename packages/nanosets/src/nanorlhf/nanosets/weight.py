"""Values that take no bytes, such as the nulls in a ``list<null>``.

A file's size says nothing about how many there are, so a reader bounds their number, and a writer
keeps to the bound.
"""

from .arrays import Array
from .directory import is_weightless
from .fixed import FixedLists
from .nested import Bytes, Lists, Structs


def weightless(array: Array) -> int:
    """Return the most values without bytes in any lists of a compact array.

    >>> from .build import build
    >>> weightless(build([[None] * 3, [], [None]])), weightless(build([[1]]))
    (4, 0)
    """
    if isinstance(array, Structs):
        return max(map(weightless, array.children.values()), default=0)
    if not isinstance(array, Lists | FixedLists) or isinstance(array, Bytes):
        return 0
    if is_weightless(array.child.dtype):
        return array.child.length
    return weightless(array.child)
