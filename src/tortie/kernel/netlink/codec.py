"""The netlink wire format without a socket: bytes in, values out, and back.

A message is `nlmsghdr`, a fixed struct that depends on its type, and attributes (type, length, value), some of which
hold attributes again. Structs and attributes are described by tables (`kernel.netlink.tables`) made of the codecs
below; each turns one value into bytes and back. Decoding raises ValueError on anything malformed and nothing else.
Source of all layouts: linux/netlink.h, and the header each table names.
"""

from __future__ import annotations

import _socket as socket  # what is written in C of them, and enough; the rest would cost a pod's start milliseconds
import _struct as struct

from tortie.base.record import record

TYPE_CHECKING = False  # `typing` is as dear; type checkers know this name
if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping
    from typing import Any

# nlmsghdr.nlmsg_type (linux/netlink.h)
NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_OVERRUN = 4

# nlmsghdr.nlmsg_flags (linux/netlink.h); the values above 0xff depend on the kind of request
NLM_F_REQUEST = 0x01
NLM_F_MULTI = 0x02
NLM_F_ACK = 0x04
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_ERRNO = struct.Struct("=i")
_NEXTHOP = struct.Struct("=HBBi")  # struct rtnexthop (linux/rtnetlink.h): length, flags, hops, ifindex
_NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_NLMSGERR_ATTR_MSG = 1
_LONGEST_ATTRIBUTE = 0xFFFF

HEADER_SIZE = _HEADER.size
_DoesNotFit: type[Exception] = struct.error  # type: ignore[attr-defined]  # typeshed has it in `struct` only


@record(frozen=True, slots=True)
class Message:
    """One netlink message; `payload` is what follows the header."""

    type: int
    flags: int
    sequence: int
    port: int
    payload: bytes

    @property
    def interrupted(self) -> bool:
        """The dump this belongs to saw its table change half way: what was listed may be wrong."""
        return bool(self.flags & NLM_F_DUMP_INTR)


def _padding(length: int) -> bytes:
    return b"\0" * (-length % 4)


def pack_message(type: int, flags: int, sequence: int, payload: bytes, port: int = 0) -> bytes:
    """Header and payload, padded so that another message may follow."""
    length = HEADER_SIZE + len(payload)
    return _HEADER.pack(length, type, flags, sequence, port) + payload + _padding(length)


