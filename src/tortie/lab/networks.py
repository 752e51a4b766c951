"""CNI networks of labs without agents: those that come with the program, one's own, and what their files say.

    node1: 10-macvlan.conf  ─┐                      ┌─► the lab's blueprint: a switch, three nodes, a pod on each
    node2: 10-macvlan.conf  ─┼─► file by file, as ──┤
    node3: 10-macvlan.conf  ─┘   /etc/cni/net.d     └─► NodeNetwork: type, mode, ranges, routes: what can be expected

The files are kept as they were written, to the byte. Pure, but for reading them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import combinations
from pathlib import Path
from typing import Any

from tortie.base.addr import IP, Net, parse_net, within
from tortie.base.errors import ConfigError, suggest
from tortie.cni.conflist import PLUGIN_SUFFIXES, ConfList, load_conflist
from tortie.cni.spec import lookup, read_json
from tortie.lab import flannel
from tortie.lab.blueprint import Blueprint, CniEntry, CniFile, NodeEntry, RackEntry, checked
from tortie.lab.defaults import CANAL, CNI_NETWORKS, DEFAULT_NODES, FLANNEL, OWN_NETWORK
from tortie.lab.podspec import first_pod
from tortie.lab.topology import Topology, check_count

BUILT_IN = Path(__file__).parent / "conf"
LAN = "10.211.55.0/24"
FIRST_ADDRESS = 7
"""Nodes are 10.211.55.7, .8, .9 and on; the gateway is .1."""
PARENTED = ("ipvlan", "macvlan")
"""Plugins whose interfaces are children of the node's, which do not talk with their parent."""
ROUTED_MODES = ("l3", "l3s")
"""Modes of ipvlan in which pods have networks of their own, and no ARP."""


@dataclass(frozen=True, slots=True)
class NodeNetwork:
    """What the files of one node say, as far as a lab goes by it: of the first plugin, which makes the interface.

    `ranges` are first and last address; `default`: pods get a default route of the configuration's own.
    """

    name: str
    type: str
    mode: str = ""
    nets: tuple[Net, ...] = ()
    ranges: tuple[tuple[IP, IP], ...] = ()
    default: bool = False
    host_access: bool = False
    auto_routes: bool = False
    types: tuple[str, ...] = ()

    def __str__(self) -> str:
        """`macvlan bridge, 10.211.55.129 to 10.211.55.139`; without ranges `flannel vxlan, 10.244.1.0/24`."""
        kind = f"{self.type} {self.mode}" if self.mode else self.type
        where = [f"{first} to {last}" for first, last in self.ranges] or map(str, self.nets)
        return ", ".join((kind, *where))

    @property
    def routed(self) -> bool:
        """Whether its pods have neither ARP nor, of the plugin alone, a way out of their subnet."""
        return self.type == "ipvlan" and self.mode in ROUTED_MODES


# --- the lab of a network -----------------------------------------------------------------------------------------


def blueprint_of(
    network: str, nodes: int | None = None, files: Sequence[Path] = (), plugins: str = "", routes: bool = True
) -> Blueprint:
    """A lab on a built-in network, or on one's own `files`: one for all nodes, or one for each.

    Raises ConfigError for a network that is not there, and for files that are no network's or do not fit together.
    """
    if network in (FLANNEL, CANAL):
        raise ConfigError(f"{network} is brought up by tortie lab up --cni {network}, and has no tour", "--cni")
    if network not in CNI_NETWORKS:
        raise ConfigError(
            f'"{network}" is no network of a lab, {suggest(network, (*CNI_NETWORKS, FLANNEL, CANAL))}', "--cni"
        )
    found = [_read(path) for path in files] if files else _built_in(network)
    if files:
        count = nodes if nodes is not None else (len(found) if len(found) > 1 else DEFAULT_NODES)
    else:
        count = len(found) if nodes is None else nodes
        if count > len(found):
            raise ConfigError(f"{network} has files for {len(found)} nodes; give --netconf for others", "--nodes")
        found = found[:count] or found
    check_count(count)
    if len(found) not in (1, count):
        raise ConfigError(f"{len(found)} files for {count} nodes: one for all of them, or one for each", "--netconf")
    networks = [network_of(file) for file in found]
    _check_apart(networks if len(networks) > 1 else networks * count)
    agents = any(one.auto_routes for one in networks)
    return checked(
        Blueprint(
            about=f"{networks[0].type} on one LAN, {'with' if agents else 'without'} agents",
            mesh=agents,
            racks=(_lan(count),),
            manifests=tuple(first_pod(i) for i in range(1, count + 1)),
            cni=CniEntry(files=tuple(found), plugins=plugins, routes=routes, agents=agents),
        )
    )


