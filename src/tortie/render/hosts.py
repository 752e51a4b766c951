"""Host endpoints in nftables: the four classes of their policy, each at its place on a packet's way.

    from outside ─► host-raw-in       untracked  ─► fhut-<if>         Allow: not tracked, and marked as accepted
                    host-mangle-in    preDNAT    ─► fhpd-<if>         Allow: marked as accepted
       to the host: host-input        normal     ─► fh-<if>           unless marked
         to others: host-forward-in   forward    ─► fhfw-<if>         unless marked
                    forward: policy of pods, as always
                    host-forward-out  forward    ─► thfw-<if>
     from the host: host-raw-out      untracked  ─► thut-<if>
                    host-output       normal     ─► th-<if>           unless marked, or translated to elsewhere
                    host-postrouting  normal     ─► th-<if>           what was translated, by its real destination

Each hook is a chain of its own beside those of pods, and is there only while some host endpoint needs it: a node that
has none pays nothing (what tunnels need is in pods' `prerouting` and `input`). An interface finds its chain in a
verdict map; `any-interface-at-all` is that of the host endpoint for all other interfaces. What is established passes
each hook at once. What our table accepts, tables of others may drop: they are asked all the same, so that
`nftablesFilterAllowAction` Accept and Return come to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from tortie.calc.hosts import Interfaces, covered
from tortie.calc.state import DesiredState, Settings
from tortie.model.hostendpoint import EVERY_INTERFACE
from tortie.policy.rules import Direction, Policy, PolicyKey, rule_id
from tortie.policy.verdict import HostClass, HostPolicy, host_id
from tortie.render.denials import DENIED, DROPPED
from tortie.render.failsafes import failsafe_chains, failsafe_jump, failsafe_sets
from tortie.render.match import (
    ACCEPT,
    CHAIN_NAME,
    CLEAR,
    CLEAR_PASS,
    PASS,
    denial,
    fit,
    log_statement,
    policy_chain,
    rule_lines,
)
from tortie.render.ruleset import Chain, Set
from tortie.render.sources import WORKLOADS
from tortie.render.tunnels import (
    Tunnel,
    outbound_lines,
    passing_lines,
    source_chain,
    tunnel_sets,
    tunnels,
    untracked_lines,
)

ANY = "any-interface-at-all"
"""In the place of an interface's name, for the host endpoint of all others."""

_ESTABLISHED = "ct state established,related accept"
_ACCEPTED = f"meta mark & {ACCEPT:#010x} != 0 accept"
_CLEARED = f"meta mark set meta mark & {CLEAR:#010x}"

Covered = Mapping[str, HostPolicy | None]
"""Interface to host endpoint, and `*`; None for an interface that no host endpoint covers."""
ChainName = Callable[[PolicyKey, Direction], str]


@dataclass(frozen=True, slots=True)
class _Station:
    """A class of policy in one direction: the map that leads to its chains, and how their names begin."""

    kind: HostClass
    direction: Direction
    map: str
    prefix: str

    @property
    def word(self) -> str:
        return "iifname" if self.direction == "ingress" else "oifname"

    def chain(self, interface: str) -> str:
        return f"{self.prefix}-{ANY if interface == EVERY_INTERFACE else interface}"

    def decides(self, host: HostPolicy) -> bool:
        """Whether such packets of a host endpoint meet any rule. The host's own traffic always does."""
        return self.kind == "normal" or bool(host.tiers(self.kind, self.direction))


_UNTRACKED_IN = _Station("untracked", "ingress", "from-host-untracked", "fhut")
_UNTRACKED_OUT = _Station("untracked", "egress", "to-host-untracked", "thut")
_PRE_DNAT = _Station("preDNAT", "ingress", "from-host-prednat", "fhpd")
_FORWARD_IN = _Station("forward", "ingress", "from-host-forward", "fhfw")
_FORWARD_OUT = _Station("forward", "egress", "to-host-forward", "thfw")
_IN = _Station("normal", "ingress", "from-host", "fh")
_OUT = _Station("normal", "egress", "to-host", "th")
_STATIONS = (_UNTRACKED_IN, _UNTRACKED_OUT, _PRE_DNAT, _FORWARD_IN, _FORWARD_OUT, _IN, _OUT)
_TRANSLATED = _Station("normal", "egress", "to-host-translated", "thdn")
"""In the place of `_OUT` in postrouting, where the kernel cannot reject."""


