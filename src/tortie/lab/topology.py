"""What a lab consists of: names, addresses and links of its nodes, routers and outside host. Pure.

One rack, as `tortie lab up` has it unless told otherwise:

    node1 eth0 172.30.0.11 ──┐
    node2 eth0 172.30.0.12 ──┤ br0 of fabric, 172.30.0.1 ── uplink, 198.51.100.1 ── outside eth0 198.51.100.9
    ...                      │
    nodeN                  ──┘   fabric is the rack's switch and its router. It has no route to pods, nor has the
                                 outside host: who wants an answer from there must leave with a node's address.

Several racks each have such a switch and router, and the routers have links with each other, 172.31.0.0/30 and on,
whose ends are called after the router at the other end. IPv6 is the same picture with fd00:172:30::/64,
fd00:172:31::/64, 2001:db8:9::/64. Which racks, routers and links there are a blueprint says.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

from msgspec.structs import replace

from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError
from tortie.lab.blueprint import (
    FABRIC,
    LINK_NET,
    LINK_NET6,
    MAX_NODES,
    OUTSIDE_NET,
    OUTSIDE_NET6,
    Blueprint,
    NodeEntry,
    RackEntry,
    RouterEntry,
    checked,
)
from tortie.lab.defaults import DEFAULT_NAME, DEFAULT_NODES, DEFAULT_POOL, DEFAULT_POOL6
from tortie.model.bgp import as_number

POOL, POOL6 = "default-ipv4-ippool", "default-ipv6-ippool"

GATEWAY, OUTSIDE_HOST = 1, 9
OUTSIDE = "outside"
OUTSIDE_PORT = 80
NODE_PORT = 10250
"""Where a node answers, in a lab whose pods are connected by plugins alone: a kubelet's port."""
UPLINK = "uplink"
"""A router's link to the outside host."""

# No dash: "tortie-a-" must never be the beginning of a namespace of another lab than "a".
_LAB_NAME = re.compile(r"[a-z0-9]{1,20}")
_NAMESPACE = re.compile(r"tortie-([a-z0-9]{1,20})-(?:fabric|outside|node\d+|router-[a-z0-9-]+|pod-.+)")
_POD_TAIL = 200  # what may follow the prefix of a pod's namespace; longer names end in a digest


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace with one link `eth0` to a switch: a node or the outside host. `rack` is a node's.

    `as_number` is None where the cluster's holds, `cluster_id` "" for one that reflects no routes.
    """

    name: str
    netns: str
    ipv4: IPv4Interface
    ipv6: IPv6Interface
    gateway: str
    gateway6: str
    rack: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    as_number: int | None = None
    cluster_id: str = ""

    @property
    def addresses(self) -> tuple[str, str]:
        """Both with their prefix lengths."""
        return str(self.ipv4), str(self.ipv6)


@dataclass(frozen=True, slots=True)
class Port:
    """A router's end of a link to the router `to`, after which it is called. `via` are the other end's addresses."""

    to: str
    addresses: tuple[str, str]
    via: tuple[str, str]
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Router:
    """A namespace that forwards, and is the switch of its rack if it has one: `bridge` are its addresses there.

    `daemon` is `bird`, `frr` or "": without one it speaks no BGP, and `as_number` is None.
    """

    name: str
    netns: str
    daemon: str
    as_number: int | None
    rack: str
    bridge: tuple[str, ...]
    ports: tuple[Port, ...]

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every one that it has towards nodes and other routers, with prefix lengths, those towards nodes first."""
        return (*self.bridge, *(address for port in self.ports for address in port.addresses))


