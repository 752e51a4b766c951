"""CNI on a lab's nodes: what each node's container runtime is configured with, and how it runs plugins there.

    with agents       net.d/10-tortie.conflist ─► bin/calico ──socket──► the node's agent
    without           nodes/node1/net.d/10-macvlan.conf ─► plugins/macvlan ─► plugins/host-local
    flannel           nodes/node1/net.d/10-flannel.conflist ─► plugins/flannel ─► plugins/bridge ─► plugins/host-local
    canal             nodes/node1/net.d/10-canal.conflist ─► bin/calico ──socket──► the agent ─► plugins/host-local

Plugins run in the node's network namespace. Those that need no agent keep what they must remember in /var/lib/cni; each
node has one of its own, which is mounted there for the plugin alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tortie.base.addr import parse_net
from tortie.base.errors import Exists, NotFound, NotSupported
from tortie.cni.conflist import ConfList, default_network, load_conflist
from tortie.cni.delegate import find
from tortie.cni.install import PLUGINS, install_plugins
from tortie.cni.result import Result
from tortie.cni.runtime import Runtime
from tortie.cni.spec import CniError, compact_json
from tortie.kernel import features, links, netns, routes
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import RTPROT_STATIC
from tortie.lab.flannel import conflist, conflist_file, net_conf
from tortie.lab.flannel_entry import FlannelEntry
from tortie.lab.networks import networks, ways
from tortie.lab.state import LabDirectory, write_whole
from tortie.lab.topology import Host, Topology

VAR_LIB_CNI = Path("/var/lib/cni")
ETH0 = "eth0"
TUN = Path("/dev/net/tun")
LINK_KINDS = ("dummy", "ipvlan", "macvlan", "vlan", "vrf")
"""Plugins that make links of the kind of their name, which a kernel may lack."""
_SECONDS = 60.0  # for one plugin
# $0 is the node's own directory, the rest is the plugin.
_WITH_OWN_VAR_LIB = f'mkdir -p {VAR_LIB_CNI} && mount --bind "$0" {VAR_LIB_CNI} && exec "$@"'


@dataclass(frozen=True, slots=True)
class NodeCni:
    """A node's network, who runs its plugins, and what is left to do in a pod's namespace after ADD."""

    conflist: ConfList
    runtime: Runtime
    finish: Callable[[str, Result], None]


def node_cni(directory: LabDirectory, lab: Topology, node: Host) -> NodeCni:
    """That of a node of a lab whose files are there. Raises ConfigError, NotFound."""
    entry, flannel = lab.blueprint.cni, lab.blueprint.flannel
    inside = ["nsenter", f"--net={netns.path(node.netns)}"]
    if not lab.blueprint.plugins_alone:
        env = {"TORTIE_AGENT_SOCKET": str(directory.agent_socket(node.name))}
        path = [str(directory.bin), *([str(directory.plugins)] if flannel is not None else [])]
        runtime = Runtime(path, _cache(directory, node), env, inside, timeout=_SECONDS)
        file = directory.conflist if flannel is None else directory.net_d(node.name) / conflist_file(flannel)
        return NodeCni(load_conflist(file), runtime, lambda _, __: None)
    own = ["unshare", "--mount", "sh", "-c", _WITH_OWN_VAR_LIB, str(_var_lib_cni(directory, node))]
    path = [str(_plugins(directory, lab))]
    runtime = Runtime(path, _cache(directory, node), exec_prefix=[*inside, *own], timeout=_SECONDS)
    network = networks(lab)[node.name]
    wanted = network.routed and entry is not None and entry.routes and not network.auto_routes

    def finish(namespace: str, result: Result) -> None:
        if wanted:
            _default_route(namespace, result)

    return NodeCni(default_network(directory.net_d(node.name)), runtime, finish)


def check(lab: Topology) -> None:
    """Raises NotSupported for a kernel without what a node's plugins make, NotFound for plugins that are not there."""
    entry = lab.blueprint.cni
    if lab.blueprint.flannel is not None:
        _check_backend(lab.blueprint.flannel.backend)
    if entry is None:
        return
    types = dict.fromkeys(kind for network in networks(lab).values() for kind in network.types)
    for kind in types:
        _find(kind, entry.plugins)
    for kind in types:
        if kind in LINK_KINDS and not features.has_link_kind(kind):
            raise _lacking(kind)


def _check_backend(backend: str) -> None:
    """Raises NotSupported for a kernel that has no devices of the kind that a backend of flannel's makes."""
    if backend in features.LINK_KINDS and not features.has_link_kind(backend):
        raise _lacking(backend)
    if backend == "udp" and not TUN.exists():
        raise _lacking("tun")


