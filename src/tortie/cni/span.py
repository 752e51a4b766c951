"""Addresses, CIDRs and ranges of addresses as numbers: what plugins need of `ipaddress`, without its 8 ms of import.

    ip("10.1.2.3")             an Ip: a number and how many bits it has, 32 or 128
    cidr("10.1.2.3/24")        a Cidr: the address as it was written, and the length of the prefix
    Span(first, last)          all addresses from first to last, both included; as large as it likes: nothing is listed

Texts are read and written as Go does: `FD00::0` is `fd00::`, `::ffff:10.0.0.1` is 10.0.0.1, leading zeros are refused.
Whatever cannot be read is a ValueError in Go's words.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton  # `socket` itself takes as long to import as all the rest

from tortie.base.record import record

_MAPPED = 0xFFFF << 32
"""::ffff:0:0/96 (RFC 4291 2.5.5.2), IPv4 inside of IPv6, less its last 32 bits."""


@record(frozen=True, slots=True)
class Ip:
    """An address. Those of one family compare by their numbers."""

    number: int
    bits: int = 32

    @property
    def family(self) -> str:
        """ "4" or "6"."""
        return "4" if self.bits == 32 else "6"

    @property
    def packed(self) -> bytes:
        """4 or 16 bytes, as they are in a packet."""
        return self.number.to_bytes(self.bits // 8, "big")

    def __str__(self) -> str:
        if self.bits == 32:
            return inet_ntop(AF_INET, self.packed)
        if 0xFFFF < self.number < 1 << 32:  # libc would write ::1:2 as ::0.1.0.2
            return f"::{self.number >> 16:x}:{self.number & 0xFFFF:x}"
        return inet_ntop(AF_INET6, self.packed)

    def plus(self, steps: int) -> Ip:
        """The address so many further on (or back). Past the last one it begins again at the first."""
        return Ip((self.number + steps) % (1 << self.bits), self.bits)


@record(frozen=True, slots=True)
class Cidr:
    """An address with the length of its prefix. Host bits stay as they were written; `network` is without."""

    ip: Ip
    length: int

    @property
    def bits(self) -> int:
        return self.ip.bits

    @property
    def network(self) -> Ip:
        """The first address: all host bits are 0."""
        return Ip(self.ip.number >> self._host << self._host, self.bits)

    @property
    def last(self) -> Ip:
        """The last address, of IPv4 the broadcast address: all host bits are 1."""
        return Ip(self.ip.number | (1 << self._host) - 1, self.bits)

    @property
    def has_host_bits(self) -> bool:
        return self.ip.number != self.network.number

    @property
    def span(self) -> Span:
        """All of its addresses."""
        return Span(self.network, self.last)

    @property
    def _host(self) -> int:
        return self.bits - self.length

    def __contains__(self, ip: Ip) -> bool:
        return ip.bits == self.bits and ip.number >> self._host == self.ip.number >> self._host

    def __str__(self) -> str:
        return f"{self.ip}/{self.length}"

    def overlaps(self, other: Cidr) -> bool:
        return self.span.overlaps(other.span)


@record(frozen=True, slots=True)
class Span:
    """The addresses from `first` to `last`, both of one family. With `first` behind `last` there are none."""

    first: Ip
    last: Ip

    def __contains__(self, ip: Ip) -> bool:
        return ip.bits == self.first.bits and self.first.number <= ip.number <= self.last.number

    @property
    def size(self) -> int:
        """How many there are."""
        return max(0, self.last.number - self.first.number + 1)

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def overlaps(self, other: Span) -> bool:
        return self.first.bits == other.first.bits and max(self.first.number, other.first.number) <= min(
            self.last.number, other.last.number
        )


def ip(text: str) -> Ip:
    """An address without a prefix length or a zone. Raises ValueError: `invalid IP address: TEXT`."""
    found = _read(text)
    if found is None:
        raise ValueError(f"invalid IP address: {text}")
    return _unmapped(found)


def cidr(text: str) -> Cidr:
    """An address with the length of its prefix, host bits and all. Raises ValueError: `invalid CIDR address: TEXT`."""
    address, slash, length = text.partition("/")
    found = _read(address)
    if found is None or not slash or not _is_number(length) or int(length) > found.bits:
        raise ValueError(f"invalid CIDR address: {text}")
    plain = _unmapped(found)
    if plain.bits < found.bits and int(length) >= found.bits - plain.bits:
        return Cidr(plain, int(length) - found.bits + plain.bits)
    return Cidr(found, int(length))


def ip_or_cidr(text: str) -> tuple[Ip, Cidr | None]:
    """An address, and the CIDR around it if a prefix length is given. Raises ValueError as `ip` and `cidr`."""
    if "/" not in text:
        return ip(text), None
    whole = cidr(text)
    return _unmapped(whole.ip), whole


def is_ip(text: str) -> bool:
    """Whether `ip` would take it."""
    return _read(text) is not None


def mac(text: str) -> str:
    """A MAC address in one of Go's three spellings, as the kernel writes it: of `0200.0000.000A` 02:00:00:00:00:0a.

    Raises ValueError: `address TEXT: invalid MAC address`.
    """
    for separator, digits in ((":", 2), ("-", 2), (".", 4)):
        parts = text.split(separator)
        if len(parts) * digits == 12 and all(len(part) == digits for part in parts):
            try:
                return bytes.fromhex("".join(parts)).hex(":")
            except ValueError:
                break
    raise ValueError(f"address {text}: invalid MAC address")


def _read(text: str) -> Ip | None:
    six = ":" in text
    try:
        packed = inet_pton(AF_INET6 if six else AF_INET, text)
    except (OSError, ValueError):  # ValueError: a NUL, or what is not ASCII
        return None
    return Ip(int.from_bytes(packed, "big"), 128 if six else 32)


def _unmapped(found: Ip) -> Ip:
    if found.bits == 128 and found.number >> 32 == _MAPPED >> 32:
        return Ip(found.number & 0xFFFFFFFF)
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 3
