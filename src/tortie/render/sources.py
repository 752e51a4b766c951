"""Anti-spoofing in nftables: a pod sends from its own addresses, from link-local ones, and from what it may send from.

    prerouting (raw)   not from a pod ► on; from a known interface and an address of its own ► on; ...; drop

It comes before connection tracking, for every packet: nobody joins, or resets, a connection of somebody else's. What
passes besides is what the kernel's reverse-path test lets through on a pod's link, which Calico asks instead: the link
has a route to its link-local network, and a host without an address yet may ask its neighbours for one.

A set of ours in place of the routing table also says who is known: past this chain no packet that can be forwarded has
come from an interface without an endpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache

from tortie.base.addr import IP, Net, collapse
from tortie.calc.state import DesiredState, LocalEndpoint, Settings
from tortie.model.workload import INTERFACE_PREFIX
from tortie.render.denials import DROPPED
from tortie.render.match import FAMILY, denial
from tortie.render.members import ADDRESS, element
from tortie.render.ruleset import Chain, Set

WORKLOADS = f'"{INTERFACE_PREFIX}*"'
UNKNOWN_FROM = denial("no endpoint: from interface", DROPPED)
UNKNOWN_TO = denial("no endpoint: to interface", DROPPED)
_LINK_LOCAL = (
    "ip6 saddr fe80::/64 accept",
    # DHCP, and membership reports before there is an address: 0.0.0.0/8 to those who are on the link.
    "ip saddr 0.0.0.0/8 ip daddr { 255.255.255.255, 224.0.0.0/24 } accept",
    # Duplicate address detection and listener reports.
    "ip6 saddr :: ip6 daddr { fe80::/10, ff02::/16 } meta l4proto 58 accept",
)


def source_chain(prefixes: Collection[str], untracked: Iterable[str] = ()) -> Chain:
    """The hook. `prefixes` names the sets of foreign networks, which only cost a lookup where there are any.

    `untracked` are lines for what comes from elsewhere: a hook of their own would cost every packet more than they do.
    """
    rules = [*untracked, f"iifname != {WORKLOADS} accept"]
    rules += [f"iifname . {family} saddr @sources{version} accept" for version, family in FAMILY.items()]
    rules += _LINK_LOCAL
    rules += [
        f"iifname . {family} saddr @prefixes{version} accept"
        for version, family in FAMILY.items()
        if f"prefixes{version}" in prefixes
    ]
    rules += [f"iifname != @workloads {UNKNOWN_FROM}", denial("anti-spoofing", DROPPED)]
    return Chain(tuple(rules), "type filter hook prerouting priority raw; policy accept;")


def source_sets(state: DesiredState) -> dict[str, Set]:
    """Interface and address, of each endpoint; of two endpoints with one address the first interface has it, as it has
    the route. A floating IP leads to its pod, so it counts as an address of the pod's."""
    owners: dict[IP, str] = {}
    for name in sorted(state.endpoints):
        for ip in _own(state.endpoints[name], state.settings):
            owners.setdefault(ip, name)
    return {
        f"sources{version}": Set(
            f"type ifname . {address};",
            frozenset(_place(name, ip) for ip, name in owners.items() if ip.version == version),
        )
        for version, address in ADDRESS.items()
    }


def prefix_sets(endpoints: Iterable[LocalEndpoint]) -> dict[str, Set]:
    """Interface and foreign network; no set for a family in which nobody may send from one."""
    sets: dict[str, Set] = {}
    pairs = [(one.interface, net) for one in endpoints for net in collapse(one.sources)]
    for version, address in ADDRESS.items():
        elements = frozenset(f'"{name}" . {_span(net)}' for name, net in pairs if net.version == version)
        if elements:
            sets[f"prefixes{version}"] = Set(f"type ifname . {address}; flags interval;", elements)
    return sets


def _own(endpoint: LocalEndpoint, settings: Settings) -> Iterator[IP]:
    yield from endpoint.ips
    if settings.floating_ips:
        yield from (external for external, _ in endpoint.nats)


@lru_cache(maxsize=1 << 12)
def _place(name: str, ip: IP) -> str:
    return f'"{name}" . {ip}'


def _span(net: Net) -> str:
    return element(net) if net.prefixlen else f"{net[0]}-{net[-1]}"
