"""Frames by which hosts of one link find each other's Ethernet address: ARP, and ICMPv6's neighbour messages.

    asked      who has this address?         ARP request                    neighbour solicitation
    claimed    this address is mine          ARP sender, reply, announced   neighbour advertisement

Sources: RFC 826 (ARP), RFC 5227 (probes and announcements of IPv4), RFC 4861 (neighbour discovery), RFC 4862 (probes of
IPv6), RFC 2464 (IPv6 over Ethernet), RFC 1071 (checksum).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from tortie.base.addr import IP
from tortie.kernel.ping import checksum

ETH_P_ARP, ETH_P_IPV6 = 0x0806, 0x86DD  # linux/if_ether.h
LARGEST = 1518
"""Bytes of a frame that is read."""

_ETHERNET = struct.Struct("!6s6sH")  # to, from, type (RFC 894)
_ARP = struct.Struct("!HHBBH6s4s6s4s")  # hardware, protocol, their lengths, operation, sender, target (RFC 826)
_ARP_KIND = (1, 0x0800, 6, 4)  # IPv4 over Ethernet
_REQUEST, _REPLY = 1, 2
_IPV6 = struct.Struct("!IHBB16s16s")  # version and flow, length, next header, hop limit, from, to (RFC 8200, 3)
_PSEUDO = struct.Struct("!16s16sIxxxB")  # what the checksum counts beside the message (RFC 8200, 8.1)
_MESSAGE = struct.Struct("!BBHI16s")  # type, code, checksum, flags, target (RFC 4861, 4.3 and 4.4)
_LINK_LAYER = struct.Struct("!BB6s")  # an option: type, length in 8 bytes, Ethernet address (RFC 4861, 4.6.1)
_SOLICITATION, _ADVERTISEMENT = 135, 136
_SOURCE, _TARGET = 1, 2
_SOLICITED, _OVERRIDE = 1 << 30, 1 << 29
_ICMPV6, _HOPS = 58, 255  # no router has touched it (RFC 4861, 7.1)

_BROADCAST, _NOBODY = b"\xff" * 6, bytes(6)
_NO_IPV4, _NO_IPV6 = IPv4Address(0), IPv6Address(0)
_ALL_NODES = IPv6Address("ff02::1")
_SOLICITED_NODE = int(IPv6Address("ff02::1:ff00:0"))


@dataclass(frozen=True, slots=True)
class Heard:
    """What a frame says: `mac` asks for one address, or says that it has one, or both. `source` is the address that the
    answer goes to; None: whoever asks has none yet, and wants to know whether he may have this one."""

    mac: bytes
    asked: IP | None = None
    source: IP | None = None
    claimed: IP | None = None


def read(frame: bytes) -> Heard | None:
    """None for what is none of ours: another protocol, malformed, or not from a host of this link."""
    if len(frame) < _ETHERNET.size:
        return None
    _, sender, kind = _ETHERNET.unpack_from(frame)
    if sender[0] & 1:  # from everybody? Answers would go there
        return None
    body = frame[_ETHERNET.size :]
    if kind == ETH_P_ARP:
        return _read_arp(body)
    return _read_ipv6(body, sender) if kind == ETH_P_IPV6 else None


def answer(heard: Heard, mac: bytes) -> bytes:
    """The answer to who asks: the address that he asked for is at `mac`."""
    if isinstance(heard.asked, IPv4Address):
        to = heard.source if isinstance(heard.source, IPv4Address) else _NO_IPV4
        return _arp(heard.mac, _REPLY, mac, heard.asked, heard.mac, to)
    assert heard.asked is not None
    if isinstance(heard.source, IPv6Address):
        return _advertisement(heard.asked, mac, heard.mac, heard.source, _SOLICITED | _OVERRIDE)
    return _advertisement(heard.asked, mac, multicast_mac(_ALL_NODES), _ALL_NODES, _OVERRIDE)


def probe(ip: IP, mac: bytes) -> bytes:
    """Asks whether anybody has an address, so that no host remembers who asked (RFC 5227, 2.1.1; RFC 4862, 5.4.2)."""
    if isinstance(ip, IPv4Address):
        return _arp(_BROADCAST, _REQUEST, mac, _NO_IPV4, _NOBODY, ip)
    group = solicited_node(ip)
    message = _message(_SOLICITATION, 0, ip, b"", _NO_IPV6, group)
    return _packet(multicast_mac(group), mac, _NO_IPV6, group, message)


def announcements(ip: IP, mac: bytes) -> tuple[bytes, ...]:
    """Tells all hosts, also those that know another, that the address is here. Of ARP's two forms some hosts hear only
    the one, some only the other."""
    if isinstance(ip, IPv4Address):
        return (
            _arp(_BROADCAST, _REQUEST, mac, ip, _NOBODY, ip),
            _arp(_BROADCAST, _REPLY, mac, ip, _BROADCAST, ip),
        )
    return (_advertisement(ip, mac, multicast_mac(_ALL_NODES), _ALL_NODES, _OVERRIDE),)


def solicited_node(ip: IPv6Address) -> IPv6Address:
    """The group that whoever has an address listens to (RFC 4291, 2.7.1)."""
    return IPv6Address(_SOLICITED_NODE | int(ip) & 0xFFFFFF)


def multicast_mac(group: IPv6Address) -> bytes:
    """RFC 2464, 7."""
    return b"\x33\x33" + group.packed[-4:]


# --- ARP --------------------------------------------------------------------------------------------------------------


def _read_arp(body: bytes) -> Heard | None:
    if len(body) < _ARP.size:
        return None
    *kind, operation, mac, sender, _, target = _ARP.unpack_from(body)
    if tuple(kind) != _ARP_KIND or operation not in (_REQUEST, _REPLY) or mac[0] & 1:
        return None
    source, wanted = IPv4Address(sender), IPv4Address(target)
    claimed = source if source != _NO_IPV4 else None
    asked = wanted if operation == _REQUEST and wanted != source else None  # the same: nobody asks, it is announced
    return Heard(mac, asked, claimed, claimed) if asked or claimed else None


def _arp(to: bytes, operation: int, mac: bytes, sender: IPv4Address, target_mac: bytes, target: IPv4Address) -> bytes:
    head = _ETHERNET.pack(to, mac, ETH_P_ARP)
    return head + _ARP.pack(*_ARP_KIND, operation, mac, sender.packed, target_mac, target.packed)


# --- neighbour discovery ----------------------------------------------------------------------------------------------


def _read_ipv6(body: bytes, sender: bytes) -> Heard | None:
    """Checks what RFC 4861, 7.1.1 and 7.1.2 ask to be checked."""
    if len(body) < _IPV6.size + _MESSAGE.size:
        return None
    first, length, header, hops, source, to = _IPV6.unpack_from(body)
    message = body[_IPV6.size : _IPV6.size + length]
    if first >> 28 != 6 or header != _ICMPV6 or hops != _HOPS or not _MESSAGE.size <= length == len(message):
        return None
    kind, code, _, flags, packed = _MESSAGE.unpack_from(message)
    options = _options(message[_MESSAGE.size :])
    target = IPv6Address(packed)
    if code or options is None or target.is_multicast or _sum(message, source, to):
        return None
    if kind == _SOLICITATION:
        return _solicited(target, IPv6Address(source), IPv6Address(to), options.get(_SOURCE), sender)
    if kind == _ADVERTISEMENT and not (flags & _SOLICITED and to[0] == 0xFF):
        mac = options.get(_TARGET, sender)
        return None if mac[0] & 1 else Heard(mac, claimed=target)
    return None


def _solicited(
    target: IPv6Address, source: IPv6Address, to: IPv6Address, said: bytes | None, sender: bytes
) -> Heard | None:
    mac = said or sender
    if mac[0] & 1 or source.is_multicast:
        return None
    if source != _NO_IPV6:
        return Heard(mac, target, source)
    return Heard(sender, target) if said is None and to == solicited_node(target) else None


def _options(data: bytes) -> dict[int, bytes] | None:
    """Those that hold an Ethernet address. None for what is malformed: an option of no length."""
    found: dict[int, bytes] = {}
    while data:
        if len(data) < 2 or not 0 < 8 * data[1] <= len(data):
            return None
        if data[0] in (_SOURCE, _TARGET) and data[1] == 1:
            found[data[0]] = data[2:8]
        data = data[8 * data[1] :]
    return found


def _advertisement(ip: IPv6Address, mac: bytes, to_mac: bytes, to: IPv6Address, flags: int) -> bytes:
    message = _message(_ADVERTISEMENT, flags, ip, _LINK_LAYER.pack(_TARGET, 1, mac), ip, to)
    return _packet(to_mac, mac, ip, to, message)


def _message(kind: int, flags: int, target: IPv6Address, options: bytes, source: IPv6Address, to: IPv6Address) -> bytes:
    blank = _MESSAGE.pack(kind, 0, 0, flags, target.packed) + options
    return _MESSAGE.pack(kind, 0, _sum(blank, source.packed, to.packed), flags, target.packed) + options


def _sum(message: bytes, source: bytes, to: bytes) -> int:
    """The checksum; 0 of a message that has the right one in it."""
    return checksum(_PSEUDO.pack(source, to, len(message), _ICMPV6) + message)


def _packet(to_mac: bytes, mac: bytes, source: IPv6Address, to: IPv6Address, message: bytes) -> bytes:
    head = _ETHERNET.pack(to_mac, mac, ETH_P_IPV6)
    return head + _IPV6.pack(6 << 28, len(message), _ICMPV6, _HOPS, source.packed, to.packed) + message