def _lacking(kind: str) -> NotSupported:
    return NotSupported(f'this kernel has no {kind}: load the module "{kind}" (modprobe {kind})')


def prepare(lab: Topology, directory: LabDirectory, netconf: Mapping[str, object] | None = None) -> None:
    """Writes the files of every node's network, and the plugins that need no agent. `netconf` is for labs with one."""
    entry, flannel = lab.blueprint.cni, lab.blueprint.flannel
    if entry is None and flannel is None:
        if not directory.conflist.exists():
            write_whole(directory.conflist, compact_json(conflist_document(netconf)) + "\n")
        return
    if not VAR_LIB_CNI.exists():  # it is mounted upon, and goes again with the lab
        write_whole(directory.made, f"{VAR_LIB_CNI}\n")
        VAR_LIB_CNI.mkdir(parents=True, exist_ok=True)
    for i, node in enumerate(lab.nodes):
        if entry is not None:
            file = entry.files[i if len(entry.files) > 1 else 0]
            write_whole(directory.net_d(node.name) / file.name, file.text)
        _var_lib_cni(directory, node).mkdir(parents=True, exist_ok=True)
    if flannel is not None:
        _write_flannel(lab, directory, flannel, netconf or {})
    if entry is None or not entry.plugins:
        install_plugins(directory.plugins, compiler="", packed=False)  # scripts are made at once


def _write_flannel(
    lab: Topology, directory: LabDirectory, flannel: FlannelEntry, netconf: Mapping[str, object]
) -> None:
    """What flanneld and each node's plugins are told. `netconf` goes into the first plugin's configuration."""
    write_whole(directory.net_conf, net_conf(flannel))
    for node in lab.nodes:
        path = directory.net_d(node.name) / conflist_file(flannel)
        if not path.exists():
            document = conflist(directory, lab, node, _var_lib_cni(directory, node))
            document["plugins"][0] |= netconf
            write_whole(path, json.dumps(document, indent=2) + "\n")


def tell_ways(lab: Topology) -> None:
    """Nodes and router are told where the pods of other nodes are, if those have networks of their own: what their
    operator would type."""
    for node in lab.nodes:
        _tell(node.netns, lab, node.name)
    for router in lab.routers:
        if router.rack:
            _tell(router.netns, lab, "")


def conflist_document(extra: Mapping[str, object] | None = None) -> dict[str, object]:
    """The CNI network of a lab's pods, as an operator would write it. `extra` goes into the plugin's configuration."""
    plugin = {
        "type": "calico",
        "log_level": "info",
        "ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"},
        "policy": {"type": "k8s"},
        "kubernetes": {},
    }
    return {"cniVersion": "1.0.0", "name": "k8s-pod-network", "plugins": [plugin | dict(extra or {})]}


# --- pieces -------------------------------------------------------------------------------------------------------


def _cache(directory: LabDirectory, node: Host) -> Path:
    return directory.node(node.name) / "cni"


def _var_lib_cni(directory: LabDirectory, node: Host) -> Path:
    return directory.node(node.name) / "var-lib-cni"


def _plugins(directory: LabDirectory, lab: Topology) -> Path:
    entry = lab.blueprint.cni
    return Path(entry.plugins) if entry is not None and entry.plugins else directory.plugins


def _find(kind: str, plugins: str) -> None:
    """Raises NotFound for a plugin that is not in the directory `plugins`, or none of this package's."""
    if plugins:
        try:
            find(kind, [plugins])
        except CniError as error:
            raise NotFound(str(error)) from None
    elif kind not in PLUGINS:
        raise NotFound(
            f"{kind} is none of our plugins, {', '.join(PLUGINS)}: name the directory it is in with --plugins"
        )


def _tell(namespace: str, lab: Topology, whose: str) -> None:
    wanted = ways(lab, whose)
    if wanted:
        with Netlink(netns.path(namespace)) as nl:
            for net, via in wanted.items():
                routes.replace_route(nl, routes.Route(net, via=via, protocol=RTPROT_STATIC))


def _default_route(namespace: str, result: Result) -> None:
    """For a pod of ipvlan's l3 that was given none: out of eth0, for there is no ARP that would want a next hop."""
    families = {address.family for address in result.ips}
    given = {route.dst for route in result.routes}
    with Netlink(namespace) as nl:
        index = links.link_index(nl, ETH0)
        for family, everything in (("4", "0.0.0.0/0"), ("6", "::/0")):
            if family in families and everything not in given:
                with suppress(Exists):
                    routes.add_route(nl, routes.Route(parse_net(everything), dev=index))
