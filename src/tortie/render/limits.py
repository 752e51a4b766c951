"""Limits of packets and connections in nftables, and the mark that a pod's packets carry outside (DSCP).

    rates-forward, rates-input    before policy: from a pod ─► rf-<if>, to a pod ─► rt-<if>: drop what is too much
    fw-<if>, tw-<if>              a new connection ─► cf-<if>, ct-<if>: reset what is too many
    dscp (mangle, postrouting)    from a pod, to no pool and no host ─► dscp4-<n>, dscp6-<n>

What nobody asks for is not there: no hook, no map. Each count is in a chain of its own, which changes only with its
limit; the kernel counts from zero again whenever a rule is written anew.
Source: Calico's nftables dataplane, for what is counted and the verdicts. Bandwidth is the work of the qos stage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tortie.calc.state import LocalEndpoint
from tortie.policy.rules import DIRECTIONS, Direction
from tortie.render.denials import DROPPED, REFUSED
from tortie.render.match import FAMILY, denial
from tortie.render.members import ADDRESS
from tortie.render.ruleset import Chain, Set

_LETTER: dict[Direction, str] = {"ingress": "t", "egress": "f"}  # to the pod, from the pod
_MAP: dict[Direction, str] = {"ingress": "rates-to", "egress": "rates-from"}


def limit_chains(endpoint: LocalEndpoint) -> dict[str, Chain]:
    """Those of one endpoint: `rf-`, `rt-`, `cf-` and `ct-<interface>`, as far as it has such limits."""
    chains: dict[str, Chain] = {}
    for direction in DIRECTIONS:
        limits = endpoint.qos.of(direction)
        if limits.packet_rate:
            over = f"limit rate over {limits.packet_rate}/second burst {limits.packet_burst} packets"
            drop = denial(f"qos|{endpoint.interface}|{direction}|packet-rate", DROPPED)
            chains[_rate_chain(endpoint, direction)] = Chain((f"{over} {drop}",))
        if limits.max_connections:
            over = f"meta l4proto 6 ct count over {limits.max_connections}"
            reset = denial(f"qos|{endpoint.interface}|{direction}|connections", REFUSED)
            chains[connection_chain(endpoint, direction)] = Chain((f"{over} {reset}",))
    return chains


def connection_chain(endpoint: LocalEndpoint, direction: Direction) -> str:
    """The chain that counts connections in one direction of an endpoint."""
    return f"c{_LETTER[direction]}-{endpoint.interface}"


def _rate_chain(endpoint: LocalEndpoint, direction: Direction) -> str:
    return f"r{_LETTER[direction]}-{endpoint.interface}"


def limit_sets(endpoints: Collection[LocalEndpoint]) -> dict[str, Set]:
    """Interface to chain, for each direction in which packets are limited, and source to DSCP chain by family."""
    sets: dict[str, Set] = {}
    for direction, name in _MAP.items():
        limited = [one for one in endpoints if one.qos.of(direction).packet_rate]
        elements = (f'"{one.interface}" : jump {_rate_chain(one, direction)}' for one in limited)
        if limited:
            sets[name] = Set("type ifname : verdict;", frozenset(elements), is_map=True)
    for version, address in ADDRESS.items():
        marked = {ip: one.qos.dscp for one in endpoints if one.qos.dscp is not None for ip in one.ips}
        elements = (f"{ip} : goto dscp{version}-{dscp}" for ip, dscp in marked.items() if ip.version == version)
        if found := frozenset(elements):
            sets[f"dscp{version}"] = Set(f"type {address} : verdict;", found, is_map=True)
    return sets


def limit_hooks(sets: Collection[str], endpoints: Iterable[LocalEndpoint], unlimited: str) -> dict[str, Chain]:
    """The hooks that those sets need. What matches `unlimited` is never too much for a pod's own host."""
    chains: dict[str, Chain] = {}
    both = [
        f"{word} vmap @{name}" for word, name in (("iifname", "rates-from"), ("oifname", "rates-to")) if name in sets
    ]
    if both:
        chains["rates-forward"] = Chain(tuple(both), "type filter hook forward priority filter - 1; policy accept;")
    if "rates-from" in sets:
        rules = (f"{unlimited} accept", "iifname vmap @rates-from")
        chains["rates-input"] = Chain(rules, "type filter hook input priority filter - 1; policy accept;")
    outside = [
        f"{family} daddr != @pools{version} {family} daddr != @hosts{version} {family} saddr vmap @dscp{version}"
        for version, family in FAMILY.items()
        if f"dscp{version}" in sets
    ]
    if outside:
        chains["dscp"] = Chain(tuple(outside), "type filter hook postrouting priority mangle; policy accept;")
        for dscp in {one.qos.dscp for one in endpoints if one.qos.dscp is not None}:
            for version, family in FAMILY.items():
                chains[f"dscp{version}-{dscp}"] = Chain((f"{family} dscp set {dscp}",))
    return chains
