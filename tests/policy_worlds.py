"""Datastores and connections at random, about the world of `policy_places`. The same seed gives the same ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from policy_places import (
    ACCOUNTS,
    GRE,
    ICMP,
    ICMP6,
    ICMP_REQUESTS,
    IPIP,
    NAMESPACES,
    NODE,
    PLACES,
    PODS,
    PORTS,
    SCTP,
    TCP,
    UDP,
    UDPLITE,
    UPLINK,
    VXLAN_PORT,
    Chance,
    Place,
    made,
)
from policy_rules import NETS, SERVICES, some_policy
from tortie.model.hostendpoint import HostEndpoint
from tortie.model.k8s import Namespace, ServiceAccount
from tortie.model.meta import Resource
from tortie.model.node import FelixConfiguration
from tortie.model.policy import GlobalNetworkSet, NetworkSet, Profile, Tier
from tortie.model.service import SERVICE_NAME, EndpointSlice
from tortie.model.workload import WorkloadEndpoint

LOW_PORTS, HIGH_PORTS = itertools.cycle(range(20000, 40000)), itertools.cycle(range(40000, 60000))
"""Every probe has a source port, or ICMP identifier, of its own: what is established already is not asked again."""


@dataclass(frozen=True)
class Probe:
    """The first packet of a new connection. `what` is a destination port, or for ICMP the type."""

    source: str
    destination: str
    version: int
    protocol: int
    what: int
    source_port: int = field(default_factory=lambda: next(LOW_PORTS))
    code: int = 0

    @property
    def is_icmp(self) -> bool:
        return self.protocol in (ICMP, ICMP6)


def endpoint(
    place: Place, namespace: str, account: str = "default", profiles: Iterable[str] = (), **more: Any
) -> Resource:
    labels = {
        **more.get("labels", {}),
        "projectcalico.org/namespace": namespace,
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": account,
    }
    spec = {
        "node": "node",
        "pod": place.name,
        "endpoint": "eth0",
        "interfaceName": place.interface,
        "ipNetworks": [f"{ip}/{ip.max_prefixlen}" for ip in place.ips.values()],
        "profiles": list(profiles) or [f"kns.{namespace}", f"ksa.{namespace}.{account}"],
        "ports": more.get("ports", []),
    }
    return made(WorkloadEndpoint, place.name, namespace, labels, spec=spec)


def some_port(rng: Chance) -> dict[str, Any]:
    """That a pod declares."""
    protocol = rng.choice(("TCP", "TCP", "UDP", "UDP", "SCTP"))
    return {"name": rng.choice(("http", "dns")), "protocol": protocol, "port": rng.choice(PORTS)}


def some_settings(rng: Chance) -> dict[str, Any]:
    """Of a FelixConfiguration."""
    spec: dict[str, Any] = {
        "defaultEndpointToHostAction": rng.choice(("Accept", "Return", "Drop")),
        "nftablesFilterDenyAction": rng.choice(("Drop", "Reject")),
        "allowVXLANPacketsFromWorkloads": rng.maybe(0.5),
        "allowIPIPPacketsFromWorkloads": rng.maybe(0.5),
    }
    for name in ("failsafeInboundHostPorts", "failsafeOutboundHostPorts"):
        if rng.maybe(0.5):
            spec[name] = [some_failsafe(rng) for _ in range(rng.randint(0, 3))]
    return spec


def some_failsafe(rng: Chance) -> dict[str, Any]:
    net = {"net": rng.choice(NETS[rng.choice((4, 6))])} if rng.maybe(0.5) else {}
    return {"protocol": rng.choice(("TCP", "UDP", "SCTP")), "port": rng.choice(PORTS), **net}


def some_pods(rng: Chance) -> Iterator[Resource]:
    for pod in PODS:
        namespace = rng.choice(NAMESPACES)
        ports = [some_port(rng) for _ in range(rng.randint(0, 3))]
        profiles = rng.sample(("own", f"kns.{namespace}", "missing"), 2) if rng.maybe(0.3) else ()
        labels = rng.labels()
        yield endpoint(PLACES[pod], namespace, rng.choice(ACCOUNTS), profiles, labels=labels, ports=ports)


def some_network_sets(rng: Chance) -> Iterator[Resource]:
    for i in range(rng.randint(0, 3)):
        nets = rng.some((*NETS[4], *NETS[6]), 4)
        labels = {"outside": rng.choice(("yes", "no")), **rng.labels()}
        if rng.maybe(0.5):
            yield made(GlobalNetworkSet, f"set{i}", labels=labels, spec={"nets": nets})
        else:
            yield made(NetworkSet, f"set{i}", rng.choice(NAMESPACES), labels, spec={"nets": nets})


def some_slices(rng: Chance) -> Iterator[Resource]:
    """What is behind services."""
    for i in range(rng.randint(0, 4)):
        version = rng.choice((4, 6))
        backends = rng.some((*PODS, "X"), 3)
        body = {
            "addressType": f"IPv{version}",
            "endpoints": [{"addresses": [str(PLACES[name].ips[version])]} for name in backends],
            "ports": [some_port(rng) for _ in range(rng.randint(0, 3))],
        }
        labels = {SERVICE_NAME: rng.choice(SERVICES)}
        yield made(EndpointSlice, f"slice{i}", rng.choice(NAMESPACES), labels, **body)


def some_host_endpoints(rng: Chance) -> Iterator[Resource]:
    own = PLACES[NODE].ips
    ways: tuple[dict[str, Any], ...] = (
        {"interfaceName": UPLINK},
        {"interfaceName": "*"},
        {"expectedIPs": [str(own[4])]},
        {"expectedIPs": [str(own[6])], "interfaceName": "eth7"},
    )
    for i, way in enumerate(rng.some(ways, 2)):
        profiles = rng.sample(("own", "missing", "projectcalico-default-allow"), rng.randint(0, 2))
        ports = [some_port(rng) for _ in range(rng.randint(0, 1))]
        spec = {"node": NODE, "profiles": profiles, "ports": ports, **way}
        yield made(HostEndpoint, f"host{i}", labels={"host": "yes", **rng.labels()}, spec=spec)


def some_resources(rng: Chance) -> Iterator[Resource]:
    """A whole datastore."""
    for name in NAMESPACES:
        yield made(Namespace, name, labels={"team": rng.choice(NAMESPACES)} if rng.maybe(0.8) else {})
        for account in ACCOUNTS:
            yield made(ServiceAccount, account, name, {"rank": rng.choice(("high", "low"))})
    yield from some_pods(rng)
    if rng.maybe(0.4):
        yield made(FelixConfiguration, "default", spec=some_settings(rng))
    for name, order in (("first", 10), ("second", 20)):
        if rng.maybe(0.8):
            yield made(Tier, name, spec={"order": order, "defaultAction": rng.choice(("Deny", "Pass"))})
    yield from some_network_sets(rng)
    yield from some_slices(rng)
    rules = {
        "ingress": [{"action": rng.choice(("Allow", "Pass", "Deny")), "protocol": "TCP"}],
        "egress": [{"action": "Allow"}],
    }
    yield made(Profile, "own", spec={**rules, "labelsToApply": {"zone": "z1"}})
    hosts = list(some_host_endpoints(rng)) if rng.maybe(0.4) else []
    yield from hosts
    for i in range(rng.randint(1, 7)):
        yield some_policy(rng, f"policy{i}", hosts=bool(hosts))


def some_probe(rng: Chance, *, hosts: bool = False, replies: bool = True) -> Probe:
    """At least one end is a pod; with `hosts` the node counts like one, and asks itself, too. Without `replies` it is
    of a kind that nobody answers."""
    every, asked = (*PODS, "X", "Y", NODE), {*PODS, *([NODE] if hosts else [])}
    source, destination = rng.sample(every, 2)
    while not {source, destination} & asked:
        source, destination = rng.sample(every, 2)
    if hosts and rng.maybe(0.05):
        source = destination = NODE
    version, source_port = rng.choice((4, 6)), next(rng.choice((LOW_PORTS, HIGH_PORTS)))
    if replies and rng.maybe(0.25):
        kind = rng.choice(ICMP_REQUESTS[version])
        code = rng.choice((0, 3)) if kind != 13 else 0  # Linux answers a timestamp with code 0, which then is invalid
        return Probe(source, destination, version, ICMP if version == 4 else ICMP6, kind, source_port, code)
    protocol = rng.choice((*([TCP] * 3 if replies else []), UDP, UDP, UDP, SCTP, UDPLITE))
    return Probe(source, destination, version, protocol, rng.choice(PORTS), source_port)


def some_odd_probe(rng: Chance, *, hosts: bool = False) -> Probe:
    """What only the first two are asked about: tunnels of pods, protocols without ports."""
    probe = some_probe(rng, hosts=hosts)
    if rng.maybe(0.9):
        return probe
    protocol = rng.choice((IPIP, UDP, GRE))
    return replace(probe, protocol=protocol, what=VXLAN_PORT if protocol == UDP else 0, code=0)
