"""From Flannel: both networks side by side, with a pool of their own each, until no pod has an address of Flannel's.

    pod of Flannel ── cni0, flannel.1 (10.244.0.0/16) ──┐
                                                         ├── every node has both ways, and all pods reach one another
    pod of Tortie ─── cali…, vxlan.calico (a new pool) ──┘

The runtime takes the first configuration in its directory: from the moment that ours is there, new pods are Tortie's.
Pods are made anew node by node, when the operator drains. Flannel's network is a disabled pool meanwhile, so that what
goes there keeps its source address.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError, NotFound
from tortie.calc.migrate.evidence import Evidence, addresses, inside
from tortie.calc.migrate.plan import Finding, Migration, NodeRow, PoolRow, Step, count
from tortie.model.k8s import K8sNetworkPolicy, K8sNode

CONFIG_MAPS = ("kube-flannel-cfg", "flannel-migration-config", "canal-config")
DAEMON_SETS = ("kube-flannel-ds", "kube-flannel", "canal")
BACKENDS = {"vxlan": "VXLAN", "host-gw": "None", "udp": "VXLAN", "ipip": "IPIP", "alloc": "None"}
"""Flannel's backends, and what takes their place."""
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
OLD_POOL = "flannel"


def flannel(evidence: Evidence, pool: str = "") -> Migration:
    """The whole plan; `pool` is the new pods' network, or one is chosen. Raises NotFound, ConfigError."""
    config = net_conf(evidence)
    old = _network(config)
    new = _new_pool(pool, old, evidence)
    backend = str(_member(_member(config, "Backend") or {}, "Type") or "udp").lower()
    then = BACKENDS.get(backend, "VXLAN")
    nodes = tuple(_nodes(evidence))
    words = [f"tortie manifest --pool {new} --encapsulation {then} --no-bgp"]
    return Migration(
        source=f"Flannel ({backend})",
        pools=(
            PoolRow(OLD_POOL, str(old), backend, "disabled; deleted at the end"),
            PoolRow("default-ipv4-ippool", str(new), "-", then, 26),
        ),
        nodes=nodes,
        equal=(
            "Services, hostPorts (portmap), the nodes' own network; the nodes' podCIDRs stay, unused",
            f"the MTU of pods: {'50 bytes below the link' if then == 'VXLAN' else 'as the way between nodes allows'}",
        ),
        findings=tuple(_findings(evidence, backend, old, new)),
        manifest=words[0],
        steps=tuple(_steps(words[0], old, nodes, evidence)),
        breaks=(
            "pods: each is made anew once, when its node is drained, with an address of the new pool",
            "between pods of both networks: nothing, once all nodes have Tortie's pod",
        ),
        back=(
            "on every node: tortie uninstall --apply --force; new pods are Flannel's again; drain as before",
            "then tortie uninstall --plan --cluster. Flannel has to be there still: delete it last",
        ),
    )


def net_conf(evidence: Evidence) -> Mapping[str, Any]:
    """Flannel's configuration of the network. Raises NotFound, ConfigError."""
    for name in CONFIG_MAPS:
        text = inside(evidence.installer("ConfigMap", name), "data", "net-conf.json")
        if isinstance(text, str):
            try:
                found = json.loads(text)
            except ValueError as error:
                raise ConfigError(f"is not JSON: {error}", f"ConfigMap {name}", "data[net-conf.json]") from None
            if not isinstance(found, dict):
                raise ConfigError("must be a JSON object", f"ConfigMap {name}", "data[net-conf.json]")
            return found
    ask = "kubectl get configmap -n kube-flannel -o yaml"
    raise NotFound(f"no ConfigMap {CONFIG_MAPS[0]} is among the objects: {ask} has it")


def _member(config: Mapping[str, Any], name: str) -> Any:
    """Flannel reads names in any case."""
    return next((value for key, value in config.items() if key.lower() == name.lower()), None)


def _network(config: Mapping[str, Any]) -> Net:
    text = _member(config, "Network")
    if not isinstance(text, str):
        raise ConfigError("has no Network: only clusters with IPv4 are planned here", "net-conf.json")
    try:
        return parse_net(text)
    except ConfigError as error:
        raise error.within("net-conf.json", "Network") from None


