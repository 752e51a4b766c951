"""What a fan-out server and its clients say to each other. No sockets here: bytes in, messages out.

    client                                    server
    Hello(version, who) ────────────────────►
                        ◄──────────────────── Welcome(version, kinds)         or Refused(why), and the end
    List(kind, least, absent) on stream 1 ──►
                        ◄──────────────────── Snapshot(records), Part, Part, ..., Events, ..., Listed(revision)
    Watch(kind, after) on stream 2 ─────────►
                        ◄──────────────────── Watching(sequence), Events, Mark(revision), Events, ...
    Cancel on stream 2 ─────────────────────►
                        ◄──────────────────── Ended(why) instead of any of these
                        ◄──────────────────── Ping                            answered by Pong
                        ◄──────────────────── Goodbye(seconds): go elsewhere within so many seconds

A frame is 4 bytes of length of its body, 4 bytes of stream, 1 byte of type (all big-endian), and the body in msgpack.
Stream 0 is the connection itself. The body of a Part is compressed (zlib); inside is an array of records. Bodies of
Events and Parts are the same for all clients, so that the server encodes and compresses them once.

An object in a record is the compact JSON that our own datastores keep.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum, StrEnum
from typing import ClassVar, TypeVar

import msgspec

from tortie.base.errors import TortieError
from tortie.model.ipam import IPAMBlock, IPAMConfig, IPAMHandle
from tortie.model.k8s import Pod
from tortie.model.lease import Lease
from tortie.model.meta import Resource
from tortie.model.secret import Secret

VERSION = 1
"""Of what is said here. Who hears another one says so in one line and hangs up."""
PORT = 5473
"""Typha's."""
HEADER = struct.Struct(">IIB")
LARGEST = 64 * 1024 * 1024
"""Bytes of a body. An object has 1.5 MB at most in any datastore; a Part and a batch are a few times that."""
LARGEST_ASKED = 1024 * 1024
"""Bytes of what a client says: a server takes no more from whoever comes."""
FIRST_ASKED = 4096
"""Bytes of what a client says before the server knows that it is one."""

NEVER: frozenset[type[Resource]] = frozenset({Secret, Lease, Pod, IPAMBlock, IPAMHandle, IPAMConfig})
"""Kinds that no server fans out. Secrets are whose they are; of Pods an agent asks for its own; what compare-and-swap
decides about is read where it is written."""


class ProtocolError(TortieError):
    """The other side does not speak this protocol; one line says what it said."""


class Type(IntEnum):
    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    LIST = 4
    SNAPSHOT = 5
    PART = 6
    LISTED = 7
    WATCH = 8
    WATCHING = 9
    EVENTS = 10
    MARK = 11
    CANCEL = 12
    ENDED = 13
    PING = 14
    PONG = 15
    GOODBYE = 16


