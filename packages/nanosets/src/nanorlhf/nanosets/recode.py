"""Dictionary codes of one array into those of a file."""

from collections.abc import Iterator

import numpy as np

from .arrays import Array, Numbers
from .coded import CODE, Coded, Vocabulary
from .directory import dictionaries_of
from .fixed import FixedLists
from .nested import Lists, Structs


def recoded(array: Array, known: Iterator[Vocabulary]) -> Array:
    """Return a compact array whose codes are those of vocabularies; they take new values in.

    Args:
        array: Any array; one without dictionaries comes back as it is.
        known: A vocabulary for each dictionary type, in schema order.

    Raises:
        SchemaError: A vocabulary would hold more values than int32 counts.
    """
    if not dictionaries_of(array.dtype):
        return array
    if isinstance(array, Coded):
        codes = Numbers(CODE, next(known).recode(array).astype(np.int32))
        return Coded(codes, array.values, length=array.length, valid=array.valid)
    if isinstance(array, Structs):
        children = {name: recoded(child, known) for name, child in array.children.items()}
        return Structs(array.dtype, children, length=array.length, valid=array.valid)
    assert isinstance(array, Lists | FixedLists)
    child = recoded(array.child, known)
    if isinstance(array, FixedLists):
        return type(array)(array.dtype, child, length=array.length, valid=array.valid)
    return type(array)(array.dtype, array.edges, child, length=array.length, valid=array.valid)
