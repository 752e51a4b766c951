"""A cluster to measure with, made of nothing but its size: the same objects on every machine and in every run.

Each namespace has ten policies, of the kinds in `_KINDS`, and the cluster WIDE global ones, and FEEDS sets of networks.
Node 0 is ours: its pods are in all namespaces, as far as there are enough of them. The first namespace has a CROWD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tortie.model.document import convert
from tortie.model.ipam import BlockAffinity, IPPool
from tortie.model.k8s import K8sNetworkPolicy, Namespace
from tortie.model.meta import Resource
from tortie.model.node import Node
from tortie.model.policy import GlobalNetworkPolicy, GlobalNetworkSet, NetworkPolicy
from tortie.model.workload import WorkloadEndpoint

APPS, TEAMS, WIDE, FEEDS = 10, 10, 20, 4
NETS = 500
"""Networks in a set that some policies look into."""
BLOCK = 16
"""Addresses in a block: a node has several, as pods come and go."""
SPARE = 4_096
"""Addresses in blocks that no pod has at first: for those that come."""
CROWD = 1_000
"""Pods in the first namespace."""
US = "n0"
"""The node that is measured."""


@dataclass(frozen=True, slots=True)
class World:
    """How big it is. Pods are numbered from 0; those that are ours come last."""

    pods: int = 10_000
    local: int = 100
    policies: int = 1_000

    @property
    def namespaces(self) -> int:
        return (self.policies - WIDE) // len(_KINDS)

    @property
    def nodes(self) -> int:
        return max(2, self.pods // 100)

    def resources(self) -> Iterator[Resource]:
        """All of it, in the order in which an agent lists it at its start."""
        yield from (namespace(number) for number in range(self.namespaces))
        yield from (node(number) for number in range(self.nodes))
        yield convert(IPPool, {"metadata": {"name": "four"}, "spec": {"cidr": "10.0.0.0/8", "natOutgoing": True}})
        yield convert(IPPool, {"metadata": {"name": "six"}, "spec": {"cidr": "fd00:10::/64"}})
        yield from (
            affinity for number in range(0, self.pods + SPARE, BLOCK) for affinity in blocks(number, self.host(number))
        )
        yield from (feed(number) for number in range(FEEDS))
        yield from (policy(number, number % self.namespaces) for number in range(self.policies - WIDE))
        yield from (wide_policy(number) for number in range(WIDE))
        yield from (self.pod(number) for number in range(self.pods))

    def pod(self, number: int, app: int | None = None) -> WorkloadEndpoint:
        """One of them; `app` when it is not labelled as it was at first."""
        where = 0 if number < CROWD else 1 + number % (self.namespaces - 1)
        return pod(number, where, self.host(number), app)

    def host(self, number: int) -> int:
        """The node of a pod: those of a block are on one, but for the block where ours begin."""
        ours = self.pods - self.local <= number < self.pods
        return 0 if ours else 1 + number // BLOCK % (self.nodes - 1)

    def local_namespace(self, number: int) -> int:
        """Of one of our pods."""
        return 1 + (self.pods - 1 - number % self.local) % (self.namespaces - 1)


def namespace(number: int, team: int | None = None) -> Namespace:
    labels = {"team": f"t{number % TEAMS if team is None else team}", "kubernetes.io/metadata.name": f"ns{number}"}
    return convert(Namespace, {"metadata": {"name": f"ns{number}", "labels": labels}})


def node(number: int) -> Node:
    bgp = {"ipv4Address": f"192.0.{number >> 8}.{number & 255}/16", "ipv6Address": f"2001:db8::{number:x}/64"}
    return convert(Node, {"metadata": {"name": f"n{number}"}, "spec": {"bgp": bgp}})


def blocks(first: int, host: int) -> Iterator[BlockAffinity]:
    """A node's claims on the block of each family that has the addresses of a pod and of those after it."""
    for version, net in ((4, f"{_ipv4(first)}/28"), (6, f"{_ipv6(first)}/124")):
        spec = {"cidr": net, "node": f"n{host}", "state": "confirmed"}
        yield convert(BlockAffinity, {"metadata": {"name": f"b{version}-{first}"}, "spec": spec})


def _ipv4(number: int) -> str:
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def _ipv6(number: int) -> str:
    return f"fd00:10::{number >> 16:x}:{number & 0xFFFF:x}"


def pod(number: int, where: int, host: int, app: int | None = None) -> WorkloadEndpoint:
    """A pod with addresses of both families, labels and a named port, as Calico writes it for Kubernetes."""
    name, mine = f"ns{where}", f"a{number // 7 % APPS if app is None else app}"
    labels = {
        "app": mine,
        "tier": ("front", "middle", "back")[number % 3],
        "projectcalico.org/namespace": name,
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "default",
    }
    if number % 5 == 0:
        labels["canary"] = "yes"
    spec = {
        "node": f"n{host}",
        "orchestrator": "k8s",
        "pod": f"p{number}",
        "endpoint": "eth0",
        "interfaceName": f"cali{number:011x}",
        "ipNetworks": [f"{_ipv4(number)}/32", f"{_ipv6(number)}/128"],
        "profiles": [f"kns.{name}", f"ksa.{name}.default"],
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    }
    metadata = {"name": f"n{host}-k8s-p{number}-eth0", "namespace": name, "labels": labels}
    return convert(WorkloadEndpoint, {"metadata": metadata, "spec": spec})


