"""The answer to a question about the cluster's names, as a value. No bytes here, no sockets.

    (labels, type) ─► in the zone?           ─► records, or the SOA: none of this type, or no such name
                   ─► an address backwards?  ─► PTR, if it is one of ours
                   ─► neither                ─► None: somebody else knows

Source: RFC 1034 section 4.3.2, RFC 2308 section 2 (no such name, no such data), RFC 8020, RFC 8482 section 4.1 (ANY).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address
from itertools import islice

from tortie.base.addr import IP
from tortie.dns.names import SERVER, Names
from tortie.dns.records import Data, Labels, ip_of

SCHEMA_TTL = 28800  # of dns-version; it changes with the program
MOST_BESIDES = 100
"""Hosts whose addresses come along: who wants more asks."""
LONGEST_CHAIN = 8
"""CNAMEs that are followed. ExternalNames may lead in a circle."""
SOA_TIMES = "7200 1800 86400"  # refresh, retry, expire: nobody copies the zone


@dataclass(frozen=True, slots=True)
class Record:
    """`data` is as a zone file has it. Names are absolute."""

    name: str
    ttl: int
    type: str
    data: str

    def __str__(self) -> str:
        return f"{self.name} {self.ttl} IN {self.type} {self.data}"


@dataclass(frozen=True, slots=True)
class Answer:
    """`missing`: there is no such name. `elsewhere` is the name outside of the zone, absolute, that a CNAME leads to:
    whoever can asks for it."""

    answer: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
    missing: bool = False
    elsewhere: str = ""


def answer(names: Names, labels: Labels, kind: str, ttl: int, serial: int = 1) -> Answer | None:
    """To a question for records of a type, or ANY. `labels` are in small letters; `serial` is the zone's. None where
    neither the zone nor an address of the cluster is asked for."""
    inside = names.within(labels)
    if inside is not None:
        return _chained(names, inside, kind, ttl, serial)
    ip = backwards(labels) if kind in ("PTR", "ANY") else None
    found = names.pointers(ip) if ip is not None else ()
    name = ".".join(labels) + "."
    return Answer(tuple(Record(name, ttl, "PTR", each) for each in found)) if found else None


def soa(names: Names, ttl: int, serial: int) -> Record:
    """Its last number is for how long it may be remembered that something is not there."""
    server, mail = names.text(SERVER), names.text(("hostmaster",))
    return Record(names.text(()), ttl, "SOA", f"{server} {mail} {serial} {SOA_TIMES} {ttl}")


def backwards(labels: Labels) -> IP | None:
    """The address in a name of in-addr.arpa or ip6.arpa, if it is a whole one.

    >>> str(backwards(("1", "0", "96", "10", "in-addr", "arpa")))
    '10.96.0.1'
    """
    if labels[-2:] == ("in-addr", "arpa") and len(labels) == 6:
        return ip_of(".".join(reversed(labels[:4])))
    if labels[-2:] == ("ip6", "arpa") and len(labels) == 34:
        digits = "".join(reversed(labels[:32]))
        if len(digits) == 32 and all(digit in "0123456789abcdef" for digit in digits):
            return IPv6Address(int(digits, 16))
    return None


def _chained(names: Names, inside: Labels, kind: str, ttl: int, serial: int) -> Answer:
    """The records at a name, and where it is another's alias those there."""
    found: list[Record] = []
    for _ in range(LONGEST_CHAIN):
        data = _at(names, inside, ttl, serial)
        if data is None:
            return Answer(tuple(found), (soa(names, ttl, serial),), missing=True)
        there = list(_records(names, inside, _chosen(data, kind), ttl))
        found += there
        if not there:
            return Answer(tuple(found), (soa(names, ttl, serial),))
        if kind in ("CNAME", "ANY") or there[-1].type != "CNAME":
            return Answer(tuple(found), additional=tuple(_besides(names, found, ttl)))
        target = tuple(there[-1].data.rstrip(".").split("."))
        within = names.within(target)
        if within is None:
            return Answer(tuple(found), elsewhere=there[-1].data)
        inside = within
    return Answer(tuple(found))


def _at(names: Names, inside: Labels, ttl: int, serial: int) -> Data | None:
    if inside:
        return names.at(inside)
    return {"SOA": (soa(names, ttl, serial).data,), "NS": (names.text(SERVER),)}


def _chosen(data: Data, kind: str) -> Data:
    """Of one type; of ANY any one, for all of them would only serve who wants to flood another with answers."""
    if kind == "ANY":
        return dict(list(data.items())[:1])
    if "CNAME" in data:
        return {"CNAME": data["CNAME"]}
    return {kind: data[kind]} if kind in data else {}


def _records(names: Names, inside: Labels, data: Data, ttl: int) -> Iterator[Record]:
    name = names.text(inside)
    for kind, texts in data.items():
        for text in texts:
            yield Record(name, SCHEMA_TTL if kind == "TXT" else ttl, kind, text)


def _besides(names: Names, found: Iterable[Record], ttl: int) -> Iterator[Record]:
    """The addresses of hosts that SRV and NS records name: who asked for these asks for them next."""
    targets = dict.fromkeys(one.data.rpartition(" ")[2] for one in found if one.type in ("SRV", "NS"))
    for target in islice(targets, MOST_BESIDES):
        inside = names.within(tuple(target.rstrip(".").split(".")))
        data = names.at(inside) if inside else None
        if inside and data:
            wanted = {kind: texts for kind, texts in data.items() if kind in ("A", "AAAA")}
            yield from _records(names, inside, wanted, ttl)
