"""DesiredState to the nftables table: chains, sets and verdict maps.

    prerouting (raw)      pod? ── source address not reachable through its own interface ──► drop
    forward (filter)      from a pod? ─► from-workload ─► @from-workload: goto fw-<if> ──┐ returns: allowed
                          to a pod?   ─► to-workload   ─► @to-workload:   goto tw-<if> ──┤ else dropped there
    input (filter)        from a pod? ─► workload-to-host ─► from-workload, then the endpoint-to-host action
    postrouting (nat)     from a pool that says so, to no pool ─► masquerade

    fw-<if>, tw-<if>      established ► return; invalid ► drop; per tier: policies, end of tier; profiles; drop
    po-<policy>, pi-<..>  the rules of a policy, outbound and inbound: Allow and Pass set a mark and return

An interface that is in no verdict map (a pod whose policy is not known yet) falls through to a drop. There is no chain
per address: a policy's peers are sets. Every rule has a counter, and a comment that leads back to policy and rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from tortie.base.addr import Net, collapse
from tortie.calc.state import DesiredState, LocalEndpoint, Pool, Settings
from tortie.model.workload import INTERFACE_PREFIX
from tortie.policy.rules import (
    Direction,
    Member,
    Policy,
    PolicyKey,
    SelectorSet,
    SetRef,
    end_of_tier_id,
    no_profile_id,
    rule_id,
)
from tortie.policy.verdict import TierPolicies
from tortie.render.match import ACCEPT, CLEAR, CLEAR_PASS, FAMILY, PASS, fit, rule_lines, set_name
from tortie.render.ruleset import Chain, Ruleset, Set

K = TypeVar("K")

WORKLOADS = f'"{INTERFACE_PREFIX}*"'
ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}

# ICMPv6 types that a pod may always send to its host: multicast listener discovery (130-132), router solicitation
# (133), neighbour solicitation and advertisement (135, 136). Not router advertisement (134), not redirect (137).
NEIGHBOUR_DISCOVERY = "icmpv6 type { 130, 131, 132, 133, 135, 136 }"


class NftRenderer:
    """Renders states one after the other; what did not change is the very same object as last time."""

    def __init__(self) -> None:
        self._policies: dict[PolicyKey, tuple[Policy, str, dict[str, Chain]]] = {}
        self._endpoints: dict[str, tuple[LocalEndpoint, Settings, dict[str, Chain]]] = {}
        self._sets: dict[SetRef, tuple[frozenset[Member], dict[str, Set]]] = {}

    def render(self, state: DesiredState) -> Ruleset:
        settings = state.settings
        chains = base_chains(settings)
        sets = pool_sets(state.pools, state)
        for key, policy in state.policies.items():
            cached = self._policies.get(key)
            if cached is None or cached[0] is not policy or cached[1] != settings.log_prefix:
                cached = self._policies[key] = (policy, settings.log_prefix, policy_chains(policy, settings))
            chains.update(cached[2])
        for name, endpoint in state.endpoints.items():
            known = self._endpoints.get(name)
            if known is None or known[0] != endpoint or known[1] != settings:
                known = self._endpoints[name] = (endpoint, settings, endpoint_chains(endpoint, settings))
            chains.update(known[2])
        for ref, members in state.sets.items():
            rendered = self._sets.get(ref)
            if rendered is None or rendered[0] is not members:
                rendered = self._sets[ref] = (members, member_sets(ref, members))
            sets.update(rendered[1])
        sets.update(dispatch_maps(state.endpoints))
        _forget(self._policies, state.policies)
        _forget(self._endpoints, state.endpoints)
        _forget(self._sets, state.sets)
        return Ruleset(chains, sets)


def _forget(cache: dict[K, Any], live: Mapping[K, Any]) -> None:
    """Drop what is rendered of things that are gone."""
    for key in cache.keys() - live.keys():
        del cache[key]


def base_chains(settings: Settings) -> dict[str, Chain]:
    """The hooks and the dispatch. Base chains accept by policy: until our rules are there nothing else is touched."""
    to_host = {
        "Accept": ("counter accept",),
        "Return": (),
        "Drop": ('counter drop comment "pod to its own host: defaultEndpointToHostAction"',),
    }[settings.endpoint_to_host]
    return {
        "prerouting": Chain(
            (f'iifname {WORKLOADS} fib saddr . iif oif 0 counter drop comment "anti-spoofing"',),
            "type filter hook prerouting priority raw; policy accept;",
        ),
        "forward": Chain(
            (f"iifname {WORKLOADS} jump from-workload", f"oifname {WORKLOADS} jump to-workload"),
            "type filter hook forward priority filter; policy accept;",
        ),
        "input": Chain(
            (f"iifname {WORKLOADS} jump workload-to-host",),
            "type filter hook input priority filter; policy accept;",
        ),
        "postrouting": Chain(
            tuple(_nat_outgoing(settings)), "type nat hook postrouting priority srcnat + 10; policy accept;"
        ),
        "from-workload": Chain(("iifname vmap @from-workload", 'counter drop comment "no endpoint: from interface"')),
        "to-workload": Chain(("oifname vmap @to-workload", 'counter drop comment "no endpoint: to interface"')),
        # First the dispatch, which drops what comes from an unknown interface, be it established or not.
        "workload-to-host": Chain(
            (f"{NEIGHBOUR_DISCOVERY} return", "jump from-workload", "ct state established,related return", *to_host)
        ),
    }


def _nat_outgoing(settings: Settings) -> Iterator[str]:
    for version, family in FAMILY.items():
        target = "masquerade"
        if settings.nat_address is not None and settings.nat_address.version == version:
            target = f"snat {family} to {settings.nat_address}"
        hosts = f" {family} daddr != @hosts{version}" if settings.nat_exclude_hosts else ""
        yield (
            f"{family} saddr @masquerade{version} {family} daddr != @pools{version}{hosts}"
            f' counter {target} comment "natOutgoing"'
        )


def pool_sets(pools: Iterable[Pool], state: DesiredState) -> dict[str, Set]:
    """The networks of the pools (not the load-balancer ones), those to masquerade from, and the nodes' addresses."""
    sets: dict[str, Set] = {}
    every = [pool for pool in pools if not pool.load_balancer_only]
    for version, address in ADDRESS.items():
        spec = f"type {address}; flags interval;"
        mine = [pool for pool in every if pool.net.version == version]
        # A disabled pool gives out no addresses, but the pods that have one of it still need the way out.
        sets[f"masquerade{version}"] = Set(spec, _intervals(pool.net for pool in mine if pool.nat_outgoing))
        sets[f"pools{version}"] = Set(spec, _intervals(pool.net for pool in mine))
        if state.settings.nat_exclude_hosts:
            hosts = frozenset(str(ip) for ip in state.hosts if ip.version == version)
            sets[f"hosts{version}"] = Set(f"type {address};", hosts)
    return sets


