"""What a lab consists of: names and addresses of the switch, the nodes and the outside host. Pure.

    node1 eth0 172.30.0.11 ──┐
    node2 eth0 172.30.0.12 ──┤ br0 ── gateway, 172.30.0.1 and 198.51.100.1 ── outside eth0 198.51.100.9
    ...                      │        forwards between its two sides; neither it nor the outside host has a route
    nodeN                  ──┘        to pods: who wants an answer from outside must leave with a node's address

IPv6 is the same picture with fd00:172:30::/64 and 2001:db8:9::/64.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError

DEFAULT_NAME = "default"
DEFAULT_NODES = 3
DEFAULT_POOL = "10.244.0.0/16"
DEFAULT_POOL6 = "fd00:10:244::/56"

NODE_NET = IPv4Network("172.30.0.0/24")
NODE_NET6 = IPv6Network("fd00:172:30::/64")
OUTSIDE_NET = IPv4Network("198.51.100.0/24")  # TEST-NET-2, RFC 5737
OUTSIDE_NET6 = IPv6Network("2001:db8:9::/64")  # documentation, RFC 3849
GATEWAY, OUTSIDE_HOST, FIRST_NODE = 1, 9, 10
MAX_NODES = 240
OUTSIDE = "outside"
OUTSIDE_PORT = 80

# No dash: "tortie-a-" must never be the beginning of a namespace of another lab than "a".
_LAB_NAME = re.compile(r"[a-z0-9]{1,20}")
_NAMESPACE = re.compile(r"tortie-([a-z0-9]{1,20})-(?:fabric|outside|node\d+|pod-.+)")
_FILE_NAME_BYTES = 255  # NAME_MAX of linux/limits.h
_POD_TAIL = 200  # what may follow the prefix of a pod's namespace; longer names end in a digest


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace with one link `eth0` to the fabric: a node or the outside host."""

    name: str
    netns: str
    ipv4: IPv4Interface
    ipv6: IPv6Interface
    gateway: str
    gateway6: str

    @property
    def addresses(self) -> tuple[str, str]:
        """Both with their prefix lengths."""
        return str(self.ipv4), str(self.ipv6)


@dataclass(frozen=True, slots=True)
class Topology:
    """A lab as it should be."""

    name: str
    nodes: tuple[Host, ...]
    outside: Host
    pool: str
    pool6: str

    @property
    def fabric(self) -> str:
        """The namespace that is the switch and the gateway."""
        return f"{prefix(self.name)}fabric"

    @property
    def hosts(self) -> tuple[Host, ...]:
        return (*self.nodes, self.outside)

    @property
    def bridge_addresses(self) -> tuple[str, str]:
        return _interface(NODE_NET, GATEWAY), _interface(NODE_NET6, GATEWAY)

    @property
    def uplink_addresses(self) -> tuple[str, str]:
        """The gateway's addresses towards the outside host."""
        return _interface(OUTSIDE_NET, GATEWAY), _interface(OUTSIDE_NET6, GATEWAY)

    def node(self, name: str) -> Host:
        """Raises ConfigError."""
        for host in self.nodes:
            if host.name == name:
                return host
        raise ConfigError(f'lab "{self.name}" has no node "{name}"; it has {names(host.name for host in self.nodes)}')

    def pod_netns(self, namespace: str, pod: str) -> str:
        tail = f"{namespace}.{pod}"
        if len(tail) > _POD_TAIL:
            tail = f"{tail[: _POD_TAIL - 41]}.{hashlib.sha1(tail.encode(), usedforsecurity=False).hexdigest()}"
        return f"{prefix(self.name)}pod-{tail}"


def topology(
    name: str = DEFAULT_NAME, nodes: int = DEFAULT_NODES, pool: str = DEFAULT_POOL, pool6: str = DEFAULT_POOL6
) -> Topology:
    """The lab of that name and size. Raises ConfigError for what cannot be."""
    check_name(name)
    if not 1 <= nodes <= MAX_NODES:
        raise ConfigError(f"{nodes} nodes: a lab has from 1 to {MAX_NODES}", "--nodes")
    _check_pool(pool, 4, "--pool")
    _check_pool(pool6, 6, "--pool6")
    return Topology(
        name=name,
        nodes=tuple(_host(name, f"node{i}", FIRST_NODE + i, NODE_NET, NODE_NET6) for i in range(1, nodes + 1)),
        outside=_host(name, OUTSIDE, OUTSIDE_HOST, OUTSIDE_NET, OUTSIDE_NET6),
        pool=pool,
        pool6=pool6,
    )


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


def _host(lab: str, name: str, ordinal: int, net: IPv4Network, net6: IPv6Network) -> Host:
    return Host(
        name=name,
        netns=prefix(lab) + name,
        ipv4=IPv4Interface(_interface(net, ordinal)),
        ipv6=IPv6Interface(_interface(net6, ordinal)),
        gateway=str(net[GATEWAY]),
        gateway6=str(net6[GATEWAY]),
    )


def _interface(net: IPv4Network | IPv6Network, ordinal: int) -> str:
    """The address with that ordinal. In IPv6 its decimal digits are the address's, so that both families look alike."""
    host = net[int(str(ordinal), 16)] if isinstance(net, IPv6Network) else net[ordinal]
    return f"{host}/{net.prefixlen}"


def _check_pool(cidr: str, version: int, option: str) -> None:
    try:
        net = parse_net(cidr)
    except ConfigError as error:
        raise error.within(option) from None
    if net.version != version:
        raise ConfigError(f"{cidr} is not an IPv{version} network", option)
    for taken in (NODE_NET, NODE_NET6, OUTSIDE_NET, OUTSIDE_NET6):
        if net.version == taken.version and net.overlaps(taken):
            raise ConfigError(f"{cidr} overlaps {taken}, which the lab itself uses", option)
