"""Nodes of a flannel network in network namespaces: a wire, a pod behind each node, and backend and stages as a daemon
drives them, but one pass at a time.

    pod ─ veth ─ cni0 node1 eth0 ─ wire (a bridge in a namespace of its own) ─ eth0 node2 cni0 ─ veth ─ pod
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Any

from namespaces import Ns
from tortie.dataplane.converge import Stage, converge
from tortie.flannel import backends
from tortie.flannel.backend import Backend, Setting
from tortie.flannel.config import Family, NetworkConfig
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.stages.devices import Devices
from tortie.flannel.stages.far_ends import FarEnds
from tortie.flannel.stages.peers import Peers
from tortie.flannel.stages.routes import Routes
from tortie.flannel.state import External, FlannelState, Place, Site
from tortie.flannel.ways import look
from tortie.kernel.netns import entered

NETWORK, NETWORK6 = ip_network("10.5.0.0/16"), ip_network("fd00:5::/48")


NOWHERE = Setting(Path("/dev/null/run"))
"""Where no file can be, not even root's: a test of a backend that writes some names a folder of its own."""


def family(network: IPv4Network | IPv6Network, length: int) -> Family:
    subnets = network.subnets(new_prefix=length)
    next(subnets)
    return Family(network, length, next(subnets).network_address, network.broadcast_address)


def network_config(kind: str = "vxlan", *, v4: bool = True, v6: bool = False, **options: Any) -> NetworkConfig:
    return NetworkConfig(
        v4=family(NETWORK, 24) if v4 else None,
        v6=family(NETWORK6, 64) if v6 else None,
        backend_type=kind,
        options={"Type": kind, **options},
    )


def subnet_of(number: int) -> IPv4Network:
    return IPv4Network((int(NETWORK.network_address) + (number << 8), 24))


def subnet6_of(number: int) -> IPv6Network:
    return IPv6Network((int(NETWORK6.network_address) + (number << 64), 64))


def stages_of(netns: str | None = None) -> tuple[Stage[FlannelState], ...]:
    """In their order."""
    return Devices(netns), Peers(netns), FarEnds(netns), Routes(netns)


def reached(stages: Sequence[Stage[FlannelState]], state: FlannelState) -> None:
    """One pass of the stages, and another that finds nothing left to do."""
    failures = [str(failure) for failure in converge(stages, state)]
    assert not failures, failures
    left = [str(stage.plan(state)) for stage in stages if stage.plan(state)]
    assert not left, left


@dataclass
class FlannelNode:
    """Node number N has 192.0.2.N and 2001:db8::N, the subnets 10.5.N.0/24 and fd00:5:0:N::/64, a pod with their second
    addresses."""

    number: int
    ns: Ns
    pod: Ns
    config: NetworkConfig
    remembered: Attrs | None = None
    public_ip: IPv4Address | None = None
    setting: Setting = NOWHERE
    stages: tuple[Stage[FlannelState], ...] = ()
    backend: Backend = field(init=False, repr=False)
    place: Place = field(init=False, repr=False)
    state: FlannelState = field(default_factory=FlannelState)

    def start(self) -> None:
        """As a daemon that begins."""
        self.stages = stages_of(self.ns.path)
        self.backend = backends.load(self.config, self.setting)
        (eth0,) = (link for link in self.ns.json("link", "show") if link["ifname"] == "eth0")
        external = External("eth0", eth0["ifindex"], eth0["mtu"], self._own(4), self._own(6))  # type: ignore[arg-type]
        public = self.public_ip or external.ipv4
        site = Site(
            self.config, external, public if self.config.v4 else None, external.ipv6 if self.config.v6 else None
        )
        with entered(self.ns.path):
            published = asyncio.run(self.backend.begin(site, self.remembered))
        attrs = Attrs(site.public_ip, site.public_ipv6, self.backend.published_type, published.data, published.data6)
        lease = Lease(
            subnet_of(self.number) if self.config.v4 else None,
            subnet6_of(self.number) if self.config.v6 else None,
            attrs,
            node=f"node{self.number}",
        )
        self.place = Place(site, lease)

    def _own(self, version: int) -> IPv4Address | IPv6Address | None:
        """The address of eth0, if it has one."""
        words = (f"-{version}", "address", "show", "dev", "eth0", "scope", "global")
        found = [one["local"] for link in self.ns.json(*words) for one in link.get("addr_info", ()) if one]
        make = IPv4Address if version == 4 else IPv6Address
        return make(found[0]) if found else None

    @property
    def lease(self) -> Lease:
        return self.place.lease

    def want(self, leases: Sequence[Lease]) -> FlannelState:
        ips = [ip for lease in leases for ip in (lease.attrs.public_ip, lease.attrs.public_ipv6) if ip is not None]
        ways = look(self.place.site.external, ips, self.ns.path) if self.backend.asks_ways else {}
        return self.backend.want(self.place, leases, ways)

    def know(self, leases: Iterable[Lease]) -> None:
        """The leases of the others are these, and the kernel becomes so."""
        self.state = self.want([lease for lease in leases if lease is not self.lease])
        self.settle()

    def settle(self) -> None:
        reached(self.stages, self.state)

    def reaches(self, other: FlannelNode, version: int = 4) -> bool:
        """Whether a ping from pod to pod is answered."""
        return answered(self.pod, pod_ip(other.number, version))