def _new_pool(told: str, old: Net, evidence: Evidence) -> Net:
    taken = [old, *(parse_net(address) for node in evidence.all(K8sNode) for address in addresses(node))]
    if told:
        try:
            new = parse_net(told)
        except ConfigError as error:
            raise error.within("--pool") from None
        if new.version != old.version:
            raise ConfigError(f"{new} is not of IPv{old.version}, as {old} is", "--pool")
        if new.overlaps(old):
            raise ConfigError(f"{new} overlaps Flannel's {old}: both are in use for a while", "--pool")
        return new
    every = [net for wide in PRIVATE for net in parse_net(wide).subnets(new_prefix=16)]
    behind = [net for net in every if int(net.network_address) > int(old.network_address)]
    for net in (*behind, *every):
        if not any(net.version == other.version and net.overlaps(other) for other in taken):
            return net
    raise NotFound("no private /16 is free for the new pool: say one with --pool")


def _nodes(evidence: Evidence) -> Iterator[NodeRow]:
    for node in evidence.all(K8sNode):
        networks = node.pod_cidrs
        own = node.metadata.annotations.get("flannel.alpha.coreos.com/public-ip", "")
        yield NodeRow(node.name, own or ", ".join(addresses(node)[:1]), networks, evidence.pods_on(node.name))


def _findings(evidence: Evidence, backend: str, old: Net, new: Net) -> Iterator[Finding]:
    for policy in evidence.all(K8sNetworkPolicy):
        yield Finding("differs", policy.title, "nobody enforces it under Flannel; from now on it holds for new pods")
    for what, why in evidence.refused:
        yield Finding("stop", what, f"would be refused: {why}")
    if backend in ("wireguard", "ipsec"):
        yield Finding("stop", "net-conf.json: Backend", f"{backend}: traffic between nodes is not encrypted by Tortie")
    elif backend not in BACKENDS:
        yield Finding("stop", "net-conf.json: Backend", f'"{backend}" is not planned here')
    if backend == "host-gw":
        yield Finding("note", "net-conf.json: Backend", "host-gw: all nodes are on one network, and must stay")
    yield Finding("note", "kube-proxy", f"--cluster-cidr {old}: give it {new} as well, or none, or it masquerades")
    if evidence.installer("DaemonSet", *DAEMON_SETS) is None:
        yield Finding("note", "DaemonSet kube-flannel-ds", "is not among the objects: its name is a guess")


def _steps(manifest: str, old: Net, nodes: tuple[NodeRow, ...], evidence: Evidence) -> Iterator[Step]:
    spec = f"spec: {{cidr: {old}, disabled: true}}"
    pool = f"{{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {{name: {OLD_POOL}}}, {spec}}}"
    apply = f"{manifest} -o tortie.yaml && kubectl apply -f tortie.yaml"
    yield Step(
        apply, "running pods notice nothing; new ones are Tortie's", "kubectl delete -n kube-system ds tortie-node"
    )
    yield Step("kubectl -n kube-system rollout status daemonset tortie-node", "from now on all nodes have both ways")
    undo = f"tortie delete ippool {OLD_POOL}"
    yield Step(f"echo '{pool}' | tortie apply -f -", "what goes to pods of Flannel keeps its source address", undo)
    for node in nodes:
        drain = f"kubectl drain {node.name} --ignore-daemonsets --delete-emptydir-data"
        yield Step(drain, count(node.pods, "pod moves", "pods move"), "", node.name)
        yield Step(f"kubectl uncordon {node.name}", "", "", node.name)
    found = evidence.installer("DaemonSet", *DAEMON_SETS)
    name = inside(found, "metadata", "name") or DAEMON_SETS[0]
    namespace = inside(found, "metadata", "namespace") or "kube-flannel"
    yield Step(f"kubectl get pods -A -o wide: none has an address of {old} any more", "go on only then")
    yield Step(f"kubectl -n {namespace} delete daemonset {name}", "nothing")
    there = "rm /etc/cni/net.d/10-flannel.conflist; ip link delete flannel.1; ip link delete cni0; rm -r /run/flannel"
    yield Step(f"on every node: {there}", "nothing")
    yield Step(undo, "nothing")
