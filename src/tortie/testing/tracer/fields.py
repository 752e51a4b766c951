"""What nft's expressions read of a packet. A new one is a line in a table here.

A reader gives None where the packet has no such thing; the rule does not match then, whatever it compares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tortie.base.addr import IP
from tortie.testing.tracer import datatypes as types
from tortie.testing.tracer.datatypes import DataType
from tortie.testing.tracer.flight import LOOPBACK, Flight
from tortie.testing.tracer.words import Words

Read = Callable[[Flight], Any]
_VERSION = {"ip": 4, "ip6": 6}
_ADDRESS = {4: types.IPV4_ADDR, 6: types.IPV6_ADDR}
_PORTS = {"tcp": 6, "udp": 17, "dccp": 33, "sctp": 132, "udplite": 136}


@dataclass(frozen=True, slots=True)
class Field:
    kind: DataType
    read: Read


def _address(version: int, attribute: str) -> Field:
    return Field(_ADDRESS[version], lambda flight: getattr(flight, attribute) if flight.version == version else None)


def _dscp(version: int) -> Field:
    return Field(types.DSCP, lambda flight: flight.dscp if flight.version == version else None)


def _original(version: int, end: int) -> Field:
    def read(flight: Flight) -> int | None:
        return flight.original[end] if flight.connection and flight.version == version else None

    return Field(_ADDRESS[version], read)


def _port(protocol: int, attribute: str) -> Field:
    def read(flight: Flight) -> int | None:
        return getattr(flight, attribute) if flight.l4proto == protocol else None

    return Field(types.INET_SERVICE, read)


def _icmp(word: str, version: int, protocol: int, attribute: str) -> Field:
    """nft asks the family and the protocol before it looks into the message."""

    def read(flight: Flight) -> int | None:
        return getattr(flight, attribute) if (flight.version, flight.l4proto) == (version, protocol) else None

    return Field(types.ICMP_CODE if attribute == "icmp_code" else types.BY_NAME[f"{word}_type"], read)


def _of_connection(attribute: str) -> Read:
    return lambda flight: getattr(flight, attribute) if flight.connection else None


FIELDS: dict[str, Field] = {
    "meta nfproto": Field(types.NF_PROTO, lambda flight: 2 if flight.version == 4 else 10),
    "meta l4proto": Field(types.INET_PROTO, lambda flight: flight.l4proto),
    "meta mark": Field(types.MARK, lambda flight: flight.mark),
    "iifname": Field(types.IFNAME, lambda flight: flight.iif),
    "oifname": Field(types.IFNAME, lambda flight: flight.oif),
    "ip protocol": Field(types.INET_PROTO, lambda flight: flight.l4proto if flight.version == 4 else None),
    "ip6 nexthdr": Field(types.INET_PROTO, lambda flight: flight.l4proto if flight.version == 6 else None),
    "iif": Field(types.IFINDEX, lambda flight: flight.iif),
    "oif": Field(types.IFINDEX, lambda flight: flight.oif),
    "th sport": Field(types.INET_SERVICE, lambda flight: flight.sport),
    "th dport": Field(types.INET_SERVICE, lambda flight: flight.dport),
    "tcp flags": Field(types.TCP_FLAG, lambda flight: flight.tcp_flags if flight.l4proto == 6 else None),
    "ct state": Field(types.CT_STATE, lambda flight: flight.state),
    "ct status": Field(types.CT_STATUS, _of_connection("ct_status")),
    "ct mark": Field(types.MARK, _of_connection("ct_mark")),
    "ct direction": Field(types.CT_DIR, lambda flight: 0 if flight.connection else None),
}
for _word, _version in _VERSION.items():
    for _end, _name in enumerate(("saddr", "daddr")):
        FIELDS[f"{_word} {_name}"] = _address(_version, _name)
        FIELDS[f"ct original {_word} {_name}"] = _original(_version, _end)
    FIELDS[f"{_word} dscp"] = _dscp(_version)
for _word, _protocol in _PORTS.items():
    for _name in ("sport", "dport"):
        FIELDS[f"{_word} {_name}"] = _port(_protocol, _name)
for _name in ("type", "code"):
    FIELDS[f"icmp {_name}"] = _icmp("icmp", 4, 1, f"icmp_{_name}")
    FIELDS[f"icmpv6 {_name}"] = _icmp("icmpv6", 6, 58, f"icmp_{_name}")
FIELDS |= {f"meta {_word}": FIELDS[_word] for _word in ("iifname", "oifname", "iif", "oif")}

WRITES = {"meta mark": "mark", "ct mark": "ct_mark", "ip dscp": "dscp", "ip6 dscp": "dscp"}
"""What `set` may follow, and where the value goes."""


def field(words: Words) -> Field | None:
    """The expression that comes next, taken; None when what comes is none."""
    if words.skip("fib"):
        return _fib(words)
    for count in (4, 2, 1):
        found = FIELDS.get(words.ahead(count))
        if found is not None and words.skip(words.ahead(count)):
            return found
    return None


def _fib(words: Words) -> Field:
    """`fib saddr . iif oif`: the interface that leads to an address; `fib daddr type`: whether it is our own."""
    asked = {words.take()}
    while words.skip("."):
        asked.add(words.take())
    result = words.take()
    ends = asked & {"saddr", "daddr"}
    if len(ends) != 1 or asked - {"saddr", "daddr", "iif", "mark"} or result not in ("oif", "oifname", "type"):
        raise words.unknown(f"fib {' . '.join(sorted(asked))} {result}")
    source = ends == {"saddr"}

    def address(flight: Flight) -> IP:
        return flight.source if source else flight.destination

    def interface(flight: Flight) -> str:
        found = flight.host.interface_to(address(flight))
        return found if found == flight.iif or "iif" not in asked else ""

    if result == "type":
        return Field(types.FIB_TYPE, lambda flight: _address_type(address(flight), flight))
    if result == "oifname":
        return Field(types.IFNAME, interface)
    return Field(types.EXISTENCE, lambda flight: int(bool(interface(flight))))


def _address_type(ip: IP, flight: Flight) -> int:
    if ip.is_multicast:
        return types.FIB_TYPE.symbols["multicast"]
    return types.FIB_TYPE.symbols["local" if flight.host.interface_to(ip) == LOOPBACK else "unicast"]
