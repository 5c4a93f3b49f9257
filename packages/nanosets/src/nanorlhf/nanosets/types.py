"""Column types, their spelling, and the one type that holds two others.

A type is spelled ``bool``, ``int8`` .. ``int64``, ``uint8`` .. ``uint64``, ``float16`` ..
``float64``, ``utf8``, ``null``, ``list<T>`` or ``struct<name: T, name: T>``, nested at will; a
field name with other than ASCII letters, digits and _ is quoted as in JSON. Every value of every
type may be null.

>>> str(parse("list<struct<role:utf8, content:utf8>>"))
'list<struct<role: utf8, content: utf8>>'
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np

from .errors import SchemaError

NUMBERS = (
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
WORD = re.compile("[A-Za-z0-9_]+")
"""A field name that needs no quotes."""
MAX_DEPTH = 32
"""Deepest nesting of lists and structs; a bound on recursion over types read from files."""


@dataclass(frozen=True)
class DType:
    """Base of the column types."""


@dataclass(frozen=True)
class Null(DType):
    """The type of a column that holds nothing but nulls; any other type can take its place."""

    def __str__(self) -> str:
        return "null"


@dataclass(frozen=True)
class Bool(DType):
    """True or False, stored as one bit."""

    def __str__(self) -> str:
        return "bool"


@dataclass(frozen=True)
class Utf8(DType):
    """A ``str``, stored as UTF-8."""

    def __str__(self) -> str:
        return "utf8"


@dataclass(frozen=True)
class Number(DType):
    """An integer or a float of a fixed width, such as ``Number("int32")``."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in NUMBERS:
            raise SchemaError(self.name, f"no such number type; use one of {', '.join(NUMBERS)}")

    def __str__(self) -> str:
        return self.name

    @cached_property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype, little-endian."""
        return np.dtype(self.name).newbyteorder("<")


@dataclass(frozen=True)
class List(DType):
    """Any number of values of one type."""

    item: DType

    def __str__(self) -> str:
        return f"list<{self.item}>"


@dataclass(frozen=True)
class Field:
    """A named type: a field of a struct, or a column."""

    name: str
    dtype: DType

    def __str__(self) -> str:
        name = self.name if WORD.fullmatch(self.name) else json.dumps(self.name)
        return f"{name}: {self.dtype}"


@dataclass(frozen=True)
class Struct(DType):
    """Named values of their own types.

    Raises:
        SchemaError: Two fields have one name.
    """

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        seen = set()
        for field in self.fields:
            if field.name in seen:
                raise SchemaError(field.name, "the name stands twice in one struct; rename one")
            seen.add(field.name)

    def __str__(self) -> str:
        return f"struct<{', '.join(map(str, self.fields))}>"


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

    def __iter__(self) -> Iterator[str]:
        return iter(self._types)

    def __len__(self) -> int:
        return len(self._types)

    def __repr__(self) -> str:
        return f"Schema({ {name: str(dtype) for name, dtype in self.items()} })"


Features = Schema | Mapping[str, DType] | Mapping[str, str] | Mapping[str, DType | str]
"""What a caller may give as column types."""


class _Reader:
    """Recursive descent over the spelling of a type."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, expected: str) -> SchemaError:
        rule = f"expected {expected} at character {self.at}; write e.g. list<int32>"
        return SchemaError(self.text[:80], rule)

    def eat(self, mark: str) -> bool:
        """Skip blanks, then ``mark`` when it is next."""
        while self.text.startswith(" ", self.at):
            self.at += 1
        found = self.text.startswith(mark, self.at)
        self.at += len(mark) if found else 0
        return found

    def expect(self, mark: str) -> None:
        if not self.eat(mark):
            raise self.fail(repr(mark))

    def word(self) -> str:
        self.eat("")
        found = WORD.match(self.text, self.at)
        self.at += len(found[0]) if found else 0
        return found[0] if found else ""

    def key(self) -> str:
        self.eat("")
        if not self.text.startswith('"', self.at):
            return self.word() or self._refuse_key()
        try:
            name, self.at = json.JSONDecoder().raw_decode(self.text, self.at)
        except ValueError:
            raise self.fail("a closed quote") from None
        return str(name)

    def _refuse_key(self) -> str:
        raise self.fail("a field name")

    def dtype(self, depth: int) -> DType:
        if depth > MAX_DEPTH:
            raise self.fail(f"at most {MAX_DEPTH} levels of nesting")
        word = self.word()
        if word == "list":
            self.expect("<")
            item = self.dtype(depth + 1)
            self.expect(">")
            return List(item)
        if word == "struct":
            return Struct(self.fields(depth))
        plain: dict[str, DType] = {"null": Null(), "bool": Bool(), "utf8": Utf8()}
        if word in plain:
            return plain[word]
        if word in NUMBERS:
            return Number(word)
        self.at -= len(word)
        raise self.fail("a type name")

    def fields(self, depth: int) -> tuple[Field, ...]:
        self.expect("<")
        fields: list[Field] = []
        while not self.eat(">"):
            if fields:
                self.expect(",")
            name = self.key()
            self.expect(":")
            fields.append(Field(name, self.dtype(depth + 1)))
        return tuple(fields)


def parse(text: str) -> DType:
    """Return the type that ``text`` spells.

    Raises:
        SchemaError: ``text`` is no type, or nests deeper than 32 levels.
    """
    reader = _Reader(text)
    dtype = reader.dtype(0)
    reader.eat("")
    if reader.at != len(text):
        raise reader.fail("the end")
    return dtype


def unify(a: DType, b: DType, *, field: str = "") -> DType:
    """Return the smallest type that holds the values of both.

    Null gives way to anything, numbers widen as numpy's do (but two integers never become a
    float), structs get the fields of both.

    Raises:
        SchemaError: There is none.

    >>> str(unify(parse("list<int32>"), parse("list<float32>")))
    'list<float64>'
    """
    if a == b or isinstance(b, Null):
        return a
    if isinstance(a, Null):
        return b
    if isinstance(a, List) and isinstance(b, List):
        return List(unify(a.item, b.item, field=f"{field}[]"))
    if isinstance(a, Struct) and isinstance(b, Struct):
        return _unify_structs(a, b, field)
    if isinstance(a, Number) and isinstance(b, Number):
        both = np.result_type(a.numpy, b.numpy)
        if both.kind != "f" or "f" in (a.numpy.kind, b.numpy.kind):
            return Number(both.name)
    raise SchemaError(field, f"holds both {a} and {b}, which no one type holds; convert one")


def _unify_structs(a: Struct, b: Struct, field: str) -> Struct:
    types = {f.name: f.dtype for f in a.fields}
    for other in b.fields:
        path = f"{field}.{other.name}" if field else other.name
        types[other.name] = unify(types.get(other.name, other.dtype), other.dtype, field=path)
    return Struct(tuple(Field(name, dtype) for name, dtype in types.items()))


def unify_all(structs: Iterable[Struct]) -> Struct:
    """Return the smallest struct type that holds the values of all of them."""
    return reduce(lambda a, b: _unify_structs(a, b, ""), structs)


def depth_of(dtype: DType) -> int:
    """Return how deep a type nests: 0 for a number, 1 for a list of numbers.

    >>> depth_of(parse("list<struct<a: int8>>"))
    2
    """
    if isinstance(dtype, List):
        return 1 + depth_of(dtype.item)
    if isinstance(dtype, Struct):
        return 1 + max((depth_of(f.dtype) for f in dtype.fields), default=0)
    return 0
