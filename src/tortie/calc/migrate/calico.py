"""From Calico: the objects stay where they are, the programs change, a node at a time.

    Calico's nodes ◄── the same tunnels, BGP sessions, blocks, annotations ──► Tortie's nodes

Both kinds of node understand one another, for they read and write the same objects: a pod of one reaches a pod of the
other, and policy holds on both. A node is drained before it changes, because rules that Felix has written are Felix's
to take away, and it is gone by then: a restart of the machine, or the commands here, clear them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tortie.calc.migrate.evidence import Evidence, addresses, environment, inside
from tortie.calc.migrate.plan import Finding, Migration, NodeRow, PoolRow, Step, count
from tortie.calc.unserved import unserved
from tortie.model.bgp import BGPConfiguration
from tortie.model.ipam import BlockAffinity, IPPool
from tortie.model.k8s import K8sNetworkPolicy, K8sNode, Pod
from tortie.model.node import FelixConfiguration
from tortie.model.policy import GlobalNetworkPolicy, NetworkPolicy
from tortie.model.service import Service

LABEL = "tortie.dev/network"
"""Of nodes that have changed."""
NAMESPACE = "kube-system"
KINDS = (NetworkPolicy, GlobalNetworkPolicy, K8sNetworkPolicy)
WIREGUARD = "traffic between nodes is not encrypted by Tortie: take it out first, or encrypt below"


def calico(evidence: Evidence) -> Migration:
    """The whole plan."""
    pools = tuple(_pool(one) for one in evidence.all(IPPool))
    nodes = tuple(_nodes(evidence))
    return Migration(
        source="Calico",
        pools=pools,
        nodes=nodes,
        equal=tuple(_equal(evidence)),
        findings=tuple(_findings(evidence)),
        manifest=_manifest(evidence),
        steps=tuple(_steps(evidence, nodes)),
        breaks=(
            "pods: each is made anew once, when its node is drained; what has replicas on other nodes goes on",
            "pods' addresses: new ones of the same pools; blocks stay with their nodes",
            "between changed and unchanged nodes: nothing; tunnels, routes and sessions are the same",
            "a BGP session of a node: the time of its restart; routers that have graceful restart keep its routes",
        ),
        back=(
            f"a node: kubectl drain NODE; kubectl label node NODE {LABEL}-; on it: tortie uninstall --apply;"
            " kubectl uncordon NODE. Calico's pod comes back by itself, and installs its own plugin",
            "the cluster: all nodes so, then steps 1 and 3 of tortie uninstall --plan --cluster; never 4 and 5, for the"
            " objects are Calico's",
            "Calico's own definitions: kubectl apply -f its manifest, which has its ConfigMap as well",
        ),
    )


def mode(pool: IPPool) -> str:
    """How packets of a pool go between nodes."""
    for name, value in (("IPIP", pool.spec.ipip_mode), ("VXLAN", pool.spec.vxlan_mode)):
        if value in ("Always", "CrossSubnet"):
            return name if value == "Always" else f"{name}CrossSubnet"
    return "None"


def _pool(pool: IPPool) -> PoolRow:
    now = mode(pool) + (", disabled" if pool.spec.disabled else "")
    return PoolRow(pool.name, pool.spec.cidr, now, "the same", pool.spec.blocks)


def _nodes(evidence: Evidence) -> Iterator[NodeRow]:
    blocks: dict[str, list[str]] = {}
    for one in evidence.all(BlockAffinity):
        if one.spec.owns:
            blocks.setdefault(one.spec.node, []).append(one.spec.cidr)
    for node in evidence.all(K8sNode):
        told = node.metadata.annotations.get("projectcalico.org/IPv4Address", "")
        told = told or node.metadata.annotations.get("projectcalico.org/IPv6Address", "")
        address = told or ", ".join(addresses(node)[:1])
        yield NodeRow(node.name, address, tuple(sorted(blocks.get(node.name, ()))), evidence.pods_on(node.name))


def _equal(evidence: Evidence) -> Iterator[str]:
    if pools := evidence.all(IPPool):
        yield f"{count(len(pools), 'pool')}, and all blocks and addresses in them"
    policies = [one for kind in KINDS for one in evidence.all(kind)]
    if policies:
        yield f"{count(len(policies), 'policy', 'policies')}: same order, same meaning, enforced by nftables"
    config = next((one for one in evidence.all(BGPConfiguration) if one.name == "default"), None)
    mesh = config is None or config.spec.node_to_node_mesh_enabled is not False
    if _backend(evidence) == "bird":
        yield f"BGP: {'the mesh of all nodes' if mesh else 'the configured peers'}, AS numbers, filters, communities"
    yield "names of interfaces, tunnels and annotations; CNI types calico and calico-ipam; Felix's metrics"


def _backend(evidence: Evidence) -> str:
    told = inside(evidence.installer("ConfigMap", "calico-config"), "data", "calico_backend")
    return str(told or "bird")


def _findings(evidence: Evidence) -> Iterator[Finding]:
    for what, why in evidence.refused:
        yield Finding("stop", what, f"would be refused: {why}")
    for kind, number in evidence.unknown.items():
        yield Finding("differs", kind, f"{count(number, 'object')} of a kind that nothing here reads")
    for resource in evidence.resources:
        if isinstance(resource, FelixConfiguration):
            yield from _felix(resource)
        if not isinstance(resource, Pod | Service):
            for line in unserved(resource):
                yield Finding("differs", resource.title, line)
    yield from _platform(evidence)


def _felix(config: FelixConfiguration) -> Iterator[Finding]:
    spec = config.spec
    if spec.bpf_enabled is True:
        text = "the eBPF dataplane is not Tortie's: turn it off and let kube-proxy run again first"
        yield Finding("stop", config.title, f"spec.bpfEnabled: {text}")
    for name, value in (
        ("wireguardEnabled", spec.wireguard_enabled),
        ("wireguardEnabledV6", spec.wireguard_enabled_v6),
    ):
        if value:
            yield Finding("stop", config.title, f"spec.{name}: {WIREGUARD}")


def _platform(evidence: Evidence) -> Iterator[Finding]:
    for node in evidence.all(K8sNode):
        if node.labels.get("kubernetes.io/os", "linux") != "linux":
            yield Finding("stop", node.title, "is no Linux machine, and would have no network")
    if evidence.installer("Installation") is not None:
        scale = "kubectl -n tigera-operator scale deployment tigera-operator --replicas 0"
        yield Finding("stop", "Installation", f"the operator would put Calico back: {scale}")
    if evidence.installer("Deployment", "calico-typha") is not None:
        yield Finding("note", "Deployment calico-typha", "Tortie's nodes need none: it goes with Calico's last")
    variables = environment(evidence.installer("DaemonSet", "calico-node"))
    for name in sorted(variables):
        if name.startswith(("FELIX_", "IP", "CALICO_IPV")) and name not in _OF_THE_MANIFEST:
            text = f'is set to "{variables[name]}" in the DaemonSet: set it in tortie-node\'s, too'
            yield Finding("note", f"variable {name}", text)
    yield Finding(
        "note", "CalicoNodeStatus", "until all nodes have changed, those of Calico's nodes are not brought up to date"
    )


_OF_THE_MANIFEST = frozenset((
    "IP", "FELIX_IPINIPMTU", "FELIX_VXLANMTU", "FELIX_WIREGUARDMTU", "FELIX_DEFAULTENDPOINTTOHOSTACTION",
    "FELIX_HEALTHENABLED", "FELIX_IPV6SUPPORT", "CALICO_IPV4POOL_IPIP", "CALICO_IPV4POOL_VXLAN",
    "CALICO_IPV6POOL_VXLAN", "CALICO_IPV4POOL_CIDR",
))  # fmt: skip
"""Variables that the manifest of Tortie has as well."""


def _manifest(evidence: Evidence, selector: str = f"{LABEL}=tortie") -> str:
    """The command that prints an installation like the one that is there, for the nodes with the label."""
    words = ["tortie manifest", *([f"--node-selector {selector}"] if selector else ())]
    if _backend(evidence) == "none":
        words.append("--policy-only")
    elif _backend(evidence) != "bird":
        words.append("--no-bgp")
    modes = {mode(pool) for pool in evidence.all(IPPool) if not pool.spec.disabled}
    if len(modes) == 1 and _backend(evidence) != "none":
        words.append(f"--encapsulation {modes.pop()}")
    data: Mapping[str, object] = inside(evidence.installer("ConfigMap", "calico-config"), "data") or {}
    mtu = str(data.get("veth_mtu", "0"))
    if mtu.isdecimal() and mtu != "0":
        words.append(f"--mtu {mtu}")
    return " ".join(words)


def _steps(evidence: Evidence, nodes: tuple[NodeRow, ...]) -> Iterator[Step]:
    keep = '{"spec":{"template":{"spec":{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":'
    keep += '{"nodeSelectorTerms":[{"matchExpressions":[{"key":"' + LABEL + '","operator":"DoesNotExist"}]}]}}}}}}}'
    kinds = "$(kubectl api-resources --api-group crd.projectcalico.org -o name | paste -sd,)"
    yield Step(f"kubectl get -A -o yaml {kinds} > before.yaml", "a copy of all that is configured, and of IPAM")
    yield Step(f"{_manifest(evidence)} -o tortie.yaml && kubectl apply -f tortie.yaml", "no node has the label yet")
    yield Step(
        f"kubectl -n {NAMESPACE} patch daemonset calico-node --patch '{keep}'",
        "Calico's pods restart one after the other, as in an upgrade; traffic goes on",
    )
    yield Step(
        f"kubectl -n {NAMESPACE} scale deployment calico-kube-controllers --replicas 0",
        "Tortie's controllers do its work from now on",
    )
    for node in nodes:
        yield from _of_a_node(node)
    yield Step(f"{_manifest(evidence, '')} | kubectl apply -f -", "nodes to come have it, too")
    yield Step(f"kubectl -n {NAMESPACE} delete daemonset/calico-node deployment/calico-kube-controllers", "nothing")


CLEAR = (
    "restart it, or there: iptables-save | grep -v cali- | iptables-restore; ip6tables-save | grep -v cali-"
    " | ip6tables-restore; nft delete table ip calico; nft delete table ip6 calico"
)
"""What Felix has written goes, whichever of the two ways it wrote by."""


def _of_a_node(node: NodeRow) -> Iterator[Step]:
    name = node.name
    drain = f"kubectl drain {name} --ignore-daemonsets --delete-emptydir-data"
    yield Step(drain, count(node.pods, "pod moves", "pods move"), f"kubectl uncordon {name}", name)
    label = f"kubectl label node {name} {LABEL}"
    yield Step(f"{label}=tortie", "Calico's pod goes, Tortie's comes", f"{label}-", name)
    yield Step(f"on {name}: {CLEAR}", "rules that Felix has left are cleared", "", name)
    wait = f"kubectl -n {NAMESPACE} wait pod --for condition=Ready -l k8s-app=tortie-node --timeout 120s"
    yield Step(f"{wait} --field-selector spec.nodeName={name}", "", "", name)
    back = f"kubectl cordon {name}"
    yield Step(f"kubectl uncordon {name}", "pods come, with routes and policy as before", back, name)
