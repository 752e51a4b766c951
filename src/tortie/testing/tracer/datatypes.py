"""The types of nft's values: how each is written, and what a packet's value is compared with.

A value is written as a span, first and last included: a port, a range of ports, a network, interfaces `"cali*"`.
Numbers and addresses are integers, names of interfaces are texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from tortie.testing.tracer.words import NotUnderstood

Scalar = int | str
Span = tuple[Scalar, Scalar]

_AFTER = "\U0010ffff"
"""Behind everything that begins alike."""


@dataclass(frozen=True, eq=False)
class DataType:
    """Integers under names. `bits`: a value is a set of them, of which nft asks whether any is there."""

    name: str
    symbols: Mapping[str, int] = field(default_factory=dict)
    bits: bool = False

    def span(self, word: str) -> Span:
        if word in self.symbols:
            return self.symbols[word], self.symbols[word]
        first, dash, last = word.partition("-")
        return self.scalar(first), self.scalar(last if dash else first)

    def scalar(self, word: str) -> Scalar:
        if word in self.symbols:
            return self.symbols[word]
        try:
            return int(word, 0)
        except ValueError:
            raise NotUnderstood(f'"{word}" is no {self.name}') from None


class _Addresses(DataType):
    def span(self, word: str) -> Span:
        if "/" not in word:
            return super().span(word)
        try:
            net: IPv4Network | IPv6Network = (IPv4Network if self.name == "ipv4_addr" else IPv6Network)(word)
        except ValueError:
            raise NotUnderstood(f'"{word}" is no network of {self.name}') from None
        return int(net[0]), int(net[-1])

    def scalar(self, word: str) -> Scalar:
        try:
            return int(IPv4Address(word) if self.name == "ipv4_addr" else IPv6Address(word))
        except ValueError:
            raise NotUnderstood(f'"{word}" is no {self.name}') from None


class _Names(DataType):
    def span(self, word: str) -> Span:
        name = str(self.scalar(word))
        return (name[:-1], name[:-1] + _AFTER) if name.endswith("*") else (name, name)

    def scalar(self, word: str) -> Scalar:
        return word.strip('"')


class _Indexes(_Names):
    """Interfaces by number, which nft writes as names, but 0: no interface."""

    def scalar(self, word: str) -> Scalar:
        return "" if word == "0" else super().scalar(word)


NF_PROTO = DataType("nf_proto", {"ipv4": 2, "ipv6": 10})
INET_PROTO = DataType(
    "inet_proto",
    {"icmp": 1, "ipip": 4, "tcp": 6, "udp": 17, "dccp": 33, "esp": 50, "icmpv6": 58, "ipv6-icmp": 58, "sctp": 132,
     "udplite": 136},
)  # fmt: skip
INET_SERVICE = DataType("inet_service")
MARK = DataType("mark")
IFNAME, IFINDEX = _Names("ifname"), _Indexes("iface_index")
IPV4_ADDR, IPV6_ADDR = _Addresses("ipv4_addr"), _Addresses("ipv6_addr")
ICMP_TYPE = DataType("icmp_type", {"echo-reply": 0, "destination-unreachable": 3, "redirect": 5, "echo-request": 8})
ICMPV6_TYPE = DataType(
    "icmpv6_type",
    {"echo-request": 128, "echo-reply": 129, "mld-listener-query": 130, "mld-listener-report": 131,
     "mld-listener-done": 132, "nd-router-solicit": 133, "nd-router-advert": 134, "nd-neighbor-solicit": 135,
     "nd-neighbor-advert": 136, "nd-redirect": 137, "mld2-listener-report": 143},
)  # fmt: skip
ICMP_CODE = DataType("icmp_code")
DSCP = DataType("dscp")
CT_STATE = DataType(
    "ct_state", {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}, bits=True
)  # NF_CT_STATE_* (netfilter/nf_conntrack_common.h)
CT_STATUS = DataType(
    "ct_status",
    {"expected": 1, "seen-reply": 2, "assured": 4, "confirmed": 8, "snat": 16, "dnat": 32},
    bits=True,
)  # IPS_* (netfilter/nf_conntrack_common.h)
CT_DIR = DataType("ct_dir", {"original": 0, "reply": 1})
TCP_FLAG = DataType("tcp_flag", {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32}, bits=True)
FIB_TYPE = DataType("fib_addrtype", {"unicast": 1, "local": 2, "broadcast": 3, "multicast": 5})
EXISTENCE = DataType("boolean", {"missing": 0, "exists": 1})
VERDICT = DataType("verdict")

BY_NAME = {
    one.name: one
    for one in (NF_PROTO, INET_PROTO, INET_SERVICE, MARK, IFNAME, IPV4_ADDR, IPV6_ADDR, ICMP_TYPE, ICMPV6_TYPE,
                ICMP_CODE, DSCP, CT_STATE, CT_STATUS, CT_DIR, VERDICT)
}  # fmt: skip
"""As the declaration of a set names them."""
