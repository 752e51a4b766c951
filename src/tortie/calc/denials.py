"""What the name of a rule that denies says, in words: `np/red/web|ingress|0` is a rule of a policy, and so on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tortie.calc.state import SERVICE_LOOP
from tortie.policy.rules import Policy, PolicyKey

KINDS = {
    "np": "NetworkPolicy",
    "gnp": "GlobalNetworkPolicy",
    "knp": "Kubernetes NetworkPolicy",
    "kcnp": "ClusterNetworkPolicy",
    "profile": "profile",
}
_INVALID = "connection tracking finds the packet invalid"
_NO_PROFILE_ALLOWS = "no profile allows it"
_HOST_ACTION = "pod to its own host: defaultEndpointToHostAction"
_BUILT_IN = {
    "anti-spoofing": ("anti-spoofing: the source address is not the pod's own", "egress"),
    "no endpoint: from interface": ("from an interface without an endpoint", "egress"),
    "no endpoint: to interface": ("to an interface without an endpoint", "ingress"),
    "invalid": (_INVALID, ""),
    "VXLAN from a pod": ("a pod may not send VXLAN", "egress"),
    "IPIP from a pod": ("a pod may not send IPIP", "egress"),
    "VXLAN from no node": ("VXLAN from an address that is no node's", "ingress"),
    "IPIP from no node": ("IPIP from an address that is no node's", "ingress"),
    _HOST_ACTION: (f"a {_HOST_ACTION}", "egress"),
    SERVICE_LOOP: ("to an address of services that no service has", ""),
}
_LIMITS = {"packet-rate": "too many packets in a second", "connections": "too many connections at a time"}
_RULE = re.compile(r"(?P<kind>\w+)/(?:(?P<namespace>[^/|]+)/)?(?P<name>[^/|]+)\|(?P<direction>\w+)\|(?P<index>\d+)")
_END_OF_TIER = re.compile(r"tier/(?P<tier>[^|]+)\|[^|]+\|(?P<direction>\w+)")
_NO_PROFILE = re.compile(r"no-profile\|[^|]+\|(?P<direction>\w+)")
_LIMIT = re.compile(r"qos\|[^|]+\|(?P<direction>\w+)\|(?P<what>[\w-]+)")
_HOST = re.compile(r"hep/(?P<host>[^|]+)\|(?P<kind>\w+)\|(?P<direction>\w+)\|(?:tier/(?P<tier>.+)|(?P<what>.+))")


@dataclass(frozen=True, slots=True)
class Denial:
    """`words` say it all; the other fields are parts of it, "" and None where there is no such part."""

    name: str
    words: str
    direction: str = ""
    tier: str = ""
    policy: str = ""
    index: int | None = None


def denial(name: str, policies: Mapping[PolicyKey, Policy]) -> Denial:
    """`policies` are those that this node has: they know their tiers. A name that says nothing is said as it is."""
    if name in _BUILT_IN:
        return Denial(name, *_BUILT_IN[name])
    if found := _RULE.fullmatch(name):
        return _by_rule(found, policies)
    if found := _END_OF_TIER.fullmatch(name):
        return Denial(name, _end_of(found["tier"]), found["direction"], found["tier"])
    if found := _NO_PROFILE.fullmatch(name):
        return Denial(name, _NO_PROFILE_ALLOWS, found["direction"])
    if found := _LIMIT.fullmatch(name):
        return Denial(name, _LIMITS.get(found["what"], found["what"]), found["direction"])
    if found := _HOST.fullmatch(name):
        said = {None: _end_of(found["tier"]), "invalid": _INVALID, "no-profile": _NO_PROFILE_ALLOWS}
        words = f"host endpoint {found['host']}: {said.get(found['what'], found['what'])}"
        return Denial(name, words, found["direction"], found["tier"] or "")
    return Denial(name, name)


def _end_of(tier: str) -> str:
    return f"end of tier {tier}: no rule allows it"


def _by_rule(found: re.Match[str], policies: Mapping[PolicyKey, Policy]) -> Denial:
    key = PolicyKey(found["kind"], found["namespace"] or "", found["name"])
    policy = policies.get(key)
    tier = policy.tier if policy is not None and key.kind != "profile" else ""
    name = f"{key.namespace}/{key.name}".removeprefix("/")
    words = f"{KINDS.get(key.kind, key.kind)} {name}, rule {found['index']}" + (f", tier {tier}" if tier else "")
    return Denial(found[0], words, found["direction"], tier, str(key), int(found["index"]))
