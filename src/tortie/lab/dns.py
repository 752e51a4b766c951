"""Names in a lab: the cluster's name server, and whom the programs of a pod ask. Pure, but for the machine's own
/etc/resolv.conf where a pod builds upon that.

    Service kube-system/kube-dns   10.96.0.10, fd00:10:96::a   ports 53, UDP and TCP
    Pods coredns-1, coredns-2      `tortie dns` on the first two nodes

    a pod's dnsPolicy, dnsConfig ─► lines ─► a file in the pod's directory, bound over /etc/resolv.conf for its programs

Source: Kubernetes' documentation of dnsPolicy and dnsConfig, resolv.conf(5).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from tortie.lab.agents import command
from tortie.lab.state import LabDirectory
from tortie.lab.topology import Topology
from tortie.model.k8s import Container, ContainerPort, Pod, PodSpec, Probe, TCPSocketAction
from tortie.model.meta import Metadata, Resource, Value
from tortie.model.service import Service, ServicePort, ServiceSpec

NAMESPACE, SERVICE = "kube-system", "kube-dns"
LABELS = {"k8s-app": "kube-dns"}
ADDRESSES = {4: "10.96.0.10", 6: "fd00:10:96::a"}
ZONE = "cluster.local"
PORT = 53
SERVERS = 2
RESOLV_CONF = Path("/etc/resolv.conf")
CLUSTER_FIRST, WITH_HOST_NET, DEFAULT, NONE = "ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"
POLICIES = (CLUSTER_FIRST, WITH_HOST_NET, DEFAULT, NONE)
MOST_SERVERS, MOST_SEARCHES = 3, 32  # of nameserver and search: the C library's, Kubernetes'


# --- the server -------------------------------------------------------------------------------------------------------


def objects(lab: Topology) -> Iterator[Resource]:
    """The Service and the Pods of the cluster's name server."""
    yield _service(sorted({pool.spec.net.version for pool in lab.blueprint.ippools} | _of_flannel(lab)))
    for number, node in enumerate(lab.nodes[:SERVERS], 1):
        yield _pod(f"coredns-{number}", node.name, str(LabDirectory(lab.name).store))


def _of_flannel(lab: Topology) -> set[int]:
    return set() if lab.blueprint.flannel is None else {net.version for net in lab.blueprint.flannel.nets}


def _service(versions: Sequence[int]) -> Service:
    ips = tuple(ADDRESSES[version] for version in versions or (4,))
    families = tuple("IPv4" if version == 4 else "IPv6" for version in versions or (4,))
    spec = ServiceSpec(
        cluster_ip=ips[0],
        cluster_ips=ips,
        ip_families=families,  # type: ignore[arg-type]
        ip_family_policy="PreferDualStack",
        selector=LABELS,
        ports=(
            ServicePort(name="dns", port=PORT, protocol="UDP", target_port=PORT),
            ServicePort(name="dns-tcp", port=PORT, protocol="TCP", target_port=PORT),
        ),
    )
    return Service(metadata=Metadata(name=SERVICE, namespace=NAMESPACE, labels=LABELS), spec=spec)


def _pod(name: str, node: str, datastore: str) -> Pod:
    """Names elsewhere are refused at once: from a lab there is no way to a server that knows them."""
    options = ("--datastore", datastore, "--forward", "none", "--health-port", "0", "--ready-port", "0")
    container = Container(
        name="coredns",
        command=(*command(), "dns", *options, "--metrics-port", "0"),
        ports=(
            ContainerPort(name="dns", container_port=PORT, protocol="UDP"),
            ContainerPort(name="dns-tcp", container_port=PORT, protocol="TCP"),
        ),
        readiness_probe=Probe(tcp_socket=TCPSocketAction(port=PORT), period_seconds=2),
    )
    spec = PodSpec(containers=(container,), node_name=node, dns_policy=DEFAULT)
    return Pod(metadata=Metadata(name=name, namespace=NAMESPACE, labels=LABELS), spec=spec)


# --- who asks it ------------------------------------------------------------------------------------------------------


class Option(Value, frozen=True, kw_only=True):
    name: str = ""
    value: str | None = None


class Config(Value, frozen=True, kw_only=True):
    """A pod's dnsConfig."""

    nameservers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolving:
    """What is in a resolv.conf."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"nameserver {server}" for server in self.servers[:MOST_SERVERS]]
        lines += [f"search {' '.join(self.searches[:MOST_SEARCHES])}"] if self.searches else []
        lines += [f"options {' '.join(self.options)}"] if self.options else []
        return "".join(line + "\n" for line in lines)


def resolving(pod: Pod, ips: Iterable[str], machine: str) -> tuple[Resolving | None, str]:
    """What a pod with these addresses asks, None for what the machine has; and what of its manifest cannot be honoured.
    `machine` is the machine's own resolv.conf."""
    policy, why = _policy(pod)
    config, wrong = _config(pod.spec.dns_config)
    complaint = "; ".join(filter(None, (why, wrong)))
    if policy == DEFAULT:
        return (_with(parse(machine), config) if config != Config() else None), complaint
    if policy == NONE:
        if not config.nameservers:
            complaint = "; ".join(filter(None, (complaint, "dnsPolicy None needs dnsConfig.nameservers")))
        return _with(Resolving(), config), complaint
    versions = {6 if ":" in ip else 4 for ip in ips}
    server = ADDRESSES[6 if versions == {6} else 4]
    own = (f"{pod.namespace}.svc.{ZONE}", f"svc.{ZONE}", ZONE)
    return _with(Resolving((server,), own, ("ndots:5",)), config), complaint


def parse(text: str) -> Resolving:
    """A resolv.conf; the last search line counts."""
    servers: list[str] = []
    searches: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.splitlines():
        word, *rest = line.split() or [""]
        match word:
            case "nameserver" if rest:
                servers.append(rest[0])
            case "search" | "domain":
                searches = tuple(rest)
            case "options":
                options += rest
    return Resolving(tuple(servers), searches, tuple(options))


def _with(base: Resolving, config: Config) -> Resolving:
    """What dnsConfig adds. An option of the same name is replaced."""
    added = {one.name: one.name if one.value is None else f"{one.name}:{one.value}" for one in config.options}
    kept = [option for option in base.options if option.partition(":")[0] not in added]
    return Resolving(
        tuple(dict.fromkeys((*base.servers, *config.nameservers))),
        tuple(dict.fromkeys((*base.searches, *config.searches))),
        (*kept, *filter(None, added.values())),
    )


def _policy(pod: Pod) -> tuple[str, str]:
    """Of a pod, and why it is not the one that it names. With its node's network ClusterFirst is Default."""
    named: Any = pod.spec.dns_policy
    if named is UNSET or named in ("", None):
        named = CLUSTER_FIRST
    why = "" if named in POLICIES else f'dnsPolicy "{named}" is none of {", ".join(POLICIES)}'
    policy = named if not why else CLUSTER_FIRST
    return (DEFAULT if policy == CLUSTER_FIRST and pod.spec.host_network else policy), why


def _config(given: Any | UnsetType) -> tuple[Config, str]:
    if given is UNSET or given is None:
        return Config(), ""
    try:
        return msgspec.convert(given, Config), ""
    except msgspec.ValidationError as error:
        return Config(), f"dnsConfig: {error}"