@dataclass(frozen=True)
class Topology:
    """A lab as it should be. `mtu` 0 leaves links at what the kernel gives them."""

    name: str
    nodes: tuple[Host, ...]
    outside: Host
    routers: tuple[Router, ...]
    mtu: int
    blueprint: Blueprint

    @property
    def namespaces(self) -> tuple[str, ...]:
        """All but those of pods."""
        return (*(router.netns for router in self.routers), *(host.netns for host in self.hosts))

    @property
    def has_agents(self) -> bool:
        """Whether nodes have one."""
        return self.blueprint.has_agents

    @property
    def has_services(self) -> bool:
        """Whether somebody answers for services. Pods that CNI plugins alone connect go past their nodes."""
        return self.blueprint.cni is None

    @property
    def has_proxies(self) -> bool:
        """Whether nodes have one for services. Agents need none beside them."""
        return self.has_services and not self.has_agents

    @property
    def hosts(self) -> tuple[Host, ...]:
        return (*self.nodes, self.outside)

    @property
    def fabric(self) -> str:
        """The namespace that is switch and router of the first rack."""
        return self._first.netns

    @property
    def _first(self) -> Router:
        return self.router(self.blueprint.racks[0].router)

    @property
    def uplink_addresses(self) -> tuple[str, str]:
        """Those of the outside host's router towards it."""
        return _interface(OUTSIDE_NET, GATEWAY), _interface(OUTSIDE_NET6, GATEWAY)

    @cached_property
    def _nodes(self) -> Mapping[str, Host]:
        return {host.name: host for host in self.nodes}

    def node(self, name: str) -> Host:
        """Raises ConfigError."""
        if name in self._nodes:
            return self._nodes[name]
        raise ConfigError(f'lab "{self.name}" has no node "{name}"; it has {names(host.name for host in self.nodes)}')

    def router(self, name: str) -> Router:
        """Raises ConfigError."""
        for router in self.routers:
            if router.name == name:
                return router
        known = names(router.name for router in self.routers)
        raise ConfigError(f'lab "{self.name}" has no router "{name}"; it has {known}')

    def router_of(self, host: Host) -> Router:
        """The one at which a host is: its rack's, or that of the outside."""
        if host.rack:
            return next(router for router in self.routers if router.rack == host.rack)
        return self.router(self.blueprint.outside_router)

    def pod_netns(self, namespace: str, pod: str) -> str:
        tail = f"{namespace}.{pod}"
        if len(tail) > _POD_TAIL:
            tail = f"{tail[: _POD_TAIL - 41]}.{hashlib.sha1(tail.encode(), usedforsecurity=False).hexdigest()}"
        return f"{prefix(self.name)}pod-{tail}"


# --- laying out ---------------------------------------------------------------------------------------------------


def laid_out(name: str, blueprint: Blueprint) -> Topology:
    """The lab of that name which a blueprint describes. Raises ConfigError for what cannot be a name."""
    check_name(name)
    nodes: list[Host] = []
    for rack in blueprint.racks:
        for entry in rack.nodes:
            nodes += [_node(name, len(nodes) + 1 + i, rack, entry) for i in range(entry.count)]
    return Topology(
        name=name,
        nodes=tuple(nodes),
        outside=_host(name, OUTSIDE, OUTSIDE_HOST, OUTSIDE_NET, OUTSIDE_NET6),
        routers=tuple(_router(name, entry, blueprint) for entry in blueprint.routers),
        mtu=blueprint.mtu or 0,
        blueprint=blueprint,
    )


def topology(
    name: str = DEFAULT_NAME, nodes: int = DEFAULT_NODES, pool: str = DEFAULT_POOL, pool6: str = DEFAULT_POOL6
) -> Topology:
    """A lab of one rack, all of whose nodes speak BGP with one another. Raises ConfigError for what cannot be."""
    pools = tuple({"name": key, "cidr": cidr, "natOutgoing": True} for key, cidr in ((POOL, pool), (POOL6, pool6)))
    check_count(nodes)
    rack = RackEntry(name="all", nodes=(NodeEntry(count=nodes),))
    _check_family(pool, 4, "--pool")
    _check_family(pool6, 6, "--pool6")
    try:
        return laid_out(name, checked(Blueprint(about="one link, a full mesh of nodes", racks=(rack,), pools=pools)))
    except ConfigError as error:
        field = "".join(error.where[:1]).partition(".")[0]
        option = {"pools[0]": "--pool", "pools[1]": "--pool6"}.get(field)
        raise ConfigError(error.message, *([option] if option else error.where)) from None


def resized(blueprint: Blueprint, nodes: int) -> Blueprint:
    """The same with so many nodes: the last ones of its only rack become more or fewer. Raises ConfigError."""
    if len(blueprint.racks) != 1:
        raise ConfigError("a topology of several racks says itself how many nodes each has", "--nodes")
    check_count(nodes)
    *first, last = blueprint.racks[0].nodes
    least = sum(entry.count for entry in first) + 1
    if nodes < least:
        raise ConfigError(f"{nodes} nodes: this topology has at least {least}", "--nodes")
    entries = (*first, replace(last, count=nodes - least + 1))
    return checked(replace(blueprint, racks=(replace(blueprint.racks[0], nodes=entries),)))


def check_count(nodes: int) -> None:
    """Raises ConfigError for a number of nodes that no lab can have."""
    if not 1 <= nodes <= MAX_NODES:
        raise ConfigError(f"{nodes} nodes: a lab has from 1 to {MAX_NODES}", "--nodes")


