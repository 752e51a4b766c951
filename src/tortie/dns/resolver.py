"""From a question's bytes to an answer's: the cluster's names at once, the others when another server has told.

    bytes ─► wire.read ─► answers.answer ─┬─ ours ──────────────────────────► bytes
                                          ├─ an alias of a name elsewhere ──► forward ─► bytes, later
                                          └─ None ─► servers known? ─ yes ──► forward ─► bytes, later
                                                                    └ no ───► REFUSED

Before the cluster is known its names are answered with SERVFAIL: "no such name" would be believed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import dns.name
import dns.rcode

from tortie.dns import wire
from tortie.dns.answers import Answer, answer
from tortie.dns.forward import Asked, Told, Upstreams, asked
from tortie.dns.names import Names
from tortie.dns.wire import Question

REMEMBERED = 4096
"""Questions about the cluster whose answers are at hand until something changes."""
LONGEST = 512  # bytes of a question that is remembered

COUNTED = frozenset(("A", "AAAA", "ANY", "CNAME", "HTTPS", "MX", "NAPTR", "NS", "PTR", "SOA", "SRV", "SVCB", "TXT"))
"""Types that are counted by name. There are 65,536."""
OTHER = "other"

Reply = bytes | Coroutine[Any, Any, bytes] | None
"""None: nobody is answered."""


class Resolver:
    """Runs on the event loop. `ready` says whether the cluster is known. `ttl` is in seconds. `epoch` is what the
    serial number of the zone begins with."""

    def __init__(
        self, names: Names, upstreams: Upstreams, *, ttl: int, ready: Callable[[], bool], epoch: int = 1
    ) -> None:
        self.names = names
        self.upstreams = upstreams
        self.requests: Counter[tuple[str, str]] = Counter()
        """By "udp" or "tcp", and type."""
        self.responses: Counter[str] = Counter()
        """By what they say: NOERROR, NXDOMAIN, ..."""
        self._ttl = ttl
        self._ready = ready
        self._epoch = epoch
        self._recent: dict[tuple[bytes, bool], tuple[str, bytes]] = {}
        """By a question but for its number: its type, and the answer but for its number."""
        self._as_of = -1
        """How much had changed when these were answered."""

    @property
    def recursive(self) -> bool:
        return bool(self.upstreams.servers)

    def reply(self, data: bytes, *, datagram: bool) -> Reply:
        """To somebody's bytes, whatever they are."""
        protocol = "udp" if datagram else "tcp"
        if self._as_of != self.names.changes:
            self._recent.clear()
            self._as_of = self.names.changes
        if (known := self._recent.get((data[2:], datagram))) is not None:
            self.requests[protocol, known[0]] += 1
            again = data[:2] + known[1]
            self._responds(again)
            return again
        question = wire.read(data, datagram=datagram, recursive=self.recursive)
        if not isinstance(question, Question):
            self.requests[protocol, OTHER] += 1
            if question is not None:
                self._responds(question)
            return question
        self.requests[protocol, _counted(question)] += 1
        found = self._found(question)
        if isinstance(found, bytes):
            self._responds(found)
        return found

    def _found(self, question: Question) -> bytes | Coroutine[Any, Any, bytes]:
        if not self._ready() and self.names.within(question.labels) is not None:
            return wire.respond(question, rcode=dns.rcode.SERVFAIL, recursive=self.recursive)
        serial = (self._epoch + self.names.changes) & 0xFFFFFFFF
        found = answer(self.names, question.labels, question.kind, self._ttl, serial)
        if found is None:
            if not self.recursive:
                return wire.respond(question, rcode=dns.rcode.REFUSED)
            return self._elsewhere(question, asked(question.message, question.name, question.type), Answer())
        if found.elsewhere and self.recursive:
            target = dns.name.from_text(found.elsewhere)
            return self._elsewhere(question, asked(question.message, target, question.type), found)
        return self._own(question, found)

    def _own(self, question: Question, found: Answer) -> bytes:
        made = wire.respond(
            question,
            *(wire.rrsets(part, question) for part in (found.answer, found.authority, found.additional)),
            rcode=dns.rcode.NXDOMAIN if found.missing else dns.rcode.NOERROR,
            authoritative=True,
            recursive=self.recursive,
        )
        self._remember(question, made)
        return made

    def _elsewhere(self, question: Question, what: Asked, before: Answer) -> bytes | Coroutine[Any, Any, bytes]:
        told = self.upstreams.remembered(what)
        return self._pass_on(question, told, before) if told is not None else self._later(question, what, before)

    async def _later(self, question: Question, what: Asked, before: Answer) -> bytes:
        found = self._pass_on(question, await self.upstreams.ask(what), before)
        self._responds(found)
        return found

    def _pass_on(self, question: Question, told: Told, before: Answer) -> bytes:
        """What another server told, behind the alias that leads there."""
        own = wire.rrsets(before.answer, question)
        return wire.respond(
            question,
            (*own, *told.answer),
            told.authority,
            told.additional,
            rcode=told.rcode,
            authoritative=bool(own),
            recursive=True,
        )

    def _remember(self, question: Question, found: bytes) -> None:
        """What is the same each time: no addresses that change their order."""
        one = int.from_bytes(found[6:8], "big") < 2
        if one and len(question.key[0]) <= LONGEST:
            if len(self._recent) >= REMEMBERED:
                self._recent.clear()
            self._recent[question.key] = _counted(question), found[2:]

    def _responds(self, data: bytes) -> None:
        self.responses[dns.rcode.to_text(dns.rcode.Rcode(data[3] & 0xF))] += 1


def _counted(question: Question) -> str:
    return question.kind if question.kind in COUNTED else OTHER
