"""What a topology file says of flannel: `flannel: {backend: vxlan, network: 10.244.0.0/16}`. Pure.

Node N of a lab has the Nth subnet of each network, as Kubernetes' node IPAM would give them out: /24, and /64 of IPv6.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import field

from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError, suggest
from tortie.lab.defaults import DEFAULT_POOL, FLANNEL_BACKENDS, IPV4_BACKENDS
from tortie.model.meta import Problem, Value

SUBNET_LENGTH = {4: 24, 6: 64}


class FlannelEntry(Value, frozen=True, kw_only=True):
    """flanneld on every node. `options` are those of the backend; `network6` is "" for IPv4 alone. With `policy` each
    node has an agent, too, which connects the pods and enforces policy, and leaves routes to flannel: canal."""

    backend: str = FLANNEL_BACKENDS[0]
    options: dict[str, Any] = field(default_factory=dict)
    network: str = DEFAULT_POOL
    network6: str = ""
    policy: bool = False

    @property
    def nets(self) -> tuple[Net, ...]:
        """Raises ConfigError."""
        return tuple(parse_net(text) for text in (self.network, self.network6) if text)

    def subnets(self, number: int) -> tuple[Net, ...]:
        """Of the node with that number, from 1: one of each network."""
        return tuple(_subnet(net, number) for net in self.nets)


def _subnet(net: Net, number: int) -> Net:
    length = SUBNET_LENGTH[net.version]
    return type(net)((int(net.network_address) + (number << (net.max_prefixlen - length)), length))


def complaints(entry: FlannelEntry, nodes: int) -> Iterator[Problem]:
    """What types alone cannot say of a lab with so many nodes, as (field, what is wrong)."""
    if entry.backend not in FLANNEL_BACKENDS:
        yield "backend", f'"{entry.backend}" is no backend of a lab, {suggest(entry.backend, FLANNEL_BACKENDS)}'
    if entry.network6 and entry.backend in IPV4_BACKENDS:
        yield "network6", f"{entry.backend} carries IPv4 alone"
    for key, text, version in (("network", entry.network, 4), ("network6", entry.network6, 6)):
        if not text and version == 6:
            continue
        try:
            net = parse_net(text)
        except ConfigError as error:
            yield key, str(error)
            continue
        length = SUBNET_LENGTH[version]
        if net.version != version:
            yield key, f"{text} is not an IPv{version} network"
        elif net.prefixlen > length or 1 << (length - net.prefixlen) <= nodes:
            yield key, f"{text} has no /{length} for each of {nodes} nodes, after the first"