def _intervals(nets: Iterable[Net]) -> frozenset[str]:
    """Networks as elements that do not overlap; a /32 or /128 is written as its address."""
    return frozenset(_element(net) for net in collapse(nets))


def _element(net: Net) -> str:
    return str(net.network_address) if net.num_addresses == 1 else str(net)


def member_sets(ref: SetRef, members: frozenset[Member]) -> dict[str, Set]:
    """The two kernel sets, IPv4 and IPv6, of a set of members."""
    sets: dict[str, Set] = {}
    for version, address in ADDRESS.items():
        if isinstance(ref, SelectorSet):
            nets = [net for net in members if not isinstance(net, tuple) and net.version == version]
            if any(net.num_addresses > 1 for net in nets):
                sets[set_name(ref, version)] = Set(f"type {address}; flags interval;", _intervals(nets))
            else:
                sets[set_name(ref, version)] = Set(f"type {address};", frozenset(_element(net) for net in nets))
        else:
            ports = [member for member in members if isinstance(member, tuple) and member[0].version == version]
            elements = frozenset(f"{ip} . {protocol} . {port}" for ip, protocol, port in ports)
            sets[set_name(ref, version)] = Set(f"type {address} . inet_proto . inet_service;", elements)
    return sets


def dispatch_maps(endpoints: Iterable[str]) -> dict[str, Set]:
    """Interface to chain, one map per direction."""
    spec = "type ifname : verdict;"
    names = list(endpoints)
    return {
        "from-workload": Set(spec, frozenset(f'"{name}" : goto fw-{name}' for name in names), is_map=True),
        "to-workload": Set(spec, frozenset(f'"{name}" : goto tw-{name}' for name in names), is_map=True),
    }


