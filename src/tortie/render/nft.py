"""DesiredState to the nftables table: chains, sets and verdict maps.

    prerouting (raw)      pod? ── source address not reachable through its own interface ──► drop
    forward (filter)      from a pod? ─► from-workload ─► @from-workload: goto fw-<if> ──┐ returns: allowed
                          to a pod?   ─► to-workload   ─► @to-workload:   goto tw-<if> ──┤ else dropped there
    input (filter)        from a pod? ─► workload-to-host ─► from-workload, then the endpoint-to-host action
    nat-prerouting, -output   to a floating IP ─► to its pod's own address (see `floating`)
    postrouting (nat)     from a pool that says so, to no pool ─► masquerade

    fw-<if>, tw-<if>      established ► return; invalid ► drop; per tier: policies, end of tier; profiles; drop
    po-<policy>, pi-<..>  the rules of a policy, outbound and inbound: Allow and Pass set a mark and return

An interface that is in no verdict map (a pod whose policy is not known yet) falls through to a drop. There is no chain
per address: a policy's peers are sets. Every rule has a counter, and a comment that leads back to policy and rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from tortie.base.addr import IP, Net, collapse
from tortie.calc.state import DesiredState, LocalEndpoint, Pool, Settings
from tortie.model.workload import INTERFACE_PREFIX
from tortie.policy.rules import (
    Direction,
    Policy,
    PolicyKey,
    SetRef,
    end_of_tier_id,
    no_profile_id,
    rule_id,
)
from tortie.policy.verdict import TierPolicies
from tortie.render.floating import floating_chains, floating_sets, hairpin_rules
from tortie.render.match import (
    ACCEPT,
    CHAIN_NAME,
    CLEAR,
    CLEAR_PASS,
    FAMILY,
    PASS,
    comment,
    denial,
    fit,
    log_prefix,
    rule_lines,
)
from tortie.render.members import ADDRESS, MemberSets, element
from tortie.render.ruleset import Chain, Ruleset, Set

K = TypeVar("K")

WORKLOADS = f'"{INTERFACE_PREFIX}*"'
# ICMPv6 types that a pod may always send to its host: multicast listener discovery (130-132), router solicitation
# (133), neighbour solicitation and advertisement (135, 136). Not router advertisement (134), not redirect (137).
NEIGHBOUR_DISCOVERY = "icmpv6 type { 130, 131, 132, 133, 135, 136 }"


class NftRenderer:
    """Renders states one after the other; what did not change is the very same object as last time."""

    def __init__(self) -> None:
        self._settings = Settings()
        self._policies: dict[PolicyKey, tuple[Policy, Settings, dict[str, Chain]]] = {}
        self._endpoints: dict[str, tuple[LocalEndpoint, Settings, dict[str, Chain]]] = {}
        self._sets: dict[SetRef, MemberSets] = {}
        self._pools: tuple[tuple[object, ...], dict[str, Set]] = ((), {})

    def render(self, state: DesiredState) -> Ruleset:
        settings = self._settings = self._settings if state.settings == self._settings else state.settings
        chains = base_chains(settings)
        sets = dict(self._pool_sets(state))
        for key, policy in state.policies.items():
            cached = self._policies.get(key)
            if cached is None or cached[0] is not policy or cached[1] is not settings:
                cached = self._policies[key] = (policy, settings, policy_chains(policy, settings))
            chains.update(cached[2])
        for name, endpoint in state.endpoints.items():
            known = self._endpoints.get(name)
            if known is None or known[0] is not endpoint or known[1] is not settings:
                known = self._endpoints[name] = (endpoint, settings, endpoint_chains(endpoint, settings))
            chains.update(known[2])
        for ref, members in state.sets.items():
            rendered = self._sets.get(ref)
            if rendered is None:
                rendered = self._sets[ref] = MemberSets(ref)
            rendered.update(members)
            sets.update(rendered.sets)
        sets.update(dispatch_maps(state.endpoints))
        sets.update(floating_sets(state.endpoints.values() if settings.floating_ips else ()))
        _forget(self._policies, state.policies)
        _forget(self._endpoints, state.endpoints)
        _forget(self._sets, state.sets)
        return Ruleset(chains, sets)

    def _pool_sets(self, state: DesiredState) -> dict[str, Set]:
        made_of = state.pools, state.hosts, state.settings.nat_exclude_hosts
        if self._pools[0] != made_of:
            self._pools = made_of, pool_sets(*made_of)
        return self._pools[1]


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
            (*hairpin_rules(), *_nat_outgoing(settings)),
            "type nat hook postrouting priority srcnat + 10; policy accept;",
        ),
        **floating_chains(),
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


def pool_sets(pools: Iterable[Pool], nodes: Iterable[IP], with_nodes: bool) -> dict[str, Set]:
    """The networks of the pools (not the load-balancer ones), those to masquerade from, and the nodes' addresses."""
    sets: dict[str, Set] = {}
    every = [pool for pool in pools if not pool.load_balancer_only]
    for version, address in ADDRESS.items():
        spec = f"type {address}; flags interval;"
        mine = [pool for pool in every if pool.net.version == version]
        # A disabled pool gives out no addresses, but the pods that have one of it still need the way out.
        sets[f"masquerade{version}"] = Set(spec, _intervals(pool.net for pool in mine if pool.nat_outgoing))
        sets[f"pools{version}"] = Set(spec, _intervals(pool.net for pool in mine))
        if with_nodes:
            hosts = frozenset(str(ip) for ip in nodes if ip.version == version)
            sets[f"hosts{version}"] = Set(f"type {address};", hosts)
    return sets


def _intervals(nets: Iterable[Net]) -> frozenset[str]:
    """Networks as elements that do not overlap."""
    return frozenset(map(element, collapse(nets)))


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
    return fit(f"{'pi' if direction == 'ingress' else 'po'}-{key}", plain=CHAIN_NAME)


def policy_chains(policy: Policy, settings: Settings) -> dict[str, Chain]:
    """One chain for each direction that the policy speaks about."""
    prefix = log_prefix(settings.log_prefix, policy)
    return {
        policy_chain(policy.key, direction): Chain(
            tuple(
                line
                for index, rule in enumerate(policy.rules(direction))
                for line in rule_lines(rule, rule_id(policy.key, direction, index), settings.deny, prefix)
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
    yield f"counter {deny} {comment(no_profile_id(endpoint.interface, direction))}"


def _tier_rules(tier: TierPolicies, interface: str, direction: Direction, deny: str) -> Iterator[str]:
    yield f"meta mark set meta mark & {CLEAR_PASS:#010x}"
    for policy in tier.policies:
        yield f"meta mark & {PASS:#010x} == 0 jump {policy_chain(policy.key, direction)}"
        yield f"meta mark & {ACCEPT:#010x} != 0 return"
    if tier.default_action != "Pass":
        identity = comment(end_of_tier_id(tier.name, interface, direction))
        yield f"meta mark & {PASS:#010x} == 0 counter {deny} {identity}"
