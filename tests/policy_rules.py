"""Rules and policies at random, of every kind and with every field."""

from __future__ import annotations

import contextlib
from typing import Any

from policy_places import APPS, ICMP_REQUESTS, NAMESPACES, Chance, made
from tortie.base.errors import ConfigError
from tortie.model.clusterpolicy import ClusterNetworkPolicy
from tortie.model.k8s import K8sNetworkPolicy
from tortie.model.meta import Resource
from tortie.model.policy import GlobalNetworkPolicy, NetworkPolicy
from tortie.model.staged import StagedGlobalNetworkPolicy, StagedKubernetesNetworkPolicy, StagedNetworkPolicy

SELECTORS = (
    "app == 'web'", "app != 'web'", "app in {'db', 'client'}", "app not in {'db'}", "has(zone)", "!has(zone)",
    "zone == 'z1' || app == 'db'", "all()", "zone starts with 'z' && !(app == 'web')", "outside == 'yes'",
)  # fmt: skip
SERVICES = ("front", "front", "front", "back")
NAMESPACE_SELECTORS = ("all()", "global()", "team == 'red'", "team != 'red'", "!has(team)")
NETS = {
    4: ("10.244.1.10/32", "10.244.1.10/31", "10.244.1.12/30", "10.244.0.0/16", "198.51.100.0/24", "198.51.100.9/32",
        "198.51.100.64/26", "0.0.0.0/0"),
    6: ("fd00:244::10/128", "fd00:244::10/127", "fd00:244::12/127", "fd00:244::/64", "2001:db8:51::/64",
        "2001:db8:51::9/128", "2001:db8:51::40/122", "::/0"),
}  # fmt: skip
BLOCKS = (
    ("10.244.1.8/29", "10.244.1.10/31"),
    ("fd00:244::/64", "fd00:244::10/127"),
    ("0.0.0.0/0", "198.51.100.64/26"),
    ("2001:db8:51::/64", "2001:db8:51::9/128"),
)
"""Of an ipBlock, each with an exception."""
KUBERNETES_PORTS: tuple[dict[str, Any], ...] = (
    {"port": 80, "endPort": 8080},
    {"port": 53, "protocol": "UDP"},
    {"protocol": "UDP"},
    {"port": "http"},
    {"port": "dns", "protocol": "UDP"},
    {"port": 9090},
    {"protocol": "SCTP", "port": 80},
    {"protocol": "SCTP"},
)
PROTOCOLS: tuple[int | str, ...] = ("TCP", "UDP", "ICMP", "ICMPv6")
"""Of which most rules are; some are of the others."""
OTHER_PROTOCOLS: tuple[int | str, ...] = ("SCTP", "UDPLite", 17, 132, 47)
WITH_PORTS = ("TCP", "UDP", "SCTP", 17, 132)
PORT_ENTRIES: tuple[int | str, ...] = (53, 80, 8080, "80:81", "8000:9999", "http", "dns", "nobody")
SOURCE_PORT_ENTRIES: tuple[int | str, ...] = ("20000:39999", "40000:60000", "1:1023")


def some_entity(rng: Chance, version: int, ports: bool, source: bool) -> dict[str, Any]:
    entity: dict[str, Any] = {}
    if rng.maybe(0.25):
        entity["nets"] = rng.some(NETS[version], 3)
    if rng.maybe(0.15):
        entity["notNets"] = rng.some(NETS[version][:-1], 2)
    if rng.maybe(0.4):
        entity["selector"] = rng.choice(SELECTORS)
    if rng.maybe(0.2):
        entity["notSelector"] = rng.choice(SELECTORS)
    if rng.maybe(0.2):
        entity["namespaceSelector"] = rng.choice(NAMESPACE_SELECTORS)
    if rng.maybe(0.1):
        entity["serviceAccounts"] = rng.choice(
            ({"names": ["robot"]}, {"selector": "rank == 'high'"}, {"names": ["default", "robot"], "selector": "all()"})
        )
    entries = SOURCE_PORT_ENTRIES if source else PORT_ENTRIES
    if ports and rng.maybe(0.2 if source else 0.6):
        entity["ports"] = rng.some(entries, 3)
    if ports and rng.maybe(0.1):
        entity["notPorts"] = rng.some(entries, 2)
    return entity


