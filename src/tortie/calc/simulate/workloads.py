"""The pods of a simulation: one for each Deployment and its like, an endpoint with addresses for every pod.

Addresses are those that the pods would have: those they ask for, or that an exported pod has, else of the cluster's
IPPools where there are some, else private ones, as in a lab. They are private because so is nearly every cluster's pod
network: rules such as "everywhere except 10.0.0.0/8" must find pods where they will be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tortie.base.addr import IP, Net, nth, parse_ip, parse_net
from tortie.base.errors import ConfigError
from tortie.calc.admission import Objects
from tortie.calc.annotations import IP_ADDRS, IP_ADDRS_NO_IPAM, addresses
from tortie.calc.workloads import endpoint_of_pod
from tortie.model.document import convert
from tortie.model.ipam import IPPool
from tortie.model.k8s import K8sNode, Pod
from tortie.model.meta import Metadata, Resource, changed
from tortie.model.node import Node, NodeBGPSpec, NodeSpec
from tortie.model.workload import WorkloadEndpoint, interface_name

R = TypeVar("R", bound=Resource)

TEMPLATES = {
    "Deployment": ("template",),
    "StatefulSet": ("template",),
    "DaemonSet": ("template",),
    "ReplicaSet": ("template",),
    "ReplicationController": ("template",),
    "Job": ("template",),
    "CronJob": ("jobTemplate", "spec", "template"),
}
"""Where, in its spec, a workload keeps what its pods will be."""
_GROUPS = ("apps/", "batch/")

POD_NETS = (parse_net("10.244.0.0/16"), parse_net("fd00:10:244::/56"))
NODE_NETS = (parse_net("172.30.0.0/16"), parse_net("fd00:172:30::/64"))
IMPLIED_NODE = "node1"
"""Where pods run when nobody says where."""


@dataclass(frozen=True, slots=True)
class Given:
    """An object with where it was found: `web.yaml: document 2`, "" for one that comes from no file.

    `workload` is set for a pod that stands for those which a Deployment or its like will have: the kind of that.
    """

    resource: Resource
    source: str = ""
    workload: str = ""

    @property
    def template(self) -> bool:
        return bool(self.workload)


def placed(resource: R) -> R:
    """The object in its namespace, `default` where none is given."""
    return changed(resource, namespace=resource.namespace or "default") if resource.KIND.namespaced else resource


def is_workload(api_version: str, kind: str) -> bool:
    return kind in TEMPLATES and (api_version.startswith(_GROUPS) or kind == "ReplicationController")


def pod_of(document: dict[str, Any], source: str) -> Pod:
    """The pod that stands for those of a workload; it has the workload's name. Raises ConfigError."""
    kind, metadata = document["kind"], document.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    name = metadata.get("name") or str(metadata.get("generateName") or "").rstrip("-")
    where = (source, f"{kind} {metadata.get('namespace') or 'default'}/{name}")
    path, template = "spec", document.get("spec")
    for step in TEMPLATES[kind]:
        path, template = f"{path}.{step}", template.get(step) if isinstance(template, dict) else None
    if not isinstance(template, dict) or not isinstance(template.get("metadata") or {}, dict):
        raise ConfigError("is required", *where, path)
    own = template.get("metadata") or {}
    kept = {key: own[key] for key in ("labels", "annotations") if own.get(key) is not None}
    if metadata.get("ownerReferences"):
        kept["ownerReferences"] = metadata["ownerReferences"]
    body = {"metadata": {"name": name, "namespace": metadata.get("namespace") or "", **kept}}
    try:
        return convert(Pod, {**body, "spec": template.get("spec") or {}})
    except ConfigError as error:
        if not name:
            raise ConfigError("is required", *where, "metadata.name") from None
        raise ConfigError(error.message, *where, ".".join((path, *error.where))) from None


def without_doubles(given: Sequence[Given], there: Objects) -> Iterator[Given]:
    """All but the templates whose pods are there themselves, and those that are made from another template."""
    pods = [one.resource for one in given if isinstance(one.resource, Pod) and not one.template]
    pods += there.all(Pod)
    templates = {(one.resource.namespace, one.workload, one.resource.name) for one in given if one.template}
    names: set[tuple[str, str]] = {(pod.namespace, pod.name) for pod in pods}
    for one in given:
        pod = one.resource
        if not (one.template and isinstance(pod, Pod)):
            yield one
            continue
        owners = ((pod.namespace, owner.kind, owner.name) for owner in pod.metadata.owner_references)
        if any(owner in templates for owner in owners) or any(_is_of(there_is, pod) for there_is in pods):
            continue
        name = pod.name if (pod.namespace, pod.name) not in names else f"{pod.name}-{one.workload.lower()}"
        names.add((pod.namespace, name))
        yield replace(one, resource=changed(pod, name=name))


