"""Addresses of services that no service has: what is forwarded to one would go round between us and our router.

    forward, after policy   to a network of service addresses ─► drop, or reject

Such networks are told to the neighbours as a whole (BGPConfiguration's serviceClusterIPs and the like). Who asks for a
service that is there has been sent to a pod before: its packet is not to such an address any more.
Source: Calico's `cali-cidr-block` chain, and FelixConfiguration's serviceLoopPrevention.
"""

from __future__ import annotations

from tortie.base.addr import collapse
from tortie.calc.state import SERVICE_LOOP, DesiredState
from tortie.render.denials import DROPPED
from tortie.render.match import FAMILY, comment, denial
from tortie.render.members import ADDRESS, element
from tortie.render.ruleset import Chain, Set

CHAIN = "service-loops"


def loop_chains(state: DesiredState) -> dict[str, Chain]:
    """Nothing where no such network is told of, or nobody is to be kept from it."""
    versions = _versions(state)
    if not versions:
        return {}
    rejected = state.settings.service_loops == "Reject"
    end = f"counter reject {comment(SERVICE_LOOP)}" if rejected else denial(SERVICE_LOOP, DROPPED)
    rules = tuple(f"{FAMILY[version]} daddr @services{version} {end}" for version in versions)
    return {CHAIN: Chain(rules, "type filter hook forward priority filter + 1; policy accept;")}


def loop_sets(state: DesiredState) -> dict[str, Set]:
    sets: dict[str, Set] = {}
    for version in _versions(state):
        nets = collapse(net for net in state.services if net.version == version)
        sets[f"services{version}"] = Set(f"type {ADDRESS[version]}; flags interval;", frozenset(map(element, nets)))
    return sets


def _versions(state: DesiredState) -> list[int]:
    if state.settings.service_loops == "Disabled":
        return []
    return sorted({net.version for net in state.services})
