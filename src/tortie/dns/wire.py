"""Questions and answers as bytes: dnspython's, with what it leaves to a server.

    bytes ─► read ─► a Question ─► respond: bytes that fit
               ├──► a refusal: bytes
               └──► None: nobody is answered who may not have asked

Source: RFC 1035 section 4, RFC 6891 (EDNS), RFC 9619 (one question), RFC 8767 and 5936 are not spoken.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from tortie.dns.answers import Record
from tortie.dns.records import Labels

HEADER = 12
PAYLOAD = 1232
"""Bytes of a datagram that go through without being cut up on any usual way (DNS flag day 2020)."""
SMALLEST, LARGEST = 512, 65535  # bytes of a message
SHUFFLED = (dns.rdatatype.A, dns.rdatatype.AAAA)
"""Many take the first address that they are told."""
SMALLEST_RECORD = 16  # bytes of an A record whose name is said already
MOST = PAYLOAD // SMALLEST_RECORD + 1, LARGEST // SMALLEST_RECORD + 1
"""Records that are too many for any datagram, and for any message."""
REMEMBERED = 1 << 15
_TRANSFERS = (dns.rdatatype.AXFR, dns.rdatatype.IXFR, dns.rdatatype.MAILA, dns.rdatatype.MAILB)
_META = range(128, 255)  # types that are no data, RFC 6895 section 3.1


@dataclass(frozen=True, slots=True)
class Question:
    """`size` is how many bytes the answer may have. `labels` are in small letters, without the root's. `key` is what it
    was read from, but for its number, and whether that was a datagram."""

    message: dns.message.Message
    name: dns.name.Name
    type: dns.rdatatype.RdataType
    labels: Labels
    size: int
    key: tuple[bytes, bool]

    @property
    def kind(self) -> str:
        return dns.rdatatype.to_text(self.type)


def read(data: bytes, *, datagram: bool, recursive: bool) -> Question | bytes | None:
    """What somebody asks; the answer to what is no question that could be answered; None for no question at all.

    `recursive`: names elsewhere are asked for.
    """
    if len(data) < HEADER or data[2] & 0x80:  # QR: an answer to an answer would go to and fro for ever
        return None
    if (data[2] >> 3) & 0xF != dns.opcode.QUERY:
        return _bare(data, dns.rcode.NOTIMP)
    try:
        message = dns.message.from_wire(data)
    except (dns.exception.DNSException, ValueError, LookupError, ArithmeticError):
        return _bare(data, dns.rcode.FORMERR)
    if len(message.question) != 1:
        return _bare(data, dns.rcode.FORMERR)
    size = min(max(SMALLEST, message.payload), PAYLOAD) if datagram else LARGEST
    if message.edns < 0 and datagram:
        size = SMALLEST
    asked = message.question[0]
    question = Question(message, asked.name, asked.rdtype, _labels(asked.name), size, (data[2:], datagram))
    if message.edns > 0:
        return respond(question, rcode=dns.rcode.BADVERS, recursive=recursive)
    if asked.rdclass != dns.rdataclass.IN or asked.rdtype in _TRANSFERS or asked.rdtype == dns.rdatatype.OPT:
        return respond(question, rcode=dns.rcode.REFUSED, recursive=recursive)
    if asked.rdtype in _META:
        return respond(question, rcode=dns.rcode.NOTIMP, recursive=recursive)
    return question


def respond(
    question: Question,
    answer: Sequence[dns.rrset.RRset] = (),
    authority: Sequence[dns.rrset.RRset] = (),
    additional: Sequence[dns.rrset.RRset] = (),
    *,
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR,
    authoritative: bool = False,
    recursive: bool = False,
) -> bytes:
    """An answer of at most the question's size. What does not fit is cut off, and said so."""
    message = dns.message.make_response(question.message, recursion_available=recursive, our_payload=PAYLOAD)
    message.set_rcode(rcode)
    if authoritative:
        message.flags |= dns.flags.AA
    message.answer, message.authority, message.additional = list(answer), list(authority), list(additional)
    wire = message.to_wire(max_size=question.size, prefer_truncation=True)
    if wire[2] & 0x02 and message.answer:
        return _cut(message, question.size)
    return wire


def rrsets(records: Iterable[Record], question: Question) -> list[dns.rrset.RRset]:
    """Records that belong together, in the order of the first of each; addresses in any order. A name that was asked
    for is written as it was asked for: some tell answers to their questions by that."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.name, record.type), []).append(record)
    found = []
    for group in groups.values():
        most = MOST[question.size > PAYLOAD]
        if len(group) > most:  # the rest would only be written to be cut off again
            group = random.sample(group, most)
        data = [_rdata(record.type, record.data) for record in group]
        if data[0].rdtype in SHUFFLED:
            random.shuffle(data)
        name = _name(group[0].name)
        name = question.name if name == question.name else name
        found.append(dns.rrset.from_rdata_list(name, group[0].ttl, data))
    return found


@lru_cache(maxsize=REMEMBERED)
def _rdata(kind: str, data: str) -> dns.rdata.Rdata:
    return dns.rdata.from_text("IN", kind, data)


@lru_cache(maxsize=REMEMBERED)
def _name(text: str) -> dns.name.Name:
    return dns.name.from_text(text)


def _labels(name: dns.name.Name) -> Labels:
    return tuple(label.decode("latin-1").lower() for label in name.labels[:-1])


def _bare(data: bytes, rcode: dns.rcode.Rcode) -> bytes:
    """A header alone: with the question's number, kind and wish for recursion."""
    return data[:2] + bytes([0x80 | data[2] & 0x79, rcode]) + bytes(8)


def _cut(message: dns.message.Message, size: int) -> bytes:
    """With as many of the last records as fit: there are those who never ask again over TCP."""
    whole, last = message.answer[:-1], message.answer[-1]
    message.authority, message.additional = [], []
    message.flags |= dns.flags.TC
    message.answer = whole
    try:
        without = message.to_wire(max_size=size)
    except dns.exception.TooBig:
        return message.to_wire(max_size=size, prefer_truncation=True)
    some, left = [], size - len(without)
    for one in last:  # its size is known, so that the answer is written once only, whatever thousands there are
        left -= SMALLEST_RECORD - 4 + len(one.to_digestable())
        if left < 0:
            break
        some.append(one)
    message.answer = [*whole, dns.rrset.from_rdata_list(last.name, last.ttl, some)] if some else whole
    return message.to_wire(max_size=size)