def policy(number: int, where: int, port: int = 80, *, of_all: bool = False) -> NetworkPolicy | K8sNetworkPolicy:
    """The policy of this number, in a namespace; `port` is one that it opens. `of_all`: of every pod there."""
    kind, spec = _KINDS[number // 14 % len(_KINDS)](number, port)
    if of_all:
        spec |= {"selector": "all()"} if kind is NetworkPolicy else {"podSelector": {}}
    metadata = {"name": f"p{number}", "namespace": f"ns{where}"}
    return convert(kind, {"metadata": metadata, "spec": spec})


def wide_policy(number: int) -> GlobalNetworkPolicy:
    """About every pod, with a set of a tenth of all of them and one of networks."""
    rules = [
        {"action": "Deny", "source": {"selector": f"feed == 'f{number % FEEDS}'"}},
        {"action": "Allow", "protocol": "TCP", "source": {"selector": f"app == 'a{number % APPS}'"}},
    ]
    spec = {"order": number, "selector": "all()", "types": ["Ingress"], "ingress": rules}
    return convert(GlobalNetworkPolicy, {"metadata": {"name": f"wide{number}"}, "spec": spec})


def feed(number: int) -> GlobalNetworkSet:
    nets = [f"198.{18 + (i >> 10)}.{i >> 2 & 255}.{(i & 3) << 6}/27" for i in range(number * NETS, (number + 1) * NETS)]
    metadata = {"name": f"feed{number}", "labels": {"feed": f"f{number}"}}
    return convert(GlobalNetworkSet, {"metadata": metadata, "spec": {"nets": nets}})


# --- kinds of policies: what each selects, and whom it lets in or out -------------------------------------------------

Kind = tuple[type[NetworkPolicy] | type[K8sNetworkPolicy], dict[str, Any]]


def _calico(selector: str, **fields: Any) -> Kind:
    return NetworkPolicy, {"selector": selector, **fields}


def _allow(port: int, **fields: Any) -> dict[str, Any]:
    return {"action": "Allow", "protocol": "TCP", "destination": {"ports": [port, 443]}, **fields}


def _app(number: int, step: int) -> str:
    return f"a{(number + step) % APPS}"


def _some_apps(number: int, port: int) -> Kind:
    peers = {"selector": f"app in {{'{_app(number, 1)}', '{_app(number, 2)}'}}"}
    named = {"action": "Allow", "protocol": "TCP", "source": peers, "destination": {"ports": ["http", port]}}
    return _calico(f"app == '{_app(number, 0)}'", order=number, types=["Ingress"], ingress=[named])


def _a_team(number: int, port: int) -> Kind:
    peers = {"namespaceSelector": f"team == 't{number % TEAMS}'", "selector": f"app == '{_app(number, 3)}'"}
    return _calico("tier == 'front'", order=number, types=["Ingress"], ingress=[_allow(port, source=peers)])


def _not_the_back(number: int, port: int) -> Kind:
    rules = [_allow(port, source={"selector": "has(canary) && tier != 'back'"}), {"action": "Deny", "protocol": "UDP"}]
    return _calico("has(canary)", order=number, types=["Ingress"], ingress=rules)


def _egress(number: int, port: int) -> Kind:
    out = {"selector": f"app == '{_app(number, 4)}' || tier == 'back'", "ports": [port]}
    rules = [{"action": "Allow", "protocol": "TCP", "destination": out}]
    return _calico("tier in {'middle', 'back'}", order=number, types=["Egress"], egress=rules)


def _networks(number: int, port: int) -> Kind:
    nets = {"nets": [f"172.{16 + number % 16}.0.0/16"], "notNets": [f"172.{16 + number % 16}.{number % 256}.0/24"]}
    return _calico(f"app starts with 'a{number % 3}'", types=["Ingress"], ingress=[_allow(port, source=nets)])


def _either(number: int, port: int) -> Kind:
    peers = {"notSelector": f"app contains '{number % APPS}'"}
    selector = f"(app == '{_app(number, 0)}' || tier == 'back') && !has(canary)"
    return _calico(selector, order=number, types=["Ingress"], ingress=[_allow(port, source=peers)])


def _kubernetes(number: int, port: int) -> Kind:
    peers = [{"podSelector": {"matchLabels": {"app": _app(number, 5)}}}, {"ipBlock": {"cidr": "192.168.0.0/16"}}]
    rule = {"from": peers, "ports": [{"protocol": "TCP", "port": port}]}
    return K8sNetworkPolicy, {"podSelector": {"matchLabels": {"app": _app(number, 0)}}, "ingress": [rule]}


def _kubernetes_everybody(number: int, port: int) -> Kind:
    peers = [{"namespaceSelector": {"matchLabels": {"team": f"t{number % TEAMS}"}}}]
    return K8sNetworkPolicy, {"podSelector": {}, "ingress": [{"from": peers, "ports": [{"port": port}]}]}


def _kubernetes_expressions(number: int, port: int) -> Kind:
    one = {"key": "tier", "operator": "NotIn", "values": ["back"]}
    rule = {"to": [{"podSelector": {"matchExpressions": [one]}}], "ports": [{"port": port}]}
    return K8sNetworkPolicy, {"podSelector": {"matchExpressions": [one]}, "policyTypes": ["Egress"], "egress": [rule]}


_KINDS: tuple[Callable[[int, int], Kind], ...] = (
    _some_apps, _a_team, _not_the_back, _egress, _networks, _either, _kubernetes, _kubernetes_everybody,
    _kubernetes_expressions, _some_apps,
)  # fmt: skip
