"""What a node says of its own CNI networks, so that others know the way to their pods: an annotation of its Node.

    metadata.annotations["tortie.dev/pod-networks"]     a JSON list of PodNetwork

The node's agent writes it from the configurations in `/etc/cni/net.d` that say `autoRoutes`. Nobody else does: the
configuration is what the pods' addresses really come from, and a second description of them could only be wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

import msgspec

from tortie.base.addr import Net, parse_ip, parse_net
from tortie.base.errors import ConfigError
from tortie.model.meta import changed
from tortie.model.node import Node

POD_NETWORKS = "tortie.dev/pod-networks"

ROUTED = ("l3", "l3s", "bridge", "ptp")
"""Modes whose pods are reached through their node: a route there goes by the node's address. In the others (l2, and all
of macvlan) pods answer on the network itself."""


class Span(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Addresses that a node gives to its pods: a subnet, and perhaps the part of it from `start` to `end`. `since` is
    when the node first said so: of two that claim the same addresses the earlier one has them."""

    subnet: str
    start: str = ""
    end: str = ""
    since: str = ""

    @property
    def net(self) -> Net:
        """Raises ConfigError."""
        return parse_net(self.subnet)

    @property
    def bounds(self) -> tuple[int, int]:
        """The first and the last address, as numbers. Raises ConfigError."""
        net = self.net
        low = int(parse_ip(self.start)) if self.start else int(net.network_address)
        high = int(parse_ip(self.end)) if self.end else int(net.broadcast_address)
        return low, high


class PodNetwork(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A network of a node. `mode` is that of ipvlan, `l2` for macvlan, else the plugin's type. `master` is the link
    that carries it, "" the one with the node's address; `addresses` are that link's, with their prefix lengths.
    `announce`: BGP tells routers of it. `file` is where it is configured."""

    name: str
    mode: str
    spans: tuple[Span, ...]
    master: str = ""
    addresses: tuple[str, ...] = ()
    announce: bool = False
    file: str = ""

    @property
    def routed(self) -> bool:
        """Whether its pods are reached through their node."""
        return self.mode in ROUTED

    @property
    def interfaces(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """The addresses, read. Raises ConfigError."""
        try:
            return tuple(map(ip_interface, self.addresses))
        except ValueError as error:
            raise ConfigError(str(error), self.name) from None


def pod_networks(node: Node | None) -> tuple[PodNetwork, ...]:
    """What a Node says. Fields that a newer agent may have written are passed over. Raises ConfigError."""
    text = node.metadata.annotations.get(POD_NETWORKS, "") if node is not None else ""
    if not text:
        return ()
    try:
        found = msgspec.json.decode(text, type=tuple[PodNetwork, ...])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ConfigError(str(error), f'metadata.annotations["{POD_NETWORKS}"]') from None
    for one in found:
        _check(one)
    return found


def _check(network: PodNetwork) -> None:
    """Raises ConfigError for what no agent writes."""
    _ = network.interfaces
    for span in network.spans:
        (low, high), net = span.bounds, span.net
        if not int(net[0]) <= low <= high <= int(net[-1]):
            raise ConfigError(f"{span.start or net[0]} to {span.end or net[-1]} is not a part of {net}", network.name)


def written(networks: Iterable[PodNetwork]) -> str:
    """The annotation's text; "" for none."""
    every = tuple(networks)
    return msgspec.json.encode(every).decode() if every else ""


def with_pod_networks(node: Node, text: str) -> Node:
    """The Node with this annotation; without it where there is nothing to say."""
    annotations = {key: value for key, value in node.metadata.annotations.items() if key != POD_NETWORKS}
    if text:
        annotations[POD_NETWORKS] = text
    return changed(node, annotations=annotations)


def titled(network: str, node: str) -> str:
    """How messages name a network of a node."""
    return f"pod network {network} of {node}"
