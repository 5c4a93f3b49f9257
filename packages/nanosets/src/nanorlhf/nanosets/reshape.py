"""Lists as lists of one size, and nested lists as tensors."""

import numpy as np

from .arrays import Array
from .errors import SchemaError
from .fixed import FixedLists, Tensors
from .nested import Bytes, Lists
from .types import FixedList, Tensor

Listed = Lists | FixedLists


def evened(array: Listed, size: int, field: str) -> FixedLists:
    """Return lists that have ``size`` elements each as lists of one size.

    Raises:
        SchemaError: One has another number of elements.
    """
    if isinstance(array, FixedLists):
        if array.dtype.size != size:
            rule = f"holds {array.dtype}, asked are {size} elements; map it first"
            raise SchemaError(field, rule)
        return array
    edges = array.edges[: array.length + 1].astype(np.int64)
    lengths, mask = np.diff(edges), array.validity()
    wrong = np.flatnonzero(lengths != size if mask is None else (lengths != size) & mask)
    if len(wrong):
        rule = f"value {wrong[0]} has {lengths[wrong[0]]} elements, asked are {size}; pad or cut it"
        raise SchemaError(field, rule)
    child = array.child.window(0, int(edges[0]), int(edges[-1]))
    if mask is not None and not mask.all():
        # Under a null lies what another row holds: like that it has the right size at every depth.
        starts = edges[:-1] - edges[0]
        starts = np.where(mask, starts, starts[np.flatnonzero(mask)[0]])
        child = child.spans(0, starts, starts + size)
    dtype = FixedList(child.dtype, size)
    return FixedLists(dtype, child, length=array.length, valid=array.valid)


def peeled(array: Tensors) -> FixedLists:
    """Return tensors as lists of tensors of one dimension less."""
    outer, *inner = array.dtype.shape
    dtype = Tensor(array.dtype.item, tuple(inner))
    child = Tensors(dtype, array.child, length=array.length * outer)
    return FixedLists(FixedList(dtype, outer), child, length=array.length, valid=array.valid)


def elements(array: Listed, dtype: Tensor, field: str) -> Array:
    """Return the elements of what is to be a tensor, in row-major order, still of their own type.

    Raises:
        SchemaError: The shape is another one, or an inner list is null.
    """
    if isinstance(array, Tensors):
        if array.dtype.shape == dtype.shape:
            return array.child
        rule = f"holds {array.dtype}, asked is {dtype}; map the values to that shape first"
        raise SchemaError(field, rule)
    found: Array = array
    for size in dtype.shape:
        if not isinstance(found, Listed) or isinstance(found, Bytes | Tensors):
            raise SchemaError(field, f"holds {array.dtype}, asked is {dtype}; nest lists as deep")
        if found is not array and not _is_full(found, array):
            raise SchemaError(field, f"an inner list of a {dtype} is null; fill it")
        found, field = evened(found, size, field).child, f"{field}[]"
    return found


def tensors(dtype: Tensor, items: Array, rows: Array, field: str) -> Tensors:
    """Return tensors over their elements, null where ``rows`` are.

    Raises:
        SchemaError: An element is null, other than under a null tensor.
    """
    if not _is_full(items, rows):
        raise SchemaError(field, f"an element of a {dtype} is null; fill it or ask for fixed_list")
    items = items.window(0, 0, items.length)
    items.valid = None
    return Tensors(dtype, items, length=rows.length, valid=rows.valid)


def _is_full(items: Array, rows: Array) -> bool:
    """Return whether no item is null, but for those under rows that are null themselves."""
    found, mask = items.validity(), rows.validity()
    if found is None or not rows.length:
        return True
    per_row = found.reshape(rows.length, -1).all(axis=1)
    return bool((per_row if mask is None else per_row | ~mask).all())