class HostRenderer:
    """What is the same as last time is the very same object."""

    def __init__(self) -> None:
        self._made: tuple[object, dict[str, Chain], dict[str, Set]] = (None, {}, {})

    def render(self, state: DesiredState, interfaces: Interfaces) -> tuple[dict[str, Chain], dict[str, Set]]:
        """Chains and sets; none on a node that has neither host endpoints nor pools that travel in tunnels."""
        used = tunnels(state)
        hosts = covered(state, interfaces)
        made_of = hosts, used, used and state.hosts, state.overlay.devices, state.settings
        if self._made[0] != made_of:
            chains = host_chains(hosts, used, state.settings) | source_chain(state.overlay.devices)
            sets = _dispatch_maps(hosts, chains) | tunnel_sets(used, state)
            self._made = made_of, chains, sets | (failsafe_sets(state.settings.failsafes) if hosts else {})
        return self._made[1:]


def host_chains(hosts: Covered, used: Iterable[Tunnel], settings: Settings) -> dict[str, Chain]:
    """All chains of host endpoints, and the hooks that lead there."""
    chains: dict[str, Chain] = {}
    for interface, host in hosts.items():
        for station in _STATIONS:
            if host is not None and station.decides(host):
                chains[station.chain(interface)] = Chain(tuple(_rules(host, station, settings)))
    if settings.deny == "Reject":
        chains |= _translated_chains(hosts, settings)
    if hosts:
        chains |= failsafe_chains(settings.failsafes)
    return chains | _hooks(hosts, tuple(used), settings)


def _dispatch_maps(hosts: Covered, chains: Mapping[str, Chain]) -> dict[str, Set]:
    """Interface to chain. Who has none there is in the map only to be kept from the chain of all others."""
    maps: dict[str, Set] = {}
    for station in (*_STATIONS, _TRANSLATED):
        ways = {name: station.chain(name) for name in hosts if name != EVERY_INTERFACE}
        default = station.chain(EVERY_INTERFACE) in chains
        elements = frozenset(
            f'"{name}" : {f"goto {chain}" if chain in chains else "return"}'
            for name, chain in ways.items()
            if chain in chains or default
        )
        if elements:
            maps[station.map] = Set("type ifname : verdict;", elements, is_map=True)
    return maps


# --- hooks -----------------------------------------------------------------------------------------------------------


def _hooks(hosts: Covered, used: tuple[Tunnel, ...], settings: Settings) -> dict[str, Chain]:
    """The base chains. Those of filter come behind what pods' policy says on the same hook, but for forwarded packets
    that come in."""
    ways = {station: tuple(_dispatch(hosts, station)) for station in (*_STATIONS, _TRANSLATED)}
    marks_in = bool(ways[_UNTRACKED_IN] or ways[_PRE_DNAT])
    accepted_in = (_ACCEPTED,) if marks_in else ()
    accepted_out = (_ACCEPTED,) if ways[_UNTRACKED_OUT] else ()
    port = settings.vxlan_port
    translated = ways[_TRANSLATED if settings.deny == "Reject" else _OUT]
    hooks = {
        "host-raw-in": (
            "prerouting priority raw + 1",
            (_CLEARED, *ways[_UNTRACKED_IN]) if marks_in else (),
        ),
        "host-raw-out": (
            "output priority raw",
            (*([_CLEARED] if accepted_out else []), *untracked_lines(used, port), *ways[_UNTRACKED_OUT]),
        ),
        "host-mangle-in": (
            "prerouting priority mangle",
            ways[_PRE_DNAT] and (_ESTABLISHED, *([_ACCEPTED] if ways[_UNTRACKED_IN] else []), *ways[_PRE_DNAT]),
        ),
        "host-forward-in": (
            "forward priority filter - 2",
            ways[_FORWARD_IN] and (_ESTABLISHED, *accepted_in, *ways[_FORWARD_IN]),
        ),
        "host-forward-out": (
            "forward priority filter + 2",
            ways[_FORWARD_OUT] and (_ESTABLISHED, *ways[_FORWARD_OUT]),
        ),
        "host-input": (
            "input priority filter + 2",
            ways[_IN] and (*passing_lines(used, port), *_unless_workload("iifname", accepted_in, ways[_IN])),
        ),
        "host-output": (
            "output priority filter + 2",
            ways[_OUT]
            and (
                *outbound_lines(used, port),
                "ct status dnat accept",
                *_unless_workload("oifname", accepted_out, ways[_OUT]),
            ),
        ),
        "host-postrouting": (
            "postrouting priority mangle",
            # Only what comes from no interface is the host's own.
            translated and ("iif != 0 accept", *_unless_workload("oifname", (), _if("ct status dnat", translated))),
        ),
    }
    return {
        name: Chain(rules, f"type filter hook {hook}; policy accept;") for name, (hook, rules) in hooks.items() if rules
    }