def answered(ns: Ns, ip: str, *options: str) -> bool:
    """Whether one of the pings of the next seconds is."""
    said = ns.run("ping", "-n", "-c", "1", "-i", "0.2", "-w", "5", *options, ip, check=False)
    return ", 0 received" not in said and " received" in said


def pod_ip(number: int, version: int = 4) -> str:
    return str(subnet_of(number)[2] if version == 4 else subnet6_of(number)[2])


class Wire:
    """Makes nodes that are all on one link."""

    def __init__(self, make_ns: Callable[..., Ns], mtu: int = 1500) -> None:
        self._make_ns = make_ns
        self._mtu = mtu
        self.ns = make_ns("wire")
        self.ns.ip("link", "add", "wire", "type", "bridge")
        self.ns.ip("link", "set", "wire", "up")

    def node(self, number: int, config: NetworkConfig, **more: Any) -> FlannelNode:
        ns, pod = self._make_ns(f"node{number}"), self._make_ns(f"pod{number}")
        quick = ("net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
        pod.run("sysctl", "-qw", *quick)  # no address is probed for a second before it may be used
        ns.run("sysctl", "-qw", *quick, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        port = f"port{number}"
        self.ns.batch(
            f"link add {port} mtu {self._mtu} type veth peer name eth0 netns {ns.name}",
            f"link set {port} master wire up",
        )
        ns.batch(
            f"link set eth0 mtu {self._mtu} up",
            f"address add 192.0.2.{number}/24 dev eth0",
            f"address add 2001:db8::{number}/64 dev eth0 nodad",
        )
        attach_pod(ns, pod, number)
        return FlannelNode(number, ns, pod, config, **more)


def attach_pod(ns: Ns, pod: Ns, number: int) -> None:
    """A pod with the second addresses of the node's subnets behind a link that is called as flannel's bridge is."""
    four, six = subnet_of(number), subnet6_of(number)
    ns.batch(
        f"link add cni0 type veth peer name eth0 netns {pod.name}",
        "link set cni0 up",
        f"address add {four[1]}/{four.prefixlen} dev cni0",
        f"address add {six[1]}/{six.prefixlen} dev cni0 nodad",
    )
    pod.batch(
        "link set eth0 up",
        f"address add {four[2]}/{four.prefixlen} dev eth0",
        f"address add {six[2]}/{six.prefixlen} dev eth0 nodad",
        f"route add default via {four[1]}",
        f"route add default via {six[1]}",
    )


def all_know(nodes: Sequence[FlannelNode]) -> None:
    leases = [node.lease for node in nodes]
    for node in nodes:
        node.know(leases)


def paths(ns: Ns, *words: str) -> dict[str, tuple[str, ...]]:
    """Routes inside the network that the kernel did not make itself: destination to type if it is no unicast, gateway,
    link, onlink."""
    found: dict[str, tuple[str, ...]] = {}
    for version, network in ((4, NETWORK), (6, NETWORK6)):
        for route in ns.json(f"-{version}", "route", "show", *words):
            if route["protocol"] != "kernel" and "/" in route["dst"] and ip_network(route["dst"]).subnet_of(network):
                parts = (
                    "" if route["type"] == "unicast" else route["type"],
                    route.get("gateway", ""),
                    route.get("dev", ""),
                )
                found[route["dst"]] = tuple(part for part in (*parts, *({"onlink"} & set(route["flags"]))) if part)
    return found


def protocols(ns: Ns) -> Mapping[str, str]:
    """Of the same routes: who made them."""
    every = (route for version in (4, 6) for route in ns.json(f"-{version}", "route", "show", "type", "unicast"))
    return {route["dst"]: route["protocol"] for route in every if route["protocol"] != "kernel"}
