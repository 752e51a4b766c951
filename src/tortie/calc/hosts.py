"""Host endpoints: what one brings into the picture, and which interface of its node is whose.

HostEndpoint ─► addresses: what it brings into the sets that match it
HostPolicy of every local one, interfaces ─► resolve ─► interface: HostPolicy, `*`: that of all others
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from tortie.base.addr import IP
from tortie.calc.sets import Addresses
from tortie.calc.settings import regular_expression
from tortie.calc.state import DesiredState
from tortie.model.hostendpoint import EVERY_INTERFACE, HostEndpoint
from tortie.model.policy import protocol_number
from tortie.model.workload import INTERFACE_NAME, INTERFACE_PREFIX
from tortie.policy.verdict import NO_TIERS, HostPolicy

Interfaces = Mapping[str, frozenset[IP]]
"""Of a host, by name, with their addresses."""
NO_INTERFACES: Interfaces = MappingProxyType({})


def host_addresses(endpoint: HostEndpoint) -> Addresses:
    """What it brings into the sets that match it, wherever its node is."""
    ports = ((port.name, protocol_number(port.protocol), port.port) for port in endpoint.spec.ports)
    named = tuple((name, number, port) for name, number, port in ports if number is not None)
    return Addresses(endpoint.spec.ips, (), named)


def resolve(host_endpoints: Mapping[str, HostPolicy], interfaces: Interfaces) -> dict[str, HostPolicy]:
    """Interface to host endpoint, and `*` to that of all other interfaces. Of several the lowest name has it, alone.

    A host endpoint with an interface name has it whether the interface is there or not. That of every interface has no
    policies before connection tracking: Calico does not support them.
    """
    found: dict[str, HostPolicy] = {}
    for name in sorted(host_endpoints):
        host = host_endpoints[name]
        if host.interface == EVERY_INTERFACE:
            found.setdefault(EVERY_INTERFACE, replace(host, untracked=NO_TIERS))
        elif host.interface:
            found.setdefault(host.interface, host)
        else:
            for interface, ips in interfaces.items():
                if not ips.isdisjoint(host.expected_ips) and not interface.startswith(INTERFACE_PREFIX):
                    found.setdefault(interface, host)
    return found


def excluded(names: Iterable[str], interfaces: Iterable[str]) -> frozenset[str]:
    """The interfaces that no host endpoint covers. `names` are FelixConfiguration's interfaceExclude: a plain one
    counts whether there is such an interface or not."""
    found: set[str] = set()
    for name in names:
        regular = regular_expression(name)
        if regular is None:
            found.add(name)
        else:
            found |= {interface for interface in interfaces if re.search(regular, interface)}
    return frozenset(name for name in found if INTERFACE_NAME.match(name))


def covered(state: DesiredState, interfaces: Interfaces) -> dict[str, HostPolicy | None]:
    """Interface to host endpoint, and `*` to that of all others; None for one that no host endpoint covers. Empty when
    there is no host endpoint."""
    found: dict[str, HostPolicy | None] = dict(resolve(state.host_endpoints, interfaces))
    if found:
        found |= dict.fromkeys(excluded(state.settings.interface_exclude, interfaces))
    return found if any(found.values()) else {}


def asks_interfaces(state: DesiredState) -> bool:
    """Whether it takes a look at the host's interfaces to know which host endpoint is whose."""
    hosts = state.host_endpoints.values()
    if any(not host.interface for host in hosts):
        return True
    return bool(hosts) and any(regular_expression(name) is not None for name in state.settings.interface_exclude)


def not_enforced(host_endpoints: Mapping[str, HostPolicy]) -> dict[str, str]:
    """What host endpoints ask for and nobody does, with the reason."""
    problems: dict[str, str] = {}
    for host in host_endpoints.values():
        if host.interface == EVERY_INTERFACE and host.untracked != NO_TIERS:
            tiers = (*host.untracked.ingress, *host.untracked.egress)
            policies = ", ".join(sorted({str(policy.key) for tier in tiers for policy in tier.policies}))
            why = f"{policies} has no effect where interfaceName is *; name the interface"
            problems[f"doNotTrack on HostEndpoint {host.name}"] = why
    return problems