def _lan(count: int) -> RackEntry:
    return RackEntry(name="lan", subnet=LAN, first_address=FIRST_ADDRESS, nodes=(NodeEntry(count=count),))


def _built_in(network: str) -> list[CniFile]:
    if network == OWN_NETWORK:
        raise ConfigError(f"{OWN_NETWORK} wants your files: --netconf FILE, once, or once for each node", "--cni")
    texts = [path.read_text(encoding="utf-8") for path in sorted((BUILT_IN / network).glob("*.conf"))]
    return [CniFile(name=f"10-{lookup(read_json(text.encode()), 'type', '')}.conf", text=text) for text in texts]


def _read(path: Path) -> CniFile:
    if path.suffix not in (*PLUGIN_SUFFIXES, ".conflist"):
        raise ConfigError(f"{path} is named neither .conf nor .json nor .conflist", "--netconf")
    try:
        return CniFile(name=path.name, text=path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}", "--netconf") from None


def _check_apart(networks: Sequence[NodeNetwork]) -> None:
    """On one LAN no two nodes may give the same address. Raises ConfigError."""
    lan = parse_net(LAN)
    every = [(i, *pair) for i, one in enumerate(networks, 1) for pair in one.ranges if pair[0] in lan]
    for (one, first, last), (other, start, end) in combinations(every, 2):
        if one != other and first.version == start.version and int(first) <= int(end) and int(start) <= int(last):
            both = f"{max(first, start, key=int)} to {min(last, end, key=int)}"
            raise ConfigError(f"node{one} and node{other} would both give {both} to their pods", "--netconf")


# --- what files say -----------------------------------------------------------------------------------------------


def networks(lab: Topology) -> dict[str, NodeNetwork]:
    """Of every node its network; nothing of a lab whose agents know all of it. Raises ConfigError."""
    if lab.blueprint.flannel is not None:
        return {
            node.name: _of_flannel(lab.blueprint.flannel.backend, flannel.pod_cidrs(lab, node)) for node in lab.nodes
        }
    entry = lab.blueprint.cni
    if entry is None:
        return {}
    found = [network_of(file) for file in entry.files]
    return {node.name: found[i if len(found) > 1 else 0] for i, node in enumerate(lab.nodes)}


def _of_flannel(backend: str, nets: tuple[Net, ...]) -> NodeNetwork:
    return NodeNetwork(name=flannel.NETWORK, type=FLANNEL, mode=backend, nets=nets, default=True)


def network_of(file: CniFile) -> NodeNetwork:
    """Raises ConfigError naming the file."""
    try:
        conflist = _conflist(file)
        main = conflist.plugins[0]
        ipam = _mapping(lookup(main, "ipam", {}))
        nets, ranges = _addresses(ipam)
        kind = str(lookup(main, "type", ""))
        modes = {"ipvlan": "l2", "macvlan": "bridge"}
        return NodeNetwork(
            name=conflist.name,
            type=kind,
            mode=str(lookup(main, "mode", "") or modes[kind]) if kind in modes else "",
            nets=nets,
            ranges=ranges,
            default=_has_default(main, ipam),
            host_access=lookup(main, "hostAccess", "") == "sibling",
            auto_routes=lookup(main, "autoRoutes", False) not in (False, None, "", "none"),
            types=tuple(str(lookup(plugin, "type", "")) for plugin in conflist.plugins) + _delegated(conflist),
        )
    except ConfigError as error:
        raise error.within(file.name) from None