def _is_of(pod: Pod, template: Pod) -> bool:
    """Whether a pod was made from a template: it has its labels, and a name that begins with the workload's."""
    alike = pod.labels.items() >= template.labels.items() and pod.name.startswith(f"{template.name}-")
    return alike and pod.namespace == template.namespace


class Free:
    """Addresses that nobody has, of networks in their order."""

    def __init__(self, nets: Sequence[Net], taken: Iterable[IP]) -> None:
        self._nets = nets
        self._taken = set(taken)
        self._next = dict.fromkeys(nets, 1)  # the first address of a network is nobody's

    def one_of_each_family(self) -> tuple[IP, ...]:
        """Raises ConfigError when a family that there is has none left."""
        return tuple(self._one(version) for version in (4, 6) if any(net.version == version for net in self._nets))

    def _one(self, version: int) -> IP:
        for net in self._nets:
            while net.version == version and self._next[net] < net.num_addresses - 1:
                ip = nth(net, self._next[net])
                self._next[net] += 1
                if ip not in self._taken:
                    return ip
        full = ", ".join(str(net) for net in self._nets if net.version == version)
        raise ConfigError(f"there are more pods than addresses in {full}: give a larger IPPool")


def nodes(
    given: Iterable[Node],
    kubernetes: Iterable[K8sNode],
    named: Iterable[str],
    known: Mapping[str, Sequence[IP]],
) -> Iterator[Node]:
    """The nodes that are not there as such: those of Kubernetes, those that somebody names, at least one in all.

    `known`: addresses that nodes are said to have.
    """
    there = {node.name for node in given}
    labels = {node.name: node.labels for node in kubernetes}
    wanted = list(dict.fromkeys((*labels, *filter(None, named))))
    if not wanted and not there:
        wanted = [IMPLIED_NODE]
    free = Free(NODE_NETS, (ip for ips in known.values() for ip in ips))
    for name in wanted:
        if name not in there:
            ips = [*known.get(name, ()), *free.one_of_each_family()]
            four, six = (next(ip for ip in ips if ip.version == version) for version in (4, 6))
            bgp = NodeBGPSpec(ipv4_address=f"{four}/16", ipv6_address=f"{six}/64")
            yield Node(metadata=Metadata(name=name, labels=labels.get(name, {})), spec=NodeSpec(bgp=bgp))


def pod_nets(pools: Iterable[IPPool]) -> tuple[Net, ...]:
    """What pods get addresses of when they do not say: the pools, and private networks for a family without any."""
    usual = (pool.spec for pool in pools if not pool.spec.disabled and pool.spec.assignment_mode != "Manual")
    nets = tuple(spec.net for spec in usual if "Workload" in spec.uses)
    return (*nets, *(net for net in POD_NETS if net.version not in {one.version for one in nets}))


def endpoints(
    pods: Iterable[Pod], nets: Sequence[Net], on: Sequence[str], like: Mapping[str, WorkloadEndpoint]
) -> Iterator[WorkloadEndpoint]:
    """The endpoints of pods, which spread over the nodes `on`; known ones stay as they are. Raises ConfigError."""
    every = sorted(pods, key=lambda pod: (pod.namespace, pod.name))
    asked = {(pod.namespace, pod.name): _own(pod) or _known(pod, like, nets) for pod in every}
    free = Free(nets, (ip for ips in asked.values() for ip in ips))
    for i, pod in enumerate(every):
        before = like.get(f"{pod.namespace}/{pod.name}")
        try:
            yield endpoint_of_pod(
                pod,
                node=pod.spec.node_name or (before.spec.node if before is not None else on[i % len(on)]),
                container_id="",
                interface=interface_name(pod.namespace, pod.name),
                mac="",
                ips=asked[pod.namespace, pod.name] or free.one_of_each_family(),
            )
        except ConfigError as error:
            raise error.within(pod.title) from None


def _known(pod: Pod, like: Mapping[str, WorkloadEndpoint], nets: Sequence[Net]) -> tuple[IP, ...]:
    """The addresses that a pod has elsewhere, if it could have them here."""
    endpoint = like.get(f"{pod.namespace}/{pod.name}")
    ips = endpoint.spec.ips if endpoint is not None else ()
    return ips if all(any(ip in net for net in nets) for ip in ips) else ()


def _own(pod: Pod) -> tuple[IP, ...]:
    """The addresses that a pod says it has, or asks for."""
    try:
        status = tuple(parse_ip(entry.ip) for entry in pod.status.pod_ips if entry.ip)
        noted = pod.metadata.annotations
        names = (IP_ADDRS, IP_ADDRS_NO_IPAM)
        return status or next((ips for name in names if (ips := addresses(noted, name))), ())
    except ConfigError as error:
        raise error.within(pod.title) from None
