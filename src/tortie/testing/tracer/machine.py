"""A packet's way through a rendered ruleset, as the kernel would take it.

    comes in     prerouting ─┬─► input
                             └─► forward ─► postrouting ─► on the wire
    goes out     output ─► postrouting ─┬─► on the wire
                                        └─► to ourselves: prerouting ─► input

Which of these it takes says the machine's routing. In a hook the base chains run by priority; `accept` ends its base
chain alone, `drop` everything. Connection tracking begins at its own priority, and whoever is before it sees no
connection. NAT chains see a connection's first packet only, and one translation of an end is all that there is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

from tortie.base.addr import IP
from tortie.policy.verdict import Packet
from tortie.render.ruleset import Chain, Ruleset
from tortie.testing.tracer.datatypes import CT_STATE, TCP_FLAG
from tortie.testing.tracer.elements import Elements, Verdict, elements_of
from tortie.testing.tracer.flight import LOOPBACK, UNTRACKED, WITH_PORTS, Flight, Host
from tortie.testing.tracer.rule import Rule, parse_rule
from tortie.testing.tracer.words import NotUnderstood

_HOOK = re.compile(r"type (filter|nat|route) hook (\w+) priority ([\w-]+)(?: ([+-]) (\d+))?; policy (accept|drop);")
_PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
_CONNTRACK = -200
"""NF_IP_PRI_CONNTRACK (netfilter_ipv4.h)."""
_DEPTH = 16
"""NFT_JUMP_STACK_SIZE (net/netfilter/nf_tables.h)."""
_ENTRIES = ("prerouting", "output")
"""The hooks in which connection tracking meets a packet, and in which NAT replaces its destination."""
_REPLACED = {"prerouting": "destination", "output": "destination", "input": "source", "postrouting": "source"}
"""Which end NAT may replace in a hook."""
_ON = Verdict("continue")
_EVERYBODY = IPv4Address("255.255.255.255")


@dataclass(frozen=True, slots=True)
class Base:
    """A base chain: where it hooks in."""

    name: str
    kind: str
    hook: str
    priority: int
    policy: str


@dataclass(frozen=True, slots=True)
class Line:
    """A rule that matched, in a chain that was entered from `hook`, and its verdict."""

    hook: str
    chain: str
    rule: str
    comment: str
    verdict: Verdict

    def __str__(self) -> str:
        return f"{self.hook:<11} {self.chain}  rule {self.rule} (verdict {self.verdict})"


@dataclass(frozen=True, slots=True)
class Trace:
    """What became of a packet. `rule` is the comment of the rule that decided: the one that dropped it, else the last
    named one that let it on. `lines` are the rules that matched."""

    packet: Packet
    verdict: str
    rule: str
    lines: tuple[Line, ...]
    counters: Counter[str]
    mark: int
    source: IP
    destination: IP
    interface: str
    tracked: bool

    @property
    def allowed(self) -> bool:
        return self.verdict == "accept"

    def __str__(self) -> str:
        by = f" by {self.rule}" if self.rule else ""
        went = f" out of {self.interface}" if self.interface and self.allowed else ""
        ends = f"{self.source} > {self.destination}"
        nat = f" as {ends}" if ends != f"{self.packet.source} > {self.packet.destination}" else ""
        return "\n".join((described(self.packet), *map(str, self.lines), f"{self.verdict}{by}{went}{nat}"))


def described(packet: Packet) -> str:
    """`packet 10.244.1.10 > 10.244.1.11 protocol 6 port 20000 > 80`."""
    ends = f"packet {packet.source} > {packet.destination} protocol {packet.protocol}"
    if packet.protocol in (1, 58):
        return f"{ends} type {packet.icmp_type} code {packet.icmp_code}"
    return f"{ends} port {packet.source_port} > {packet.destination_port}" if packet.protocol in WITH_PORTS else ends


class Tracer:
    """Traces packets through one ruleset on one machine. Chains and sets are read when a packet first gets there."""

    def __init__(self, ruleset: Ruleset, host: Host) -> None:
        self._ruleset, self._host = ruleset, host
        self._rules: dict[str, tuple[Rule, ...]] = {}
        self._elements: dict[str, Elements] = {}
        self._hooks: dict[str, list[Base]] = {}
        for base in sorted(_bases(ruleset.chains), key=lambda base: base.priority):
            self._hooks.setdefault(base.hook, []).append(base)

    def trace(
        self, packet: Packet, interface: str = "", *, state: str = "new", tcp: str = "syn", mark: int = 0
    ) -> Trace:
        """`interface`: through which it comes in; "" for one that the machine itself sends. `state` is what connection
        tracking calls it, `tcp` its flag if it is a segment of TCP. Raises NotUnderstood."""
        flight = Flight(packet, interface, self._host, self._set)
        flight.ct_state, flight.tcp_flags, flight.mark = CT_STATE.symbols[state], TCP_FLAG.symbols[tcp], mark
        lines: list[Line] = []
        verdict, rule = self._walk(flight, lines)
        if verdict == "accept":
            named = (line for line in reversed(lines) if line.comment and line.verdict != _ON)
            rule = next((line.comment for line in named), "")
        return Trace(
            packet, verdict, rule, tuple(lines), flight.counters, flight.mark, flight.source, flight.destination,
            flight.oif, flight.ct_state != UNTRACKED,
        )  # fmt: skip

    def _walk(self, flight: Flight, lines: list[Line]) -> tuple[str, str]:
        for hook in self._way(flight):
            for base in self._hooks.get(hook, ()):
                if base.priority > _CONNTRACK and hook in _ENTRIES:
                    flight.tracked = True
                if base.kind == "nat" and not flight.translatable(_REPLACED[hook]):
                    continue
                ended = self._chain(base.name, hook, flight, lines, ())
                if ended.word in ("drop", "reject"):
                    return ended.word, flight.decided
                if ended.word != "accept" and base.policy == "drop":
                    return "drop", ""
            flight.leave(_REPLACED.get(hook, ""))
        return ("accept", "") if flight.oif or self._is_for_us(flight) else ("no route", "")

    def _way(self, flight: Flight) -> Iterator[str]:
        """The hooks, one after the other; what the earlier ones did to the packet decides about the later ones."""
        if not flight.iif:
            flight.oif = self._host.interface_to(flight.destination)
            yield "output"
            flight.oif = self._host.interface_to(flight.destination)
            yield "postrouting"
            if flight.oif != LOOPBACK:
                return
            flight.iif, flight.oif = LOOPBACK, ""
        yield "prerouting"
        if self._is_for_us(flight):
            yield "input"
            return
        flight.oif = self._host.interface_to(flight.destination)
        if flight.oif:
            yield "forward"
            yield "postrouting"

    def _is_for_us(self, flight: Flight) -> bool:
        destination = flight.destination
        return self._host.is_local(destination) or destination.is_multicast or destination == _EVERYBODY

    def _chain(self, name: str, hook: str, flight: Flight, lines: list[Line], callers: tuple[str, ...]) -> Verdict:
        """How the chain ends: `continue` when it came to its end without a verdict. `callers` are the comments of the
        rules that led here."""
        if len(callers) > _DEPTH:
            raise NotUnderstood(f"jumps deeper than the kernel's {_DEPTH}: {name}")
        for rule in self._rules_of(name):
            outcome = rule.applied(flight)
            if outcome is False:
                continue
            ended = outcome if isinstance(outcome, Verdict) else _ON
            lines.append(Line(hook, name, rule.text, rule.comment, ended))
            if ended.word in ("jump", "goto"):
                inner = self._chain(ended.chain, hook, flight, lines, (*callers, rule.comment))
                if ended.word == "goto" or inner.word not in ("continue", "return"):
                    return inner
            elif ended.word != "continue":
                flight.decided = rule.comment or next((name for name in reversed(callers) if name), "")
                return ended
        return _ON

    def _rules_of(self, chain: str) -> tuple[Rule, ...]:
        found = self._rules.get(chain)
        if found is None:
            if chain not in self._ruleset.chains:
                raise NotUnderstood(f"there is no chain {chain}")
            found = self._rules[chain] = tuple(map(parse_rule, self._ruleset.chains[chain].rules))
        return found

    def _set(self, name: str) -> Elements:
        found = self._elements.get(name)
        if found is None:
            if name not in self._ruleset.sets:
                raise NotUnderstood(f"there is no set {name}")
            found = self._elements[name] = elements_of(self._ruleset.sets[name])
        return found


def _bases(chains: Mapping[str, Chain]) -> Iterator[Base]:
    for name, chain in chains.items():
        if chain.hook:
            found = _HOOK.fullmatch(chain.hook.strip())
            if found is None:
                raise NotUnderstood(f"hook of chain {name}: {chain.hook}")
            kind, hook, word, sign, offset, policy = found.groups()
            priority = _PRIORITIES[word] if word in _PRIORITIES else int(word)
            yield Base(name, kind, hook, priority + int(f"{sign or '+'}{offset or 0}"), policy)
