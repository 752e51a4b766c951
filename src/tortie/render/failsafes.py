"""Failsafes in nftables: what stays open at every host endpoint, whatever its policy says.

    failsafe-in, -out           neighbours and routers of the link (IPv6); protocol and port, for some with a peer
    failsafe-raw-in, -raw-out   these, and the answers to them: otherwise a policy that is asked before connection
                                tracking would see half of a connection

An endpoint's chain jumps here first. What is accepted is settled for this hook, and asked again at the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tortie.base.addr import Net, collapse
from tortie.policy.rules import DIRECTIONS, Direction
from tortie.policy.verdict import LINK_TYPES, Failsafe, Failsafes, failsafe_id
from tortie.render.match import FAMILY, comment
from tortie.render.members import ADDRESS, element
from tortie.render.ruleset import Chain, Set

_WORD: dict[Direction, str] = {"ingress": "in", "egress": "out"}
_PEER: dict[Direction, str] = {"ingress": "saddr", "egress": "daddr"}


def failsafe_jump(direction: Direction, *, raw: bool) -> str:
    return f"jump failsafe-{'raw-' if raw else ''}{_WORD[direction]}"


def failsafe_chains(failsafes: Failsafes) -> dict[str, Chain]:
    chains: dict[str, Chain] = {}
    for direction, word in _WORD.items():
        other: Direction = "egress" if direction == "ingress" else "ingress"
        types = ", ".join(map(str, LINK_TYPES))
        link = f"icmpv6 type {{ {types} }} counter accept {comment(failsafe_id(direction, 'link'))}"
        ports = _lines(failsafes, direction, "dport", direction, failsafe_id(direction))
        answers = _lines(failsafes, other, "sport", direction, failsafe_id(direction, "answer"))
        chains[f"failsafe-{word}"] = Chain((link, *ports))
        chains[f"failsafe-raw-{word}"] = Chain((f"jump failsafe-{word}", *answers))
    return chains


def failsafe_sets(failsafes: Failsafes) -> dict[str, Set]:
    """`failsafe-in` (protocol and port), `failsafe-in4` (peer, protocol and port), ...; none is empty."""
    sets: dict[str, Set] = {}
    for direction in DIRECTIONS:
        plain = frozenset(f"{one.protocol} . {one.port}" for one in failsafes.of(direction) if one.net is None)
        if plain:
            sets[_set(direction)] = Set("type inet_proto . inet_service;", plain)
        for version, address in ADDRESS.items():
            elements = frozenset(_elements(failsafes.of(direction), version))
            if elements:
                spec = f"type {address} . inet_proto . inet_service; flags interval;"
                sets[_set(direction, version)] = Set(spec, elements)
    return sets


def _lines(failsafes: Failsafes, whose: Direction, port: str, way: Direction, identity: str) -> Iterator[str]:
    """`whose` list, by the destination or the source port, in packets that go this `way`."""
    accept = f"counter accept {comment(identity)}"
    if any(one.net is None for one in failsafes.of(whose)):
        yield f"meta l4proto . th {port} @{_set(whose)} {accept}"
    for version, family in FAMILY.items():
        if any(one.net is not None and one.net.version == version for one in failsafes.of(whose)):
            yield f"{family} {_PEER[way]} . meta l4proto . th {port} @{_set(whose, version)} {accept}"


def _set(direction: Direction, version: int | None = None) -> str:
    return f"failsafe-{_WORD[direction]}{version or ''}"


def _elements(failsafes: Iterable[Failsafe], version: int) -> Iterator[str]:
    nets: dict[tuple[int, int], list[Net]] = {}
    for one in failsafes:
        if one.net is not None and one.net.version == version:
            nets.setdefault((one.protocol, one.port), []).append(one.net)
    for (protocol, port), peers in nets.items():
        for net in collapse(peers):
            span = element(net) if net.prefixlen else f"{net[0]}-{net[-1]}"
            yield f"{span} . {protocol} . {port}"