def some_rule(rng: Chance, peer: str) -> dict[str, Any]:
    """`peer` is the end that is not the endpoint itself: source or destination."""
    rule: dict[str, Any] = {"action": rng.choice(("Allow", "Allow", "Allow", "Deny", "Deny", "Pass", "Pass", "Log"))}
    if rng.maybe(0.1):
        return rule | {peer: {"services": {"name": rng.choice(SERVICES), "namespace": rng.choice(NAMESPACES)}}}
    if rng.maybe(0.6):
        rule["protocol"] = rng.choice(PROTOCOLS if rng.maybe(0.8) else OTHER_PROTOCOLS)
    elif rng.maybe(0.3):
        rule["notProtocol"] = rng.choice((*PROTOCOLS, *OTHER_PROTOCOLS))
    protocol = rule.get("protocol")
    if protocol in ("ICMP", "ICMPv6"):
        version = 4 if protocol == "ICMP" else 6
        for name in ("icmp", "notICMP"):
            if rng.maybe(0.4):
                code = {"code": rng.choice((0, 3))} if rng.maybe(0.5) else {}
                rule[name] = {"type": rng.choice(ICMP_REQUESTS[version]), **code}
    else:
        version = rng.choice((4, 6))
        if rng.maybe(0.1):
            rule["ipVersion"] = version
    ports = protocol in WITH_PORTS
    for end in ("source", "destination"):
        if rng.maybe(0.6):  # a rule that asks much matches little
            rule[end] = some_entity(rng, version, ports, source=end == "source")
    if protocol is None and rng.maybe(0.1):
        rule.setdefault("destination", {})["ports"] = ["http"]
    if rng.maybe(0.03):
        rule[peer] = {"services": {"name": rng.choice(SERVICES), "namespace": rng.choice(NAMESPACES)}}
    return rule


def some_spec(rng: Chance) -> dict[str, Any]:
    return {
        "tier": rng.choice(("first", "second", "default", "default", "ghost", "kube-baseline")),
        "order": rng.choice((None, 1, 2, 2, 1500)),
        "selector": rng.choice((*SELECTORS, "all()", "")),
        "types": rng.some(("Ingress", "Egress"), 2),
        "ingress": [some_rule(rng, "source") for _ in range(rng.randint(0, 3))],
        "egress": [some_rule(rng, "destination") for _ in range(rng.randint(0, 3))],
        **({"serviceAccountSelector": "rank == 'high'"} if rng.maybe(0.1) else {}),
    }


def some_host_spec(rng: Chance) -> dict[str, Any]:
    """Of a global policy that is about hosts, before all about what they forward."""
    spec = some_spec(rng) | {"selector": rng.choice(("has(host)", "all()", "app == 'web'")), "applyOnForward": True}
    match rng.choice(("normal", "forward", "forward", "untracked", "preDNAT")):
        case "normal":
            return spec | {"applyOnForward": False}
        case "untracked":
            return spec | {"doNotTrack": True}
        case "preDNAT":
            return spec | {"preDNAT": True, "types": ["Ingress"], "egress": []}
    return spec


def some_peer(rng: Chance) -> dict[str, Any]:
    if rng.maybe(0.3):
        cidr, inside = rng.choice(BLOCKS)
        return {"ipBlock": {"cidr": cidr, **({"except": [inside]} if rng.maybe(0.5) else {})}}
    peer: dict[str, Any] = {}
    if rng.maybe(0.7):
        operator = rng.choice(("In", "NotIn", "Exists", "DoesNotExist"))
        values = {"values": rng.some(APPS, 2)} if "In" in operator else {}
        peer["podSelector"] = rng.choice(
            (
                {},
                {"matchLabels": {"app": rng.choice(APPS)}},
                {"matchExpressions": [{"key": "app", "operator": operator, **values}]},
            )
        )
    if rng.maybe(0.5) or not peer:
        peer["namespaceSelector"] = rng.choice(({}, {"matchLabels": {"team": "red"}}))
    return peer


