"""The pools of a cluster that has none: one for each IP version, as Calico makes them when its first node starts.

IPv4  CALICO_IPV4POOL_CIDR, else kubeadm's podSubnet, else 192.168.0.0/16; where this machine has addresses in that,
      the first of 172.16.0.0/16 to 172.31.0.0/16 in which it has none
IPv6  CALICO_IPV6POOL_CIDR, else kubeadm's podSubnet, else a random /48 of fd00::/8 (RFC 4193)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

from msgspec.structs import replace

from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError
from tortie.calc.defaults import defaulted
from tortie.calc.node_addresses import Interface
from tortie.model.document import problems
from tortie.model.ipam import EncapMode, IPPool, IPPoolSpec
from tortie.model.meta import Metadata

NONE = "none"
FIRST_CHOICE = parse_net("192.168.0.0/16")
OTHERS = tuple(parse_net(f"172.{second}.0.0/16") for second in range(16, 32))
RANDOM_BYTES = 5
"""Of the network of a local IPv6 address (RFC 4193, section 3.2.2)."""


@dataclass(frozen=True, slots=True)
class PoolWish:
    """What is told of the first pool of one IP version. `cidr` "": ours to choose; none: no pool."""

    version: int
    cidr: str = ""
    block_size: int | None = None
    ipip: EncapMode = "Never"
    vxlan: EncapMode = "Never"
    nat_outgoing: bool = False
    node_selector: str = "all()"
    disable_bgp_export: bool = False

    @property
    def variable(self) -> str:
        """The one that names the network."""
        return f"CALICO_IPV{self.version}POOL_CIDR"


def first_pool(wish: PoolWish, addresses: Iterable[Interface], pod_subnets: Sequence[Net], random: bytes) -> IPPool:
    """The pool of a family that has none. `addresses` are this machine's, `random` 5 bytes. Raises ConfigError."""
    net = _net(wish, [one.network for one in addresses], pod_subnets, random)
    spec = IPPoolSpec(
        cidr=str(net),
        block_size=wish.block_size,
        ipip_mode=wish.ipip,
        vxlan_mode=wish.vxlan,
        nat_outgoing=wish.nat_outgoing,
        node_selector=wish.node_selector,
        disable_bgp_export=wish.disable_bgp_export,
    )
    pool = IPPool(metadata=Metadata(name=f"default-ipv{wish.version}-ippool"), spec=spec)
    for path, problem in problems(pool):
        raise ConfigError(problem, wish.variable.removesuffix("_CIDR"), path.removeprefix("spec."))
    return replace(defaulted(pool, None), metadata=pool.metadata)


def _net(wish: PoolWish, taken: Sequence[Net], pod_subnets: Sequence[Net], random: bytes) -> Net:
    if wish.cidr:
        net = parse_net(wish.cidr)
        if net.version != wish.version:
            raise ConfigError(f'"{wish.cidr}" is not an IPv{wish.version} network', wish.variable)
        return net
    told = next((net for net in pod_subnets if net.version == wish.version), None)
    if told is not None:
        return told
    if wish.version == 6:
        return _random_net(random)
    free = (net for net in (FIRST_CHOICE, *OTHERS) if not any(_overlap(net, one) for one in taken))
    found = next(free, None)
    if found is None:
        raise ConfigError("this machine has addresses in every network that could be the first pool", wish.variable)
    return found


def _random_net(random: bytes) -> IPv6Network:
    network = b"\xfd" + random[:RANDOM_BYTES]
    return IPv6Network((IPv6Address(network.ljust(16, b"\0")), 8 * len(network)))


def _overlap(one: Net, other: Net) -> bool:
    return one.version == other.version and one.overlaps(other)


def pod_subnets(text: str) -> tuple[Net, ...]:
    """kubeadm's podSubnet: one network, or one of each IP version with a comma. Raises ConfigError."""
    return tuple(parse_net(part.strip()) for part in text.split(",") if part.strip())