def _conflist(file: CniFile) -> ConfList:
    """Raises ConfigError."""
    try:
        doc = read_json(file.text.encode())
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(doc, dict):
        raise ConfigError("must be a JSON object")
    if file.name.endswith(PLUGIN_SUFFIXES):
        version, name = lookup(doc, "cniVersion", ""), lookup(doc, "name", "")
        doc = {"name": name, "cniVersion": version, "plugins": [doc]}
    return load_conflist(doc)


def _delegated(conflist: ConfList) -> tuple[str, ...]:
    """The IPAM plugins that are called, too."""
    kinds = (lookup(_mapping(lookup(plugin, "ipam", {})), "type", "") for plugin in conflist.plugins)
    return tuple(str(kind) for kind in kinds if kind)


def _has_default(main: Mapping[str, Any], ipam: Mapping[str, Any]) -> bool:
    """Whether pods get a default route of IPAM or of the main plugin."""
    routes = _listed(lookup(ipam, "routes", []), "ipam.routes")
    own = any(str(lookup(_mapping(route), "dst", "")) in ("0.0.0.0/0", "::/0") for route in routes)
    return own or lookup(main, "isDefaultGateway", False) is True or lookup(main, "defaultRoute", "") == "auto"


def _addresses(ipam: Mapping[str, Any]) -> tuple[tuple[Net, ...], tuple[tuple[IP, IP], ...]]:
    """The subnets that host-local takes from, and the ranges of them. Raises ConfigError."""
    if lookup(ipam, "type", "") != "host-local":
        return (), ()
    sets = [[ipam]] if lookup(ipam, "subnet", "") else []
    listed = _listed(lookup(ipam, "ranges", []), "ipam.ranges")
    sets += [_listed(one, f"ipam.ranges[{i}]") for i, one in enumerate(listed)]
    nets, ranges = [], []
    for one in (_mapping(entry) for entries in sets for entry in entries):
        net = parse_net(str(lookup(one, "subnet", "")))
        if net.num_addresses < 4:
            raise ConfigError(f"{net} is too small to allocate from", "ipam")
        last = net[-2] if net.version == 4 else net[-1]
        ends = [lookup(one, key, "") for key in ("rangeStart", "rangeEnd")]
        try:
            start, end = (ip_address(said) if said else usual for said, usual in zip(ends, (net[1], last), strict=True))
        except ValueError as error:
            raise ConfigError(str(error), "ipam") from None
        nets.append(net)
        ranges.append((start, end))
    return tuple(nets), tuple(ranges)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _listed(value: Any, where: str) -> list[Any]:
    """Raises ConfigError."""
    if not isinstance(value, list):
        raise ConfigError("must be a list", where)
    return value


# --- who has to know of which routes ------------------------------------------------------------------------------


def pod_nets(lab: Topology) -> dict[str, tuple[Net, ...]]:
    """By node its pods' networks that are none of the LAN's: others need a route there. Empty where two nodes have the
    same, for then there can be none."""
    found = {}
    for node in lab.nodes:
        own = (node.ipv4.network, node.ipv6.network)
        nets = networks(lab)[node.name].nets
        found[node.name] = tuple(net for net in nets if not any(within(net, lan) for lan in own))
    every = [(name, net) for name, nets in found.items() for net in nets]
    for (one, net), (other, second) in combinations(every, 2):
        if one != other and net.version == second.version and net.overlaps(second):
            return {}
    return found


def ways(lab: Topology, whose: str) -> dict[Net, IP]:
    """The networks of pods on other nodes, and those nodes' addresses: what the node `whose` has to know, or the router
    ("")."""
    if lab.blueprint.cni is None or not lab.blueprint.cni.routes:
        return {}
    found: dict[Net, IP] = {}
    agents = lab.has_agents and whose  # they tell the nodes, and nobody else
    for node in lab.nodes:
        if node.name != whose and not agents:
            for net in pod_nets(lab).get(node.name, ()):
                found[net] = node.ipv4.ip if net.version == 4 else node.ipv6.ip
    return found
