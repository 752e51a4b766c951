"""Protocol buffers, version 3: a message to bytes and back, as a table of its fields says. No generated code.

    message = (tag value)*     tag = field number << 3 | wire type, as a varint

A `Message` pairs a dataclass with rows `number: (attribute, shape)`; a shape is `One(type)`, `Many(type)` or
`STRING_MAP`. Only the types that somebody here needs are listed. Bytes are read as the reference implementations read
them: unknown fields, and known ones of another wire type, are passed over; of a scalar given twice the last counts, a
message given twice is merged. Whatever is no message is a ValueError. Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")

VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = range(6)
"""Wire types. Groups are of version 2, but a reader has to pass over them."""

Raw = Any
"""A value without its tag: an int if its wire type is VARINT, else bytes."""

_WIDTHS = {FIXED64: 8, FIXED32: 4}
_VARINT_BYTES = 10  # 64 bits in sevens; the 6 that are over are dropped
_MASK64 = (1 << 64) - 1
_MAX_TAG = 1 << 32
_MAX_DEPTH = 100  # of groups in groups, as in the reference implementations


# --- types of values ----------------------------------------------------------------------------------------------


class Type(Protocol):
    @property
    def wire(self) -> int: ...

    @property
    def zero(self) -> Any:
        """What is not written, and is read where nothing was written. None: every value is written."""
        ...

    def encode(self, value: Any) -> bytes:
        """The value as it follows its tag. Raises ValueError for one that has no place in the type."""
        ...

    def decode(self, found: Sequence[Raw]) -> Any:
        """The value that all occurrences of a field make together, in their order; there may be none."""
        ...


@dataclass(frozen=True, slots=True)
class Integer:
    """32 bits. A negative one is written in 64, and of what is read the lower 32 count."""

    low: int
    high: int
    wire: int = VARINT
    zero: int = 0

    def encode(self, value: int) -> bytes:
        if not self.low <= value <= self.high:
            raise ValueError(f"{value} is not in {self.low}..{self.high}")
        return varint(value & _MASK64)

    def decode(self, found: Sequence[Raw]) -> int:
        value = int(found[-1]) & 0xFFFF_FFFF if found else 0
        return value if value <= self.high else value - (1 << 32)


@dataclass(frozen=True, slots=True)
class Boolean:
    wire: int = VARINT
    zero: bool = False

    def encode(self, value: bool) -> bytes:
        return varint(int(value))

    def decode(self, found: Sequence[Raw]) -> bool:
        return bool(found and found[-1])


@dataclass(frozen=True, slots=True)
class String:
    wire: int = BYTES
    zero: str = ""

    def encode(self, value: str) -> bytes:
        return _sized(value.encode())

    def decode(self, found: Sequence[Raw]) -> str:
        """All occurrences have to be UTF-8, also those that do not count."""
        return [str(raw, "utf-8") for raw in found][-1] if found else ""


class Message(Generic[T]):
    """Values of the dataclass `of`, which has a default for every attribute: a message may lack any field.

    A message inside another is always written, even when all of it is zero; where there is none, a zero one is read.
    """

    wire = BYTES
    zero = None

    def __init__(self, of: type[T], fields: Mapping[int, tuple[str, Shape]]) -> None:
        self.of = of
        self.fields = dict(sorted(fields.items()))

    def pack(self, value: T) -> bytes:
        """The bytes of a value, always the same: fields by number, maps by key. Raises ValueError for a misfit."""
        return b"".join(
            tag(number, shape.type.wire) + shape.type.encode(item)
            for number, (name, shape) in self.fields.items()
            for item in shape.items(getattr(value, name))
        )

    def unpack(self, data: bytes) -> T:
        """Raises ValueError."""
        return self.decode((data,))

    def encode(self, value: T) -> bytes:
        return _sized(self.pack(value))

    def decode(self, found: Sequence[Raw]) -> T:
        occurrences: dict[int, list[Raw]] = {number: [] for number in self.fields}
        for data in found:
            for number, wire, raw in read_fields(data):
                if number in self.fields and self.fields[number][1].type.wire == wire:
                    occurrences[number].append(raw)
        return self.of(**{name: shape.value(occurrences[number]) for number, (name, shape) in self.fields.items()})


INT32 = Integer(-(1 << 31), (1 << 31) - 1)
UINT32 = Integer(0, (1 << 32) - 1)
BOOL = Boolean()
STRING = String()


# --- shapes of fields ---------------------------------------------------------------------------------------------


class Shape(Protocol):
    @property
    def type(self) -> Type: ...

    def items(self, value: Any) -> Iterator[Any]:
        """What is written for an attribute, each with a tag of its own."""
        ...

    def value(self, found: Sequence[Raw]) -> Any:
        """What an attribute is, given all occurrences of its field."""
        ...


@dataclass(frozen=True, slots=True)
class One:
    """A singular field. Zero is not written, so it cannot be told from absent."""

    type: Type

    def items(self, value: Any) -> Iterator[Any]:
        if self.type.zero is None or value != self.type.zero:
            yield value

    def value(self, found: Sequence[Raw]) -> Any:
        return self.type.decode(found)


@dataclass(frozen=True, slots=True)
class Many:
    """A repeated field of strings or messages; a tuple. (Repeated numbers could be packed, which nobody needs here.)"""

    type: Type

    def items(self, value: Sequence[Any]) -> Iterator[Any]:
        yield from value

    def value(self, found: Sequence[Raw]) -> tuple[Any, ...]:
        return tuple(self.type.decode((raw,)) for raw in found)


@dataclass(frozen=True, slots=True)
class Entry:
    """One pair of a map<string, string>: a message on the wire."""

    key: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class StringMap:
    """A map<string, string>; a dict. Of equal keys the last counts."""

    type: Type

    def items(self, value: Mapping[str, str]) -> Iterator[Entry]:
        yield from (Entry(key, value[key]) for key in sorted(value))

    def value(self, found: Sequence[Raw]) -> dict[str, str]:
        entries = [self.type.decode((raw,)) for raw in found]
        return {entry.key: entry.value for entry in entries}


@dataclass(frozen=True, slots=True)
class Written(One):
    """A singular field that is written even when it is zero, as both halves of a map's entry are."""

    def items(self, value: Any) -> Iterator[Any]:
        yield value