def prefix(lab: str) -> str:
    """How the name of every namespace of a lab begins."""
    return f"tortie-{lab}-"


def lab_of_namespace(netns: str) -> str | None:
    """The lab that a network namespace belongs to by its name, or None.

    >>> lab_of_namespace("tortie-demo-pod-red.a"), lab_of_namespace("cni-1234")
    ('demo', None)
    """
    match = _NAMESPACE.fullmatch(netns)
    return match[1] if match else None


def check_name(lab: str) -> None:
    """Raises ConfigError for what cannot be a lab's name."""
    if not _LAB_NAME.fullmatch(lab):
        raise ConfigError(f'"{lab}" cannot be the name of a lab: at most 20 lower-case letters and digits', "--name")


def names(words: Iterable[str]) -> str:
    """`node1, node2 and node3`; of many the first few."""
    every = list(words)
    if len(every) > 6:
        return f"{', '.join(every[:4])}, ... {every[-1]}"
    return " and ".join(part for part in (", ".join(every[:-1]), *every[-1:]) if part) or "none"


def _node(lab: str, number: int, rack: RackEntry, entry: NodeEntry) -> Host:
    subnet, subnet6 = IPv4Network(rack.subnet), IPv6Network(rack.subnet6)
    own_as = entry.as_number if entry.as_number is not None else rack.as_number
    labels = {"kubernetes.io/hostname": f"node{number}", "rack": rack.name, **entry.labels}
    return _host(
        lab,
        f"node{number}",
        rack.first_address - 1 + number,
        subnet,
        subnet6,
        rack=rack.name,
        labels=tuple(sorted(labels.items())),
        as_number=as_number(own_as) if own_as is not None else None,
        cluster_id=entry.cluster_id,
    )


def _host(
    lab: str,
    name: str,
    ordinal: int,
    net: IPv4Network,
    net6: IPv6Network,
    *,
    rack: str = "",
    labels: tuple[tuple[str, str], ...] = (),
    as_number: int | None = None,
    cluster_id: str = "",
) -> Host:
    return Host(
        name=name,
        netns=prefix(lab) + name,
        ipv4=IPv4Interface(_interface(net, ordinal)),
        ipv6=IPv6Interface(_interface(net6, ordinal)),
        gateway=str(net[GATEWAY]),
        gateway6=str(net6[GATEWAY]),
        rack=rack,
        labels=labels,
        as_number=as_number,
        cluster_id=cluster_id,
    )


def _router(lab: str, entry: RouterEntry, blueprint: Blueprint) -> Router:
    rack = next((rack for rack in blueprint.racks if rack.router == entry.name), None)
    bridge = rack and (
        _interface(IPv4Network(rack.subnet), GATEWAY),
        _interface(IPv6Network(rack.subnet6), GATEWAY),
    )
    ports = tuple(
        _port(i, link.between.index(entry.name), link.between, link.mtu or blueprint.mtu or 0)
        for i, link in enumerate(blueprint.links)
        if entry.name in link.between
    )
    return Router(
        name=entry.name,
        netns=prefix(lab) + (FABRIC if entry.name == FABRIC else f"router-{entry.name}"),
        daemon=entry.daemon or "",
        as_number=as_number(entry.as_number) if entry.as_number is not None else None,
        rack=rack.name if rack else "",
        bridge=bridge or (),
        ports=ports,
    )


def _port(link: int, end: int, between: tuple[str, ...], mtu: int) -> Port:
    """One end, 0 or 1, of the link with that number."""
    net = IPv4Network((int(LINK_NET[4 * link]), 30))
    net6 = IPv6Network((int(LINK_NET6.network_address) + (link << 64), 64))
    own, other = end + 1, 2 - end
    return Port(
        to=between[1 - end],
        addresses=(_interface(net, own), _interface(net6, own)),
        via=(str(net[other]), str(net6[other])),
        mtu=mtu,
    )


def _interface(net: IPv4Network | IPv6Network, ordinal: int) -> str:
    """The address with that ordinal. In IPv6 its decimal digits are the address's, so that both families look alike."""
    host = net[int(str(ordinal), 16)] if isinstance(net, IPv6Network) else net[ordinal]
    return f"{host}/{net.prefixlen}"


def _check_family(cidr: str, version: int, option: str) -> None:
    try:
        net = parse_net(cidr)
    except ConfigError as error:
        raise error.within(option) from None
    if net.version != version:
        raise ConfigError(f"{cidr} is not an IPv{version} network", option)
