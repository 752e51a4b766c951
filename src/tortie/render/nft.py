"""DesiredState to the nftables table: chains, sets and verdict maps.

    prerouting (raw)      pod? ── source that is not the pod's own, nor allowed to it (see `sources`) ──► drop
    rates-forward, -input packets of a pod with a limit (see `limits`) ── too many ──► drop
    forward (filter)      established ─► established: to an unknown pod's interface ──► drop, else on
                          from a pod? ─► from-workload ─► @from-workload: goto fw-<if> ──┐ returns: allowed
                          to a pod?   ─► to-workload   ─► @to-workload:   goto tw-<if> ──┤ else dropped there
    service-loops         to an address of services that none has (see `service_loops`) ──► drop
    input (filter)        from a pod? ─► workload-to-host ─► from-workload, then the endpoint-to-host action
                          of a tunnel? from a node ► accept, else drop (see `tunnels`)
    nat-prerouting, -output   to a floating IP ─► to its pod's own address (see `floating`)
    dscp (mangle)         from a pod that has one, to outside ─► set it (see `limits`)
    postrouting (nat)     from a pool that says so, to no pool ─► masquerade

    fw-<if>, tw-<if>      established ► return; invalid ► drop; too many connections ► reset; per tier: policies, end
                          of tier; profiles; drop
    ro-<row>, ri-<row>    many policies one after the other, those asked that can match such a peer (see `rows`)
    po-<policy>, pi-<..>  the rules of a policy, outbound and inbound: Allow and Pass set a mark and return

An interface that is in no verdict map (a pod whose policy is not known yet) falls through to a drop. There is no chain
per address: a policy's peers are sets. What drops has a counter, and a comment that leads back to policy and rule; it
goes through one of the chains of `denials`.

What is established meets one set on its way through: that it comes from a known interface is known since `prerouting`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import is_
from typing import Any, TypeVar

from tortie.base.addr import IP, Net, collapse
from tortie.calc.hosts import NO_INTERFACES, Interfaces
from tortie.calc.state import DesiredState, LocalEndpoint, Pool, Settings
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
from tortie.render import staged
from tortie.render.denials import DENIED, DROPPED, denial_chains
from tortie.render.established import midway_chains
from tortie.render.floating import floating_chains, floating_sets, hairpin_rules
from tortie.render.hosts import HostRenderer
from tortie.render.limits import connection_chain, limit_chains, limit_hooks, limit_sets
from tortie.render.match import (
    ACCEPT,
    CLEAR,
    CLEAR_PASS,
    FAMILY,
    PASS,
    denial,
    log_statement,
    policy_chain,
    rule_lines,
)
from tortie.render.members import ADDRESS, MemberSets, element
from tortie.render.rows import Rows, row_chain, rows
from tortie.render.ruleset import Chain, Ruleset, Set
from tortie.render.service_loops import loop_chains, loop_sets
from tortie.render.sources import UNKNOWN_FROM, UNKNOWN_TO, WORKLOADS, prefix_sets, source_chain, source_sets
from tortie.render.tunnels import inbound_lines, tunnels, untracked_lines
from tortie.render.workload_peers import workload_peer_rules

K = TypeVar("K")

# ICMPv6 types that a pod may always send to its host: multicast listener discovery (130-132), router solicitation
# (133), neighbour solicitation and advertisement (135, 136). Not router advertisement (134), not redirect (137).
NEIGHBOUR_DISCOVERY = "icmpv6 type { 130, 131, 132, 133, 135, 136 }"


class NftRenderer:
    """Renders states one after the other; what did not change is the very same object as last time."""

    def __init__(self, *, told: bool = True) -> None:
        """`told`: the kernel can tell a log group what is denied."""
        self._told = told
        self._settings = Settings()
        self._policies: dict[PolicyKey, tuple[Policy, Settings, dict[str, Chain]]] = {}
        self._endpoints: dict[str, tuple[LocalEndpoint, Settings, dict[str, Chain]]] = {}
        self._sets: dict[SetRef, MemberSets] = {}
        self._hosts = HostRenderer()
        self._rows = Rows()
        self._pools: tuple[tuple[object, ...], dict[str, Set]] = ((), {})
        self._common: tuple[tuple[object, ...], dict[str, Chain], dict[str, Set]] = ((), {}, {})

    def render(self, state: DesiredState, interfaces: Interfaces = NO_INTERFACES) -> Ruleset:
        """`interfaces` are those of the host; only some host endpoints ask for them (`calc.hosts.asks_interfaces`)."""
        settings = self._settings = self._settings if state.settings == self._settings else state.settings
        common_chains, common_sets = self._common_of(state, settings)
        used = tunnels(state)
        chains = base_chains(settings, workload_peer_rules(state), tuple(inbound_lines(used, settings.vxlan_port)))
        chains |= denial_chains(settings.deny, told=self._told) | common_chains
        chains["prerouting"] = source_chain(common_sets.keys(), untracked_lines(used, settings.vxlan_port))
        sets = self._pool_sets(state, marks="dscp" in chains) | common_sets
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
        host_chains, host_sets = self._hosts.render(state, interfaces)
        chains.update(host_chains)
        sets.update(host_sets)
        chains.update(loop_chains(state))
        sets.update(loop_sets(state))
        row_chains, row_maps = self._rows.render(state.endpoints, state.sets)
        chains.update(row_chains)
        sets.update(row_maps)
        _forget(self._policies, state.policies)
        _forget(self._endpoints, state.endpoints)
        _forget(self._sets, state.sets)
        return Ruleset(chains, sets)

    def _common_of(self, state: DesiredState, settings: Settings) -> tuple[dict[str, Chain], dict[str, Set]]:
        """What is made of all endpoints together."""
        made_of = (settings, *state.endpoints.values())
        known = self._common
        if len(known[0]) != len(made_of) or not all(map(is_, known[0], made_of)):
            endpoints = state.endpoints.values()
            prefixes, limits = prefix_sets(endpoints), limit_sets(endpoints)
            hooks = limit_hooks(limits, endpoints, NEIGHBOUR_DISCOVERY)
            floating = floating_sets(endpoints if settings.floating_ips else ())
            sets = source_sets(state) | prefixes | limits | dispatch_maps(state.endpoints) | floating
            known = self._common = (made_of, hooks, sets)
        return known[1:]

    def _pool_sets(self, state: DesiredState, *, marks: bool) -> dict[str, Set]:
        made_of = state.pools, state.hosts, state.settings.nat_exclude_hosts or marks
        if self._pools[0] != made_of:
            self._pools = made_of, pool_sets(*made_of)
        return self._pools[1]


def _forget(cache: dict[K, Any], live: Mapping[K, Any]) -> None:
    """Drop what is rendered of things that are gone."""
    for key in cache.keys() - live.keys():
        del cache[key]


def base_chains(
    settings: Settings, allowed_to_host: tuple[str, ...] = (), inbound: tuple[str, ...] = ()
) -> dict[str, Chain]:
    """The hooks and the dispatch. Base chains accept by policy: until our rules are there nothing else is touched.
    `allowed_to_host`: what pods may send to their host whatever the settings say; `inbound`: what tunnels may bring."""
    to_host = {
        "Accept": ("counter accept",),
        "Return": (),
        "Drop": (denial("pod to its own host: defaultEndpointToHostAction", DROPPED),),
    }[settings.endpoint_to_host]
    return {
        "forward": Chain(
            (
                "ct state established,related goto established",
                f"iifname {WORKLOADS} jump from-workload",
                f"oifname {WORKLOADS} jump to-workload",
            ),
            "type filter hook forward priority filter; policy accept;",
        ),
        "established": Chain((f"oifname != {WORKLOADS} accept", "oifname @workloads accept", UNKNOWN_TO)),
        "input": Chain(
            (f"iifname {WORKLOADS} jump workload-to-host", *inbound),
            "type filter hook input priority filter; policy accept;",
        ),
        "postrouting": Chain(
            (*hairpin_rules(), *_nat_outgoing(settings)),
            "type nat hook postrouting priority srcnat + 10; policy accept;",
        ),
        **floating_chains(),
        **midway_chains(settings),
        "from-workload": Chain(("iifname vmap @from-workload", UNKNOWN_FROM)),
        "to-workload": Chain(("oifname vmap @to-workload", UNKNOWN_TO)),
        # First the dispatch, which drops what comes from an unknown interface, be it established or not.
        "workload-to-host": Chain(
            (
                f"{NEIGHBOUR_DISCOVERY} return",
                "jump from-workload",
                "ct state established,related return",
                *allowed_to_host,
                *to_host,
            )
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
    """The known interfaces, and interface to chain, one map per direction."""
    spec = "type ifname : verdict;"
    names = list(endpoints)
    return {
        "workloads": Set("type ifname;", frozenset(f'"{name}"' for name in names)),
        "from-workload": Set(spec, frozenset(f'"{name}" : goto fw-{name}' for name in names), is_map=True),
        "to-workload": Set(spec, frozenset(f'"{name}" : goto tw-{name}' for name in names), is_map=True),
    }


def policy_chains(policy: Policy, settings: Settings) -> dict[str, Chain]:
    """One chain for each direction that the policy speaks about."""
    if policy.staged is not None:
        return staged.staged_chains(policy)
    log = log_statement(settings, policy)
    denying = DENIED if policy.hook == "filter" else DROPPED
    return {
        policy_chain(policy.key, direction): Chain(
            tuple(
                line
                for index, rule in enumerate(policy.rules(direction))
                for line in rule_lines(rule, rule_id(policy.key, direction, index), log, denying)
            )
        )
        for direction in sorted(policy.directions)
    }


def endpoint_chains(endpoint: LocalEndpoint, settings: Settings) -> dict[str, Chain]:
    """`fw-<interface>` (from the pod, its egress policy), `tw-<interface>` (to the pod, its ingress policy), limits."""
    name = endpoint.interface
    return {
        **limit_chains(endpoint),
        f"fw-{name}": Chain(tuple(_endpoint_rules(endpoint, "egress", settings))),
        f"tw-{name}": Chain(tuple(_endpoint_rules(endpoint, "ingress", settings))),
    }


def _endpoint_rules(endpoint: LocalEndpoint, direction: Direction, settings: Settings) -> Iterator[str]:
    yield "ct state established,related return"
    if settings.drop_invalid:
        yield f"ct state invalid {denial('invalid', DROPPED)}"
    if endpoint.qos.of(direction).max_connections:
        yield f"jump {connection_chain(endpoint, direction)}"
    yield f"meta mark set meta mark & {CLEAR:#010x}"
    if direction == "egress":
        if not settings.allow_vxlan:
            yield f"udp dport {settings.vxlan_port} {denial('VXLAN from a pod', DROPPED)}"
        if not settings.allow_ipip:
            yield f"meta l4proto 4 {denial('IPIP from a pod', DROPPED)}"
    tiers = staged.tiers_with_staged(endpoint.policy, direction)
    yield from staged.first_rule(tiers)
    for tier in tiers:
        yield from _tier_rules(tier, endpoint.interface, direction)
    for _, profile in endpoint.policy.profiles:
        if profile is None:
            break  # what it would have said is unknown: deny
        if profile.rules(direction):
            yield f"meta mark set meta mark & {CLEAR_PASS:#010x}"
            yield f"jump {policy_chain(profile.key, direction)}"
            yield f"meta mark & {ACCEPT:#010x} != 0 return"
    yield denial(no_profile_id(endpoint.interface, direction))


def _tier_rules(tier: TierPolicies, interface: str, direction: Direction) -> Iterator[str]:
    yield f"meta mark set meta mark & {CLEAR_PASS:#010x}"
    yield from staged.tier_rule(tier)
    for row in rows(tier.policies):
        policy = row[0]
        if policy.staged is not None:
            yield staged.jump(policy, direction)
            continue
        target = row_chain(row, direction) if len(row) > 1 else policy_chain(policy.key, direction)
        yield f"meta mark & {PASS:#010x} == 0 jump {target}"
        yield f"meta mark & {ACCEPT:#010x} != 0 return"
    if tier.default_action != "Pass" and staged.all_staged(tier):
        yield staged.end_rule(tier, interface, direction)
    elif tier.default_action != "Pass":
        yield f"meta mark & {PASS:#010x} == 0 {denial(end_of_tier_id(tier.name, interface, direction))}"
