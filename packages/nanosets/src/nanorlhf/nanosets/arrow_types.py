"""Column types as the Arrow C data interface spells them.

A ``Node`` is an ArrowSchema in Python values. Types that Arrow has and we have not are read as
the nearest one of ours where no value changes (``large_utf8`` and ``string_view`` as ``utf8``, a
map as a list of structs, any extension type as what it is stored as) and refused elsewhere.
"""

import json
import struct
from collections.abc import Mapping
from math import prod
from typing import NamedTuple

from .errors import SchemaError
from .types import (
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
)

NAME = "ARROW:extension:name"
METADATA = "ARROW:extension:metadata"
TENSOR = "arrow.fixed_shape_tensor"
BFLOAT16 = "nanosets.bfloat16"
"""Arrow has no bfloat16: its bits travel as uint16 under this extension name."""

NUMBERS = {
    **{"c": "int8", "s": "int16", "i": "int32", "l": "int64"},
    **{"C": "uint8", "S": "uint16", "I": "uint32", "L": "uint64"},
    **{"e": "float16", "f": "float32", "g": "float64"},
}
LETTERS = {name: letter for letter, name in NUMBERS.items()}
UNIT_OF: dict[str, Unit] = {unit[0]: unit for unit in UNITS}
PLAIN: dict[str, DType] = {
    **{"n": Null(), "b": Bool(), "tdD": Date(), "tdm": Date()},
    **dict.fromkeys(("u", "U", "vu"), Utf8()),
    **dict.fromkeys(("z", "Z", "vz"), Binary()),
    **{letter: Number(name) for letter, name in NUMBERS.items()},
}
LISTS = ("+l", "+vl", "+m")
LARGE_LISTS = ("+L", "+vL")


class Node(NamedTuple):
    """A type under a name, as Arrow has it."""

    format: str
    name: str = ""
    metadata: Mapping[str, str] = {}
    children: "tuple[Node, ...]" = ()
    dictionary: "Node | None" = None
    """Type of the values, if ``format`` is that of codes."""


def node_of(dtype: DType, name: str = "") -> Node:
    """Return a column type of ours as an Arrow one.

    >>> node_of(List(Number("int32"))).format
    '+l'
    """
    if isinstance(dtype, Number):
        if dtype.is_bfloat16:
            return Node("S", name, {NAME: BFLOAT16, METADATA: ""})
        return Node(LETTERS[dtype.name], name)
    if isinstance(dtype, Timestamp):
        return Node(f"ts{dtype.unit[0]}:{dtype.tz or ''}", name)
    if isinstance(dtype, Dictionary):
        return Node("i", name, dictionary=node_of(dtype.value))
    if isinstance(dtype, Struct):
        return Node("+s", name, children=tuple(node_of(f.dtype, f.name) for f in dtype.fields))
    if isinstance(dtype, Tensor):
        metadata = {NAME: TENSOR, METADATA: json.dumps({"shape": list(dtype.shape)})}
        return Node(f"+w:{prod(dtype.shape)}", name, metadata, (node_of(dtype.item, "item"),))
    if isinstance(dtype, FixedList):
        return Node(f"+w:{dtype.size}", name, children=(node_of(dtype.item, "item"),))
    if isinstance(dtype, List | LargeList):
        letter = "+l" if isinstance(dtype, List) else "+L"
        return Node(letter, name, children=(node_of(dtype.item, "item"),))
    return Node(next(f for f, known in PLAIN.items() if known == dtype), name)


def dtype_of(node: Node, path: str = "") -> DType:
    """Return the column type that holds the values of an Arrow type.

    Raises:
        SchemaError: There is none.
    """
    at = f"{path}.{node.name}" if path and node.name else path or node.name
    if node.dictionary is not None:
        value = dtype_of(node.dictionary, at)
        return (
            value if value.children or isinstance(value, Null | Dictionary) else Dictionary(value)
        )
    if node.format == "S" and node.metadata.get(NAME) == BFLOAT16:
        return Number("bfloat16")
    if node.format in PLAIN:
        return PLAIN[node.format]
    if node.format.startswith("ts"):
        return Timestamp(UNIT_OF[node.format[2]], node.format[4:] or None)
    if node.format == "+s":
        return Struct(tuple(Field(child.name, dtype_of(child, at)) for child in node.children))
    if node.format.startswith("w:"):
        return Binary()
    inner = [dtype_of(child._replace(name=""), f"{at}[]") for child in node.children]
    if node.format in LISTS:
        return List(inner[0])
    if node.format in LARGE_LISTS:
        return LargeList(inner[0])
    if node.format.startswith("+w:"):
        return _fixed(node, inner[0])
    raise SchemaError(at, f"the Arrow type {node.format!r} is no column type here; cast it first")


def _fixed(node: Node, item: DType) -> DType:
    size = int(node.format[3:])
    if node.metadata.get(NAME) == TENSOR and isinstance(item, Number | Bool):
        told = json.loads(node.metadata[METADATA])
        shape = tuple(told["shape"])
        if prod(shape) == size and told.get("permutation") in (None, list(range(len(shape)))):
            return Tensor(item, shape)
    return FixedList(item, size)


def encode_metadata(metadata: Mapping[str, str]) -> bytes | None:
    r"""Return metadata in the form of the C data interface; None for none.

    >>> encode_metadata({"a": "b"})
    b'\x01\x00\x00\x00\x01\x00\x00\x00a\x01\x00\x00\x00b'
    """
    if not metadata:
        return None
    parts = [text.encode() for pair in metadata.items() for text in pair]
    sized = [struct.pack("=i", len(part)) + part for part in parts]
    return struct.pack("=i", len(metadata)) + b"".join(sized)
