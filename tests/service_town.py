"""A lab with services of every kind, for tests: who is behind them, where they are asked, and what they answer."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from typing import Any

from labs import Lab, until
from service_packets import saw, say
from tortie.lab import network
from tortie.model.k8s import Pod
from tortie.model.service import Service

NODES = {4: "172.30.0.1{}", 6: "fd00:172:30::1{}"}
OUTSIDE = {4: "198.51.100.9", 6: "2001:db8:9::9"}
POOLS = {4: ip_network("10.244.0.0/16"), 6: ip_network("fd00:10:244::/56")}
WEB = {"town/web-1", "town/web-2", "town/web-3"}
SOLO = {"town/solo"}
TCP = {"name": "tcp", "port": 80}
UDP = {"name": "udp", "port": 53, "protocol": "UDP"}
BOTH = [TCP, UDP]


def thing(kind: str, name: str, spec: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    api, more = more.pop("api", "v1"), dict(more)
    metadata = {"name": name, "namespace": "town"} | more.pop("metadata", {})
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **({"spec": spec} if spec else {}), **more}


def pod(name: str, node: int, app: str, **spec: Any) -> dict[str, Any]:
    ports = [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}]
    container = {"name": "main", "image": "nginx", "ports": ports} | spec
    return thing("Pod", name, {"nodeName": f"node{node}", "containers": [container]}, metadata={"labels": {"app": app}})


def hosted(name: str, node: int) -> dict[str, Any]:
    """A pod in the network of its node."""
    ports = [{"containerPort": 8181}, {"containerPort": 8153, "protocol": "UDP"}]
    spec = {"nodeName": f"node{node}", "hostNetwork": True, "containers": [{"name": "main", "ports": ports}]}
    return thing("Pod", name, spec, metadata={"labels": {"app": name}})


def service(name: str, app: str = "", ports: list[dict[str, Any]] = BOTH, **spec: Any) -> dict[str, Any]:
    selector = {"selector": {"app": app}} if app else {}
    return thing("Service", name, {"ipFamilyPolicy": "PreferDualStack", "ports": ports} | selector | spec)


def at_ports(tcp: int, udp: int) -> list[dict[str, Any]]:
    return [TCP | {"nodePort": tcp}, UDP | {"nodePort": udp}]


def pool(name: str, cidr: str) -> dict[str, Any]:
    spec = {"cidr": cidr, "blockSize": int(cidr.rpartition("/")[2]), "allowedUses": ["LoadBalancer"]}
    metadata = {"name": name, "annotations": {"tortie.dev/announce": "Layer2"}}
    return {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": metadata, "spec": spec}


NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "town"}}
UNREADY = {"exec": {"command": ["false"]}, "periodSeconds": 1}
TOWN = [
    NAMESPACE,
    pool("balanced4", "172.30.0.192/28"),
    pool("balanced6", "fd00:172:30::1:0/124"),
    *(pod(f"web-{number}", number, "web") for number in (1, 2, 3)),
    pod("solo", 1, "solo"),
    pod("late", 2, "late", readinessProbe=UNREADY),
    pod("client", 1, "client"),
    pod("far", 3, "far"),
    hosted("hosted", 1),
    service("web", "web", at_ports(30080, 30053), type="NodePort", externalIPs=["198.18.0.1", "fd00:198:18::1"]),
    service("balanced", "web", type="LoadBalancer", loadBalancerSourceRanges=["198.51.100.0/24", "2001:db8:9::/64"]),
    service("local", "solo", at_ports(30081, 30054), type="LoadBalancer", externalTrafficPolicy="Local"),
    service(
        "hosted", "hosted", [TCP | {"targetPort": 8181, "nodePort": 30086}, UDP | {"targetPort": 8153}], type="NodePort"
    ),
    service("inside", "solo", internalTrafficPolicy="Local"),
    service("sticky", "web", [TCP | {"nodePort": 30082}], type="NodePort", sessionAffinity="ClientIP"),
    service("near", "web", trafficDistribution="PreferClose"),
    service("headless", "web", clusterIP="None"),
    service("nobody", "nobody", at_ports(30083, 30055), type="NodePort", externalIPs=["198.18.0.2"]),
    service("early", "late", publishNotReadyAddresses=True),
    service("patient", "late"),
]


@contextmanager
def built(name: str) -> Iterator[Lab]:
    """Three nodes, the first one in zone a, the others in zone b. Who is outside finds external addresses at node2."""
    lab = Lab(name)
    try:
        lab.up(3)
        for number, zone in enumerate("abb", 1):
            lab.tortie("label", "nodes", f"node{number}", f"topology.kubernetes.io/zone={zone}")
        for net, version in (("198.18.0.0/24", 4), ("fd00:198:18::/64", 6)):
            words = f"ip -n {lab.directory.read().fabric} route add {net} via {NODES[version].format(2)}"
            subprocess.run(words.split(), check=True)
        lab.apply(*TOWN)
        until(lambda: lab.tortie("get", "pods", "-n", "town").count(" Running ") == 8, 30)
        until(lambda: all(len(vips(lab, name)) == 2 for name in ("balanced", "local")), 30)
        yield lab
    finally:
        network.destroy(lab.directory)
        assert network.leftovers(lab.directory) == []


def address(lab: Lab, name: str, version: int) -> str:
    """The ClusterIP."""
    ips = lab.of(Service, name, "town").spec.cluster_ips
    return next(ip for ip in ips if ip_address(ip).version == version)


def vips(lab: Lab, name: str) -> dict[int, str]:
    """The addresses that a load balancer has for a service."""
    return {ip_address(one.ip).version: one.ip for one in lab.of(Service, name, "town").ingress if one.ip}


def pod_ip(lab: Lab, name: str, version: int) -> str:
    ips = [one.ip for one in lab.of(Pod, name, "town").status.pod_ips]
    return next(ip for ip in ips if ip_address(ip).version == version)


def expect(
    lab: Lab, where: str, to: str, port: int, who: set[str], protocol: str = "tcp", seen: str | None = None
) -> set[str]:
    """A series of questions that exactly these answer, within 30 s; the addresses that they saw."""
    found: list[dict[str, set[str]]] = []

    def so() -> bool:
        found.append(saw(lab, where, to, port, protocol))
        return set(found[-1]) == who

    try:
        until(so, 30)
    except AssertionError as late:
        late.add_note(f"{where} asks {to} at {port}/{protocol}: {found[-1]}")
        raise
    addresses = set[str]().union(*found[-1].values())
    assert seen is None or addresses == {seen}, f"{where} asks {to} at {port}/{protocol}: {found[-1]}"
    return addresses


def explained(lab: Lab, *words: str) -> list[dict[str, Any]]:
    """What `tortie explain` says, which real packets have borne out."""
    found: list[dict[str, Any]] = json.loads(lab.tortie("explain", *words, "--probe", "-o", "json"))
    assert found
    for one in found:
        assert one["probe"]["agrees"], one
        assert one["differences"] == [], one
    return found


def predicted(lab: Lab, *words: str) -> set[str]:
    """The verdicts of `tortie explain`, where packets have been sent already."""
    return {one["verdict"] for one in json.loads(lab.tortie("explain", *words, "-o", "json"))}


def becomes(lab: Lab, what: str, where: str, to: str, port: int, protocol: str = "tcp") -> None:
    """Until this is what a question meets. ICMP errors are rationed, so that the first may be silent."""
    until(lambda: say(lab, where, to, port, protocol) == (what, ""), 30)
