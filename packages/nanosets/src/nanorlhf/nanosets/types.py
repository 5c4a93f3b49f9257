"""Column types: their names, and schemas.

=============================== ==============================================================
``null``, ``bool``
``int8`` .. ``int64``           also ``uint8`` .. ``uint64``
``float16`` .. ``float64``      and ``bfloat16``
``utf8``, ``binary``            ``str``, ``bytes``
``date32``                      ``datetime.date``
``timestamp[us]``               ``datetime.datetime``; s, ms, us, ns; ``timestamp[us, UTC]``
``list<T>``, ``large_list<T>``  int32 and int64 offsets
``fixed_list<T, n>``            always n values
``tensor<float32, 2, 3>``       a numpy array of this shape
``struct<a: T, "a b": T>``      a ``dict``; a name of more than letters, digits, _ is quoted
``dictionary<T>``               flat values, each distinct one stored once
=============================== ==============================================================

Types nest at will, and every value of every type may be null.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from .dtypes import (
    NUMBERS,
    UNITS,
    Binary,
    Bool,
    Date,
    Dictionary,
    DType,
    Field,
    FixedList,
    LargeList,
    List,
    Null,
    Number,
    Struct,
    Tensor,
    Timestamp,
    Unit,
    Utf8,
    depth_of,
)
from .spelling import MAX_DEPTH, parse
from .widening import unify, unify_all

__all__ = [
    "MAX_DEPTH",
    "NUMBERS",
    "UNITS",
    "Binary",
    "Bool",
    "DType",
    "Date",
    "Dictionary",
    "Features",
    "Field",
    "FixedList",
    "LargeList",
    "List",
    "Null",
    "Number",
    "Schema",
    "Struct",
    "Tensor",
    "Timestamp",
    "Unit",
    "Utf8",
    "depth_of",
    "parse",
    "unify",
    "unify_all",
]


@dataclass(frozen=True)
class Schema(Mapping[str, DType]):
    """The columns of a dataset, in order: a read-only mapping from name to type.

    >>> Schema.of({"id": "int64", "tokens": "list<int32>"})
    Schema({'id': 'int64', 'tokens': 'list<int32>'})
    """

    struct: Struct

    @classmethod
    def of(cls, features: "Features") -> "Schema":
        """Return the schema that a mapping from column name to type, or its spelling, asks for.

        Raises:
            SchemaError: A type is not spelled as above.
        """
        if isinstance(features, Schema):
            return features
        pairs = ((n, parse(t) if isinstance(t, str) else t) for n, t in features.items())
        return cls(Struct(tuple(Field(name, dtype) for name, dtype in pairs)))

    @cached_property
    def _types(self) -> dict[str, DType]:
        return {field.name: field.dtype for field in self.struct.fields}

    def __getitem__(self, name: str) -> DType:
        return self._types[name]

    def __contains__(self, name: object) -> bool:
        return name in self._types

    def __iter__(self) -> Iterator[str]:
        return iter(self._types)

    def __len__(self) -> int:
        return len(self._types)

    def __repr__(self) -> str:
        return f"Schema({ {name: str(dtype) for name, dtype in self.items()} })"


Features = Schema | Mapping[str, DType] | Mapping[str, str] | Mapping[str, DType | str]
"""What a caller may give as column types."""
