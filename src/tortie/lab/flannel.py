"""Labs whose pods flannel connects: what they consist of, and the files that flanneld and its plugin read. Pure.

    net-conf.json ─► flanneld of node1 ─► subnet.env ─► 10-flannel.conflist: plugin flannel, portmap     flannel
    Node (pod CIDR) ─┘        │                    └──► 10-canal.conflist: plugin calico, host-local     canal
                              └─► routes, vxlan device; rules that masquerade

The files are kube-flannel's, but for the places where each node's own lie.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tortie.base.addr import Net
from tortie.base.errors import ConfigError
from tortie.lab.blueprint import Blueprint, NodeEntry, RackEntry, checked
from tortie.lab.defaults import DEFAULT_NODES, DEFAULT_POOL, FLANNEL_BACKENDS
from tortie.lab.flannel_entry import FlannelEntry
from tortie.lab.podspec import first_pod
from tortie.lab.state import LabDirectory
from tortie.lab.topology import Host, Topology, check_count

NETWORK = "cbr0"
"""What kube-flannel calls the pods' network."""
OVERHEAD = {"vxlan": 50, "host-gw": 0, "udp": 28, "ipip": 20, "wireguard": 80}
"""Bytes of a packet that a backend takes for itself, over IPv4."""
OVER_IPV6 = 20
"""As many more its header is longer: vxlan's packets of pods' IPv6 go by the nodes' IPv6."""
ETHERNET_MTU = 1500
_OPTIONS = {"flannel.backend": "--backend", "flannel.network": "--pool", "flannel.network6": "--pool6"}


def blueprint_of(
    backend: str = "", nodes: int | None = None, pool: str = "", pool6: str = "", *, policy: bool = False
) -> Blueprint:
    """A lab of one rack with a pod on each node; IPv6, too, where there is a `pool6`. Raises ConfigError."""
    count = DEFAULT_NODES if nodes is None else nodes
    check_count(count)
    entry = FlannelEntry(
        backend=backend or FLANNEL_BACKENDS[0], network=pool or DEFAULT_POOL, network6=pool6, policy=policy
    )
    about = f"flannel {entry.backend}, {'agents for policy' if policy else 'without agents'}"
    try:
        return checked(
            Blueprint(
                about=about,
                racks=(RackEntry(name="all", nodes=(NodeEntry(count=count),)),),
                manifests=tuple(first_pod(i) for i in range(1, count + 1)),
                flannel=entry,
            )
        )
    except ConfigError as error:
        option = _OPTIONS.get("".join(error.where[:1]))
        raise ConfigError(error.message, *([option] if option else error.where)) from None


def pod_cidrs(lab: Topology, node: Host) -> tuple[Net, ...]:
    """A node's subnets; none in a lab without flannel."""
    entry = lab.blueprint.flannel
    return entry.subnets(lab.nodes.index(node) + 1) if entry is not None else ()


def net_conf(entry: FlannelEntry) -> str:
    """The text of net-conf.json. Our rules are nftables' in any case, and flannel's own are asked to be, too."""
    found: dict[str, Any] = {"Network": entry.network, "EnableNFTables": True}
    if entry.network6:
        found |= {"EnableIPv6": True, "IPv6Network": entry.network6}
    return json.dumps(found | {"Backend": {"Type": entry.backend, **entry.options}}, indent=2) + "\n"


def conflist_file(entry: FlannelEntry) -> str:
    """The name of a node's network in its net.d."""
    return "10-canal.conflist" if entry.policy else "10-flannel.conflist"


def conflist(directory: LabDirectory, lab: Topology, node: Host, var_lib_cni: Path) -> dict[str, Any]:
    """A node's CNI network. `var_lib_cni` is where its plugins remember: canal's addresses, too, which agents ask
    for."""
    entry = lab.blueprint.flannel
    assert entry is not None
    if not entry.policy:
        delegate = {"hairpinMode": True, "isDefaultGateway": True}
        main = {"type": "flannel", "subnetFile": str(directory.subnet_file(node.name)), "delegate": delegate}
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"name": NETWORK, "cniVersion": "1.0.0", "plugins": [main, portmap]}
    words = [("usePodCidr" if net.version == 4 else "usePodCidrIPv6") for net in pod_cidrs(lab, node)]
    ranges = [[{"subnet": word}] for word in words]
    calico = {
        "type": "calico",
        "log_level": "info",
        "mtu": (lab.mtu or ETHERNET_MTU) - _overhead(entry),
        "ipam": {"type": "host-local", "ranges": ranges, "dataDir": str(var_lib_cni / "networks")},
        "policy": {"type": "k8s"},
        "kubernetes": {},
    }
    return {"name": "k8s-pod-network", "cniVersion": "1.0.0", "plugins": [calico]}


def _overhead(entry: FlannelEntry) -> int:
    return OVERHEAD[entry.backend] + (OVER_IPV6 if entry.network6 and entry.backend == "vxlan" else 0)