class Why(StrEnum):
    """Why a list or a watch has come to nothing, and what the client does."""

    COMPACTED = "compacted"  # the history is gone: list again
    BEHIND = "behind"  # the server has not come to that revision: ask the datastore
    AWAY = "away"  # the server has lost its datastore: ask the datastore
    UNSERVED = "unserved"  # a kind that this server does not fan out: ask the datastore


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One thing said; what its fields are is in the picture above."""

    TYPE: ClassVar[Type]


class Hello(Message, frozen=True, array_like=True):
    TYPE: ClassVar[Type] = Type.HELLO
    version: int
    who: str = ""
    """For the server's log: a node's name."""


class Welcome(Message, frozen=True, array_like=True):
    TYPE: ClassVar[Type] = Type.WELCOME
    version: int
    kinds: tuple[str, ...]
    """`Kind.key` of what is fanned out."""


class Refused(Message, frozen=True, array_like=True):
    TYPE: ClassVar[Type] = Type.REFUSED
    why: str


class List(Message, frozen=True, array_like=True):
    """`least` is a revision that the answer must have come to; `absent` are objects that this client has deleted, as
    (namespace, name, revision of the last write): the answer must not have them like this."""

    TYPE: ClassVar[Type] = Type.LIST
    kind: str
    least: int = 0
    absent: tuple[tuple[str, str, int], ...] = ()


class Snapshot(Message, frozen=True, array_like=True):
    TYPE: ClassVar[Type] = Type.SNAPSHOT
    records: int


class Listed(Message, frozen=True, array_like=True):
    TYPE: ClassVar[Type] = Type.LISTED
    revision: str


class Watch(Message, frozen=True, array_like=True):
    TYPE: ClassVar[Type] = Type.WATCH
    kind: str
    after: str


class Watching(Message, frozen=True, array_like=True):
    """The watch stands; its first event will have this sequence number."""

    TYPE: ClassVar[Type] = Type.WATCHING
    sequence: int


class Mark(Message, frozen=True, array_like=True):
    """Up to this revision nothing else has happened to the kind."""

    TYPE: ClassVar[Type] = Type.MARK
    revision: int


class Cancel(Message, frozen=True, array_like=True):
    TYPE: ClassVar[Type] = Type.CANCEL


class Ended(Message, frozen=True, array_like=True):
    TYPE: ClassVar[Type] = Type.ENDED
    why: Why
    text: str = ""


class Ping(Message, frozen=True, array_like=True):
    TYPE: ClassVar[Type] = Type.PING


class Pong(Message, frozen=True, array_like=True):
    TYPE: ClassVar[Type] = Type.PONG


class Goodbye(Message, frozen=True, array_like=True):
    TYPE: ClassVar[Type] = Type.GOODBYE
    seconds: float


class Record(msgspec.Struct, frozen=True, array_like=True):
    """An object, or one write to it. `type` is that of the event; in a Part it is ADDED."""

    type: str
    namespace: str
    name: str
    revision: int
    body: bytes


class Events(msgspec.Struct, frozen=True, array_like=True):
    """Writes in their order; `sequence` is the number of the first, and they count up without a gap."""

    sequence: int
    records: tuple[Record, ...]


class Part(msgspec.Struct, frozen=True):
    """Some objects of a list."""

    records: tuple[Record, ...]


Said = Message | Events | Part
M = TypeVar("M", bound=Message)

_MESSAGES: dict[Type, type[Message]] = {
    one.TYPE: one
    for one in (
        Hello, Welcome, Refused, List, Snapshot, Listed, Watch, Watching, Mark, Cancel, Ended, Ping, Pong, Goodbye,
    )
}  # fmt: skip
_DECODERS = {type_: msgspec.msgpack.Decoder(message) for type_, message in _MESSAGES.items()}
_EVENTS = msgspec.msgpack.Decoder(Events)
_RECORDS = msgspec.msgpack.Decoder(tuple[Record, ...])
_encode = msgspec.msgpack.Encoder().encode
_ARRAY = struct.Struct(">BI")
_FIRST = struct.Struct(">BBQ")
_ARRAY_32, _ARRAY_OF_2, _UINT_64 = 0xDD, 0x92, 0xCF  # msgpack's format bytes


# --- saying ---------------------------------------------------------------------------------------------------------


def frame(message: Message, stream: int = 0) -> bytes:
    body = _encode(message)
    return HEADER.pack(len(body), stream, message.TYPE) + body


def header(body: bytes, stream: int, type_: Type) -> bytes:
    """What goes before a body that many clients get."""
    return HEADER.pack(len(body), stream, type_)


def record(one: Record) -> bytes:
    return _encode(one)


def events_body(sequence: int, records: Sequence[bytes]) -> bytes:
    """The body of Events, of encoded records."""
    first = _FIRST.pack(_ARRAY_OF_2, _UINT_64, sequence)
    return b"".join((first, _ARRAY.pack(_ARRAY_32, len(records)), *records))


def part_body(records: Sequence[bytes], level: int = 1) -> bytes:
    """The body of a Part, of encoded records: zlib at level 1 makes an eighth of pods, at 80 MB/s."""
    return zlib.compress(b"".join((_ARRAY.pack(_ARRAY_32, len(records)), *records)), level)


def chunks(records: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """In order, cut after each `size` bytes; no chunk is empty."""
    chunk: list[bytes] = []
    held = 0
    for one in records:
        chunk.append(one)
        held += len(one)
        if held >= size:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


# --- hearing --------------------------------------------------------------------------------------------------------


ASKED = frozenset({Type.HELLO, Type.LIST, Type.WATCH, Type.CANCEL, Type.PING, Type.PONG})
"""What clients say. Of anything else a server does not even look at the body."""


class Ear:
    """Takes bytes as they come and gives whole messages. `largest` bounds a body, in bytes; `types` are those that the
    other side may say."""

    def __init__(self, largest: int = LARGEST, types: frozenset[Type] = frozenset(Type)) -> None:
        self.largest = largest
        self._types = types
        self._buffer = bytearray()

    def hear(self, data: bytes) -> Iterator[tuple[int, Said]]:
        """What is complete now, as (stream, message). Raises ProtocolError, after which nothing can be made of what
        follows."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= HEADER.size:
                length, stream, type_ = HEADER.unpack_from(self._buffer, start)
                if length > self.largest:
                    raise ProtocolError(f"is no fan-out protocol: a message of {length} bytes")
                if type_ not in self._types:
                    raise ProtocolError(f"is no fan-out protocol: message {type_}")
                end = start + HEADER.size + length
                if len(self._buffer) < end:
                    break
                body = bytes(memoryview(self._buffer)[start + HEADER.size : end])
                start = end
                yield stream, decoded(type_, body)
        finally:
            del self._buffer[:start]


def decoded(type_: int, body: bytes) -> Said:
    """A message. Raises ProtocolError."""
    try:
        if type_ == Type.EVENTS:
            return _EVENTS.decode(body)
        if type_ == Type.PART:
            return Part(_RECORDS.decode(_inflated(body)))
        return _DECODERS[Type(type_)].decode(body)
    except (ValueError, zlib.error, msgspec.MsgspecError) as error:
        raise ProtocolError(f"is no fan-out protocol: message {type_}: {error}") from None


def _inflated(body: bytes) -> bytes:
    inflater = zlib.decompressobj()
    found = inflater.decompress(body, LARGEST)
    if inflater.unconsumed_tail or not inflater.eof:
        raise ProtocolError(f"a part of a list is cut off, or larger than {LARGEST} bytes")
    return found
