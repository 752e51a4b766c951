"""What a node's kernel should be like: what backends decide and stages make so. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from tortie.base.addr import IP, Net
from tortie.flannel.config import NetworkConfig
from tortie.flannel.lease import Lease
from tortie.kernel.netlink.tables import RTPROT_FLANNEL

PROTOCOL = RTPROT_FLANNEL
"""The mark of our routes (`proto 70` to `ip route`): none that rt_protos or the kernel gives a name."""


@dataclass(frozen=True, slots=True)
class External:
    """The interface by which this node reaches the others. `mtu` is in bytes, `ipv4`, `ipv6` are its addresses."""

    name: str
    index: int
    mtu: int
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """This node before it has a lease. `public_ip`, `public_ipv6` are what is published of it."""

    config: NetworkConfig
    external: External
    public_ip: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """This node with its lease."""

    site: Site
    lease: Lease


Ways = Mapping[IP, bool]
"""Of other nodes' public addresses: whether this node reaches them without a gateway, out of its external interface."""


# --- what the kernel should be like -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Vxlan:
    """A VXLAN device. `parent` is an index; `port` 0 is the kernel's own, 8472."""

    vni: int
    local: IP
    parent: int
    port: int = 0
    learning: bool = False
    gbp: bool = False


@dataclass(frozen=True, slots=True)
class Ipip:
    """An IPIP device to anywhere."""

    local: IPv4Address


@dataclass(frozen=True, slots=True)
class Wireguard:
    """A WireGuard device. `private_key` is in base64."""

    private_key: str = field(repr=False)
    port: int


@dataclass(frozen=True, slots=True)
class Tun:
    """A TUN device that the udp backend's proxy makes; what is on it is ours."""


@dataclass(frozen=True, slots=True)
class Device:
    """A link of ours. `mac` "" : whatever it has. `mtu` is in bytes. Other addresses of its are left alone, unless
    they are inside the network."""

    name: str
    kind: Vxlan | Ipip | Wireguard | Tun
    mtu: int
    mac: str = ""
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()


@dataclass(frozen=True, slots=True)
class FarEnd:
    """Of a VXLAN device: the MAC address behind which a node's subnet is, and the host to send it to."""

    device: str
    address: IP
    mac: str
    host: IP


@dataclass(frozen=True, slots=True)
class Path:
    """A route of ours: to a subnet by a next hop, or out of a device. `src`: what the host itself sends with."""

    dst: Net
    device: str
    via: IP | None = None
    onlink: bool = False
    scope: str = ""
    src: IP | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """Of a WireGuard device: a node. `key` and `psk` are in base64; `endpoint` is address and port. `keepalive` is in
    seconds, 0 for none."""

    device: str
    key: str
    endpoint: tuple[IP, int]
    allowed: tuple[Net, ...]
    psk: str = field(default="", repr=False)
    keepalive: int = 0


@dataclass(frozen=True, slots=True)
class FlannelState:
    """All of it. `networks` are those of the configuration: what in them is marked as ours and is not wanted goes.
    `rules` is the text of our nft tables, by name of the table (`ip flannel-ipv4`); an empty one is to be absent.
    `blackholes`: own subnets that packets to addresses nobody has end in. `problems`: why something is lacking."""

    networks: tuple[Net, ...] = ()
    devices: tuple[Device, ...] = ()
    far_ends: tuple[FarEnd, ...] = ()
    paths: tuple[Path, ...] = ()
    peers: tuple[Peer, ...] = ()
    blackholes: tuple[Net, ...] = ()
    rules: Mapping[str, str] | None = None
    problems: tuple[str, ...] = ()