STRING_MAP = StringMap(Message(Entry, {1: ("key", Written(STRING)), 2: ("value", Written(STRING))}))


# --- the wire -----------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(number: int, wire: int) -> bytes:
    return varint(number << 3 | wire)


def _sized(data: bytes) -> bytes:
    return varint(len(data)) + data


def read_fields(data: bytes) -> Iterator[tuple[int, int, Raw]]:
    """Field number, wire type and value, in the order of the bytes. Groups are passed over. Raises ValueError."""
    at = 0
    while at < len(data):
        number, wire, at = _read_tag(data, at)
        if wire == GROUP:
            at = _pass_over_group(data, at, number)
        else:
            raw, at = _read_value(data, at, wire)
            yield number, wire, raw


def _read_tag(data: bytes, at: int) -> tuple[int, int, int]:
    value, after = _read_varint(data, at)
    if value >= _MAX_TAG or not value >> 3:
        raise ValueError(f"byte {at}: {value >> 3} is no field number")
    return value >> 3, value & 7, after


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(data[at : at + _VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value & _MASK64, at + i + 1
    if len(data) - at < _VARINT_BYTES:
        raise ValueError(f"byte {at}: truncated number")
    raise ValueError(f"byte {at}: number of more than {_VARINT_BYTES} bytes")


def _read_value(data: bytes, at: int, wire: int) -> tuple[Raw, int]:
    if wire == VARINT:
        return _read_varint(data, at)
    if wire == BYTES:
        size, at = _read_varint(data, at)
    elif wire in _WIDTHS:
        size = _WIDTHS[wire]
    else:
        raise ValueError(f"byte {at}: unexpected wire type {wire}")
    if size > len(data) - at:
        raise ValueError(f"byte {at}: truncated, {size} bytes announced and {len(data) - at} there")
    return data[at : at + size], at + size


def _pass_over_group(data: bytes, at: int, number: int) -> int:
    """The place after the end of the group `number` that starts at `at`."""
    open_groups = [number]
    while open_groups:
        number, wire, at = _read_tag(data, at)
        if wire == GROUP:
            open_groups.append(number)
        elif wire == END_GROUP:
            if open_groups.pop() != number:
                raise ValueError(f"byte {at}: end of group {number}, which is not open")
        else:
            _, at = _read_value(data, at, wire)
        if len(open_groups) > _MAX_DEPTH:
            raise ValueError(f"byte {at}: more than {_MAX_DEPTH} groups in groups")
    return at