def policy_chain(key: PolicyKey, direction: Direction) -> str:
    """The chain of a policy: `pi-np/red/web`. Long names are cut and end in a digest."""
    return fit(f"{'pi' if direction == 'ingress' else 'po'}-{key}", 120)


def policy_chains(policy: Policy, settings: Settings) -> dict[str, Chain]:
    """One chain for each direction that the policy speaks about."""
    return {
        policy_chain(policy.key, direction): Chain(
            tuple(
                line
                for index, rule in enumerate(policy.rules(direction))
                for line in rule_lines(rule, rule_id(policy.key, direction, index), settings.deny, settings.log_prefix)
            )
        )
        for direction in sorted(policy.directions)
    }


def endpoint_chains(endpoint: LocalEndpoint, settings: Settings) -> dict[str, Chain]:
    """`fw-<interface>` (from the pod, its egress policy) and `tw-<interface>` (to the pod, its ingress policy)."""
    name = endpoint.interface
    return {
        f"fw-{name}": Chain(tuple(_endpoint_rules(endpoint, "egress", settings))),
        f"tw-{name}": Chain(tuple(_endpoint_rules(endpoint, "ingress", settings))),
    }


def _endpoint_rules(endpoint: LocalEndpoint, direction: Direction, settings: Settings) -> Iterator[str]:
    deny = denial(settings.deny)
    yield "ct state established,related counter return"
    if settings.drop_invalid:
        yield 'ct state invalid counter drop comment "invalid"'
    yield f"meta mark set meta mark & {CLEAR:#010x}"
    if direction == "egress":
        if not settings.allow_vxlan:
            yield f'udp dport {settings.vxlan_port} counter drop comment "VXLAN from a pod"'
        if not settings.allow_ipip:
            yield 'meta l4proto 4 counter drop comment "IPIP from a pod"'
    for tier in endpoint.policy.tiers(direction):
        yield from _tier_rules(tier, endpoint.interface, direction, deny)
    for _, profile in endpoint.policy.profiles:
        if profile is None:
            break  # what it would have said is unknown: deny
        if profile.rules(direction):
            yield f"meta mark set meta mark & {CLEAR_PASS:#010x}"
            yield f"jump {policy_chain(profile.key, direction)}"
            yield f"meta mark & {ACCEPT:#010x} != 0 return"
    yield f"counter {deny} comment {comment(no_profile_id(endpoint.interface, direction))}"


def _tier_rules(tier: TierPolicies, interface: str, direction: Direction, deny: str) -> Iterator[str]:
    yield f"meta mark set meta mark & {CLEAR_PASS:#010x}"
    for policy in tier.policies:
        yield f"meta mark & {PASS:#010x} == 0 jump {policy_chain(policy.key, direction)}"
        yield f"meta mark & {ACCEPT:#010x} != 0 return"
    if tier.default_action != "Pass":
        identity = comment(end_of_tier_id(tier.name, interface, direction))
        yield f"meta mark & {PASS:#010x} == 0 counter {deny} comment {identity}"


@lru_cache(maxsize=4)
def denial(action: str) -> str:
    """The statement that denies."""
    return "reject" if action == "Reject" else "drop"


def comment(identity: str) -> str:
    """A rule's identity as nft's comment: at most 128 bytes, so long ones end in a digest."""
    return f'"{fit(identity, 120)}"'