def some_kubernetes_rule(rng: Chance, peers: str) -> dict[str, Any]:
    rule: dict[str, Any] = {}
    if rng.maybe(0.8):
        rule[peers] = [some_peer(rng) for _ in range(rng.randint(1, 2))]
    if rng.maybe(0.6):
        rule["ports"] = rng.some(KUBERNETES_PORTS, 3)
    return rule


def some_kubernetes_spec(rng: Chance) -> dict[str, Any]:
    return {
        "podSelector": rng.choice(({}, {"matchLabels": {"app": rng.choice(APPS)}})),
        "policyTypes": rng.some(("Ingress", "Egress"), 2),
        "ingress": [some_kubernetes_rule(rng, "from") for _ in range(rng.randint(0, 2))],
        "egress": [some_kubernetes_rule(rng, "to") for _ in range(rng.randint(0, 2))],
    }


def some_cluster_peer(rng: Chance, name: str) -> dict[str, Any]:
    labels = rng.choice(({}, {"matchLabels": {"team": rng.choice(NAMESPACES)}}))
    ways: list[dict[str, Any]] = [
        {"namespaces": labels},
        {"pods": {"namespaceSelector": labels, "podSelector": {"matchLabels": {"app": rng.choice(APPS)}}}},
    ]
    if name == "to":
        ways.append({"networks": rng.some(NETS[rng.choice((4, 6))], 2)})
    return rng.choice(ways)


def some_cluster_rule(rng: Chance, name: str) -> dict[str, Any]:
    protocols: list[dict[str, Any]] = [
        {"tcp": {"destinationPort": {"number": 80}}},
        {"tcp": {}},
        {"udp": {"destinationPort": {"range": {"start": 53, "end": 90}}}},
        {"sctp": {}},
        {"destinationNamedPort": "http"},
    ]
    return {
        "action": rng.choice(("Accept", "Deny", "Pass")),
        name: [some_cluster_peer(rng, name) for _ in range(rng.randint(1, 2))],
        **({"protocols": rng.some(protocols, 2)} if rng.maybe(0.6) else {}),
    }


def some_cluster_spec(rng: Chance) -> dict[str, Any]:
    return {
        "tier": rng.choice(("Admin", "Baseline")),
        "priority": rng.randint(0, 3),
        "subject": some_cluster_peer(rng, "from"),
        "ingress": [some_cluster_rule(rng, "from") for _ in range(rng.randint(0, 2))],
        "egress": [some_cluster_rule(rng, "to") for _ in range(rng.randint(0, 2))],
    }


STAGED: dict[type[Resource], type[Resource]] = {
    NetworkPolicy: StagedNetworkPolicy,
    GlobalNetworkPolicy: StagedGlobalNetworkPolicy,
    K8sNetworkPolicy: StagedKubernetesNetworkPolicy,
}
KINDS = (*(NetworkPolicy,) * 4, *(GlobalNetworkPolicy,) * 4, K8sNetworkPolicy, K8sNetworkPolicy, ClusterNetworkPolicy)


def some_policy(rng: Chance, name: str, *, hosts: bool = False) -> Resource:
    """Drawn until admission would take it: a rule must not mix IP versions, for instance. `hosts`: there are some."""
    for _ in range(1000):
        about_hosts = hosts and rng.maybe(0.4)
        kind: type[Resource] = GlobalNetworkPolicy if about_hosts else rng.choice(KINDS)
        if about_hosts:
            spec = some_host_spec(rng)
        elif kind is ClusterNetworkPolicy:
            spec = some_cluster_spec(rng)
        elif kind is K8sNetworkPolicy:
            spec = some_kubernetes_spec(rng)
        else:
            spec = some_spec(rng)
        if kind is GlobalNetworkPolicy and not about_hosts and rng.maybe(0.3):
            spec["namespaceSelector"] = rng.choice(NAMESPACE_SELECTORS[:-1])
        if kind in STAGED and rng.maybe(0.1):
            kind = STAGED[kind]
            spec = {"stagedAction": "Delete"} if rng.maybe(0.2) else spec
        with contextlib.suppress(ConfigError):
            return made(kind, name, rng.choice(NAMESPACES) if kind.KIND.namespaced else "", spec=spec)
    raise AssertionError("no policy that admission takes")
