"""How types are spelled, and read back."""

import json
from collections.abc import Callable
from functools import lru_cache

from .dtypes import (
    MAX_SIZE,
    NUMBERS,
    UNITS,
    WORD,
    ZONE,
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
)
from .errors import SchemaError

MAX_DEPTH = 32
"""Deepest nesting of lists and structs; a bound on recursion over types read from files."""

PLAIN: dict[str, DType] = {
    "null": Null(),
    "bool": Bool(),
    "utf8": Utf8(),
    "binary": Binary(),
    "date32": Date(),
    **{name: Number(name) for name in NUMBERS},
}


@lru_cache(maxsize=1024)
def parse(text: str) -> DType:
    """Return the type that ``text`` spells.

    Raises:
        SchemaError: ``text`` is no type, or nests deeper than 32 levels.

    >>> str(parse("list<struct<role:utf8, image:tensor<uint8,4,4>>>"))
    'list<struct<role: utf8, image: tensor<uint8, 4, 4>>>'
    """
    reader = _Reader(text)
    dtype = reader.dtype(0)
    reader.eat("")
    if reader.at != len(text):
        raise reader.fail("the end")
    return dtype


class _Reader:
    """Recursive descent over the spelling of a type."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.makers: dict[str, Callable[[int], DType]] = {
            "list": lambda depth: List(self.item(depth)),
            "large_list": lambda depth: LargeList(self.item(depth)),
            "fixed_list": self.fixed_list,
            "tensor": self.tensor,
            "dictionary": lambda depth: Dictionary(self.item(depth)),
            "struct": lambda depth: Struct(self.fields(depth)),
        }

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

    def size(self) -> int:
        word = self.word()
        if not (word.isascii() and word.isdigit()) or len(word) > 10 or int(word) > MAX_SIZE:
            self.at -= len(word)
            raise self.fail(f"a number up to {MAX_SIZE}")
        return int(word)

    def key(self) -> str:
        self.eat("")
        if not self.text.startswith('"', self.at):
            word = self.word()
            if not word:
                raise self.fail("a field name")
            return word
        try:
            name, self.at = json.JSONDecoder().raw_decode(self.text, self.at)
        except ValueError:
            raise self.fail("a closed quote") from None
        return str(name)

    def dtype(self, depth: int) -> DType:
        if depth > MAX_DEPTH:
            raise self.fail(f"at most {MAX_DEPTH} levels of nesting")
        word = self.word()
        if word in PLAIN:
            return PLAIN[word]
        if word == "timestamp":
            return self.timestamp()
        if word in self.makers:
            self.expect("<")
            return self.makers[word](depth + 1)
        self.at -= len(word)
        raise self.fail("a type name")

    def item(self, depth: int) -> DType:
        item = self.dtype(depth)
        self.expect(">")
        return item

    def fixed_list(self, depth: int) -> DType:
        item = self.dtype(depth)
        self.expect(",")
        size = self.size()
        self.expect(">")
        return FixedList(item, size)

    def tensor(self, depth: int) -> DType:
        item, shape = self.dtype(depth), []
        while not self.eat(">"):
            self.expect(",")
            shape.append(self.size())
        assert isinstance(item, DType)
        return Tensor(item, tuple(shape))  # type: ignore[arg-type]  # which it checks

    def timestamp(self) -> DType:
        self.expect("[")
        unit = self.word()
        if unit not in UNITS:
            self.at -= len(unit)
            raise self.fail(f"one of {', '.join(UNITS)}")
        known: Unit = UNITS[UNITS.index(unit)]
        zone = None
        if self.eat(","):
            self.eat("")
            found = ZONE.match(self.text, self.at)
            if found is None:
                raise self.fail("a time zone")
            zone, self.at = found[0], found.end()
        self.expect("]")
        return Timestamp(known, zone)

    def fields(self, depth: int) -> tuple[Field, ...]:
        fields: list[Field] = []
        while not self.eat(">"):
            if fields:
                self.expect(",")
            name = self.key()
            self.expect(":")
            fields.append(Field(name, self.dtype(depth)))
        return tuple(fields)