def unpack_messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram. Raises ValueError where a length does not fit."""
    at, end = 0, len(data)
    while at < end:
        if end - at < HEADER_SIZE:
            raise ValueError(f"{end - at} bytes are too short for a netlink header")
        length, type_, flags, sequence, port = _HEADER.unpack_from(data, at)
        if length < HEADER_SIZE or at + length > end:
            raise ValueError(f"netlink message of {length} bytes in {end - at}")
        yield Message(type_, flags, sequence, port, bytes(data[at + HEADER_SIZE : at + length]))
        at += length + -length % 4


def outcome(message: Message) -> tuple[int, str]:
    """(errno, the kernel's own words) of NLMSG_ERROR or NLMSG_DONE; errno 0 is success, the words may be empty."""
    payload = message.payload
    if len(payload) < _ERRNO.size:
        if message.type == NLMSG_DONE:
            return 0, ""  # some dumps end with an empty NLMSG_DONE
        raise ValueError("netlink error without an errno")
    (code,) = _ERRNO.unpack_from(payload)
    if not message.flags & NLM_F_ACK_TLVS:
        return -code, ""
    at = _ERRNO.size
    if message.type == NLMSG_ERROR:  # the request is echoed: its header always, its payload unless "capped"
        if len(payload) < at + HEADER_SIZE:
            raise ValueError("netlink error without the request's header")
        (length,) = struct.unpack_from("=I", payload, at)
        at += HEADER_SIZE if message.flags & NLM_F_CAPPED else length + -length % 4
    for number, value in attributes(payload[at:]):
        if number == _NLMSGERR_ATTR_MSG:
            return -code, TEXT.unpack(value)
    return -code, ""


def attributes(data: bytes, wanted: Container[int] | None = None) -> Iterator[tuple[int, bytes]]:
    """(number, value) of each attribute in a row of them, or only of those whose numbers are wanted."""
    at, end = 0, len(data)
    while at < end:
        if end - at < _ATTRIBUTE.size:
            raise ValueError(f"{end - at} bytes left over after the attributes")
        length, number = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > end:
            raise ValueError(f"attribute {number & _NLA_TYPE_MASK} of {length} bytes in {end - at}")
        number &= _NLA_TYPE_MASK
        if wanted is None or number in wanted:
            yield number, data[at + _ATTRIBUTE.size : at + length]
        at += length + -length % 4


class Codec:
    """Turns one kind of value into bytes and back. Both ways raise ValueError for what does not fit."""

    nested = False

    def pack(self, value: Any) -> bytes:
        raise NotImplementedError

    def unpack(self, data: bytes) -> Any:
        raise NotImplementedError


class Scalar(Codec):
    """An integer, in the words of `struct`."""

    def __init__(self, layout: str) -> None:
        self._struct = struct.Struct(layout)

    def pack(self, value: Any) -> bytes:
        try:
            return self._struct.pack(value)
        except _DoesNotFit as why:
            raise ValueError(f"{value!r}: {why}") from None

    def unpack(self, data: bytes) -> int:
        if len(data) < self._struct.size:
            raise ValueError(f"{len(data)} bytes where an integer of {self._struct.size} belongs")
        number: int = self._struct.unpack_from(data)[0]
        return number


class Text(Codec):
    """A NUL-terminated string. Bytes that are not UTF-8 survive, as in file names."""

    def pack(self, value: Any) -> bytes:
        if "\0" in value:
            raise ValueError(f"{value!r} holds a NUL")
        return bytes(value.encode("utf-8", "surrogateescape")) + b"\0"

    def unpack(self, data: bytes) -> str:
        return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


class Mac(Codec):
    """A link-layer address as `aa:bb:cc:dd:ee:ff`, of whatever length the link has (4 bytes on an IPv4 tunnel)."""

    def pack(self, value: Any) -> bytes:
        return bytes.fromhex(value.replace(":", ""))

    def unpack(self, data: bytes) -> str:
        return data.hex(":")


class Ip(Codec):
    """An IPv4 or IPv6 address in text, told apart by its length."""

    def pack(self, value: Any) -> bytes:
        try:
            return socket.inet_pton(socket.AF_INET6 if ":" in value else socket.AF_INET, value)
        except OSError:
            raise ValueError(f"{value!r} is not an IP address") from None

    def unpack(self, data: bytes) -> str:
        if len(data) == 4:
            return socket.inet_ntop(socket.AF_INET, data)
        if len(data) == 16:
            return socket.inet_ntop(socket.AF_INET6, data)
        raise ValueError(f"{len(data)} bytes where an IP address belongs")


class Via(Ip):
    """struct rtvia (linux/rtnetlink.h): an address of a family that need not be the message's own."""

    def pack(self, value: Any) -> bytes:
        family = socket.AF_INET6 if ":" in value else socket.AF_INET
        return struct.pack("=H", family) + super().pack(value)

    def unpack(self, data: bytes) -> str:
        if len(data) < 2:
            raise ValueError("rtvia without a family")
        return super().unpack(data[2:])


class Raw(Codec):
    """Bytes as they are."""

    def pack(self, value: Any) -> bytes:
        return bytes(value)

    def unpack(self, data: bytes) -> bytes:
        return bytes(data)


class Flag(Codec):
    """True by being there."""

    def pack(self, value: Any) -> bytes:
        return b""

    def unpack(self, data: bytes) -> bool:
        return True


U8, U16, U32, U64, S32 = Scalar("=B"), Scalar("=H"), Scalar("=I"), Scalar("=Q"), Scalar("=i")
BE16, BE32 = Scalar(">H"), Scalar(">I")
TEXT, MAC, IP, VIA, RAW, FLAG = Text(), Mac(), Ip(), Via(), Raw(), Flag()


class Table(Codec):
    """Attributes by name: `rows` gives number → (name, codec). `header` is where the kernel says so.

    Packing leaves out values that are None, and flags that are False. Unpacking passes over numbers it does not know:
    newer kernels have more of them. `choices` is for attributes whose layout depends on another: name → (the other's
    name, its value → codec); of an unknown value the bytes are kept.
    """

    nested = True

    def __init__(
        self,
        header: str,
        rows: Mapping[int, tuple[str, Codec]],
        choices: Mapping[str, tuple[str, Mapping[str, Codec]]] | None = None,
    ) -> None:
        self.header = header
        self.rows = dict(rows)
        self._numbers = {name: (number, codec) for number, (name, codec) in rows.items()}
        self._choices = dict(choices or {})

    def pack(self, value: Any) -> bytes:
        parts: list[bytes] = []
        for name, item in value.items():
            if item is None:
                continue
            if name not in self._numbers:
                raise ValueError(f"{name!r} is no attribute of {self.header}")
            number, codec = self._numbers[name]
            codec = (self._chosen(name, value) if self._choices else None) or codec
            if isinstance(codec, Flag) and not item:
                continue
            data = codec.pack(item)
            length = _ATTRIBUTE.size + len(data)
            if length > _LONGEST_ATTRIBUTE:
                raise ValueError(f"{name!r} has {len(data)} bytes, more than an attribute can hold")
            parts.append(_ATTRIBUTE.pack(length, number | _NLA_F_NESTED if codec.nested else number))
            parts.append(data)
            parts.append(_padding(length))
        return b"".join(parts)

    def unpack(self, data: bytes) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for number, item in attributes(data, self.rows):  # a link has sixty, most of them nobody's here
            name, codec = self.rows[number]
            values[name] = codec.unpack(item)
        for name in self._choices:
            chosen = self._chosen(name, values) if name in values else None
            if chosen is not None:
                values[name] = chosen.unpack(values[name])
        return values

    def _chosen(self, name: str, values: Mapping[str, Any]) -> Codec | None:
        """The layout of `name` among these values, when it depends on another of them."""
        other, layouts = self._choices.get(name, ("", {}))
        return layouts.get(values.get(other, ""))


class Array(Codec):
    """Attributes one after another that are all of one table, their numbers without a meaning; a list of dicts."""

    nested = True

    def __init__(self, table: Table) -> None:
        self._table = table

    def pack(self, value: Any) -> bytes:
        parts: list[bytes] = []
        for item in value:
            data = self._table.pack(item)
            length = _ATTRIBUTE.size + len(data)
            if length > _LONGEST_ATTRIBUTE:
                raise ValueError(f"an item has {len(data)} bytes, more than an attribute can hold")
            parts += (_ATTRIBUTE.pack(length, _NLA_F_NESTED), data, _padding(length))
        return b"".join(parts)

    def unpack(self, data: bytes) -> list[dict[str, Any]]:
        return [self._table.unpack(item) for _, item in attributes(data)]


class Record(Codec):
    """A fixed struct and the attributes after it, as one flat dict: the body of a message.

    The struct's fields keep their C names (`rtm_table`), so they cannot clash with attributes (`table`); those left out
    are zero. `layout` is in the words of `struct`.
    """

    def __init__(self, layout: str, fields: tuple[str, ...], table: Table) -> None:
        self._struct = struct.Struct(layout)
        self.fields = fields
        self.table = table

    def pack(self, value: Any) -> bytes:
        attributes = {name: item for name, item in value.items() if name not in self.fields}
        try:
            head = self._struct.pack(*(value.get(field, 0) for field in self.fields))
        except _DoesNotFit as why:
            raise ValueError(f"{self.fields}: {why}") from None
        return head + _padding(len(head)) + self.table.pack(attributes)

    def unpack(self, data: bytes) -> dict[str, Any]:
        size = self._struct.size
        if len(data) < size:
            raise ValueError(f"{len(data)} bytes where {size} of {self.fields[0]}... belong")
        values: dict[str, Any] = dict(zip(self.fields, self._struct.unpack_from(data), strict=True))
        values.update(self.table.unpack(data[size + -size % 4 :]))
        return values


class Nexthops(Codec):
    """RTA_MULTIPATH: rtnexthop structs one after another, each with attributes; a list of dicts.

    `rtnh_hops` is the weight less one.
    """

    def __init__(self, table: Table) -> None:
        self._table = table

    def pack(self, value: Any) -> bytes:
        parts: list[bytes] = []
        for hop in value:
            own = {"rtnh_flags", "rtnh_hops", "rtnh_ifindex"}
            data = self._table.pack({name: item for name, item in hop.items() if name not in own})
            head = (hop.get("rtnh_flags", 0), hop.get("rtnh_hops", 0), hop.get("rtnh_ifindex", 0))
            try:
                parts.append(_NEXTHOP.pack(_NEXTHOP.size + len(data), *head) + data)
            except _DoesNotFit as why:
                raise ValueError(f"rtnexthop {head}: {why}") from None
        return b"".join(parts)

    def unpack(self, data: bytes) -> list[dict[str, Any]]:
        hops: list[dict[str, Any]] = []
        at, end = 0, len(data)
        while at < end:
            if end - at < _NEXTHOP.size:
                raise ValueError(f"{end - at} bytes are too short for a nexthop")
            length, flags, weight, index = _NEXTHOP.unpack_from(data, at)
            if length < _NEXTHOP.size or at + length > end:
                raise ValueError(f"nexthop of {length} bytes in {end - at}")
            hop = {"rtnh_flags": flags, "rtnh_hops": weight, "rtnh_ifindex": index}
            hops.append(hop | self._table.unpack(data[at + _NEXTHOP.size : at + length]))
            at += length + -length % 4
        return hops