def _dispatch(hosts: Covered, station: _Station) -> Iterator[str]:
    """What leads packets to their chains; nothing when there are none."""
    specific = any(
        host is not None and station.decides(host) for name, host in hosts.items() if name != EVERY_INTERFACE
    )
    every = hosts.get(EVERY_INTERFACE)
    default = every is not None and station.decides(every)
    if specific or (default and len(hosts) > 1):
        yield f"{station.word} vmap @{station.map}"
    if default:
        yield f"goto {station.chain(EVERY_INTERFACE)}"


def _unless_workload(word: str, accepted: tuple[str, ...], ways: tuple[str, ...]) -> tuple[str, ...]:
    """What is between pods and their own host is no host endpoint's business."""
    return (f"{word} {WORKLOADS} accept", _ESTABLISHED, *accepted, *ways) if ways else ()


def _if(condition: str, lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{condition} {line}" for line in lines)


# --- chains of an endpoint -------------------------------------------------------------------------------------------


def _rules(
    host: HostPolicy, station: _Station, settings: Settings, denying: str = DENIED, name: ChainName = policy_chain
) -> Iterator[str]:
    """`name` gives the chain of a policy, `denying` the one that is denied by."""
    kind, direction = station.kind, station.direction
    decided = kind in ("forward", "normal")

    def denied(what: str, chain: str = DROPPED) -> str:
        return denial(host_id(host.name, kind, direction, what), chain)

    if kind != "untracked" and settings.drop_invalid:
        yield f"ct state invalid {denied('invalid')}"
    if kind != "forward":
        yield failsafe_jump(direction, raw=kind == "untracked")
    yield _CLEARED
    accept = f"meta mark & {ACCEPT:#010x} != 0 {'notrack ' if kind == 'untracked' else ''}return"
    for index, tier in enumerate(host.tiers(kind, direction)):
        if index:
            yield f"meta mark set meta mark & {CLEAR_PASS:#010x}"
        for policy in tier.policies:
            yield f"meta mark & {PASS:#010x} == 0 jump {name(policy.key, direction)}"
            yield accept
        if decided and tier.default_action != "Pass":
            yield f"meta mark & {PASS:#010x} == 0 {denied(f'tier/{tier.name}', denying)}"
    if kind == "normal":
        for _, profile in host.profiles:
            if profile is None:
                break  # what it would have said is unknown: deny
            if profile.rules(direction):
                yield f"jump {name(profile.key, direction)}"
                yield accept
        yield denied("no-profile", denying)


def _translated_chains(hosts: Covered, settings: Settings) -> dict[str, Chain]:
    """Egress policy once more, for the hook where the kernel cannot reject: what is denied is dropped there."""
    chains: dict[str, Chain] = {}
    for interface, host in hosts.items():
        if host is None:
            continue
        lines = tuple(_rules(host, _TRANSLATED, settings, DROPPED, _dropping_chain))
        chains[_TRANSLATED.chain(interface)] = Chain(lines)
        tiers = [policy for tier in host.normal.egress for policy in tier.policies]
        for policy in (*tiers, *(profile for _, profile in host.profiles if profile is not None)):
            chains[_dropping_chain(policy.key, "egress")] = Chain(tuple(_dropping_rules(policy, settings)))
    return chains


def _dropping_chain(key: PolicyKey, direction: Direction) -> str:
    return fit(f"pd-{key}", plain=CHAIN_NAME)


def _dropping_rules(policy: Policy, settings: Settings) -> Iterator[str]:
    log = log_statement(settings, policy)
    for index, rule in enumerate(policy.rules("egress")):
        yield from rule_lines(rule, rule_id(policy.key, "egress", index), log, DROPPED)
