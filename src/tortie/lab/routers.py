"""What a lab's routers are told: bird.conf or frr.conf of one that speaks BGP. Pure.

    the rack's nodes  ─ one session for each address, waiting for the node to dial; eBGP, or iBGP with reflection where
                        they are in the router's own AS
    neighbour routers ─ one session for each family of a link

A router passes on what it hears, and writes it to its kernel. It announces nothing of its own: how the routers reach
one another's networks is written down in `underlay`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_interface

from tortie.base.addr import IP, parse_ip
from tortie.lab.topology import Router, Topology
from tortie.model.bgp import as_number


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A session of a router's with `name`, a node of its rack, which dials, or a router. `internal`: in one AS."""

    name: str
    ip: IP
    own: IP
    as_number: int
    node: bool
    internal: bool

    @property
    def protocol(self) -> str:
        """Its name in bird.conf."""
        return f"{self.name.replace('-', '_')}_{self.ip.version}"


def neighbours(lab: Topology, router: Router) -> Iterator[Neighbour]:
    """Everybody with whom a router is ready to speak; nobody for one without a daemon."""
    if router.as_number is None:
        return
    cluster = as_number(lab.blueprint.as_number)
    bridge = [ip_interface(address).ip for address in router.bridge]
    for node in lab.nodes:
        if router.rack and node.rack == router.rack:
            number = cluster if node.as_number is None else node.as_number
            for own, address in zip(bridge, node.addresses, strict=True):
                same = number == router.as_number
                yield Neighbour(node.name, ip_interface(address).ip, own, number, node=True, internal=same)
    for port in router.ports:
        far = lab.router(port.to)
        if far.as_number is not None:
            for address, via in zip(port.addresses, port.via, strict=True):
                own, same = ip_interface(address).ip, far.as_number == router.as_number
                yield Neighbour(far.name, parse_ip(via), own, far.as_number, node=False, internal=same)


def configuration(lab: Topology, router: Router) -> str:
    """The file of the router's daemon; the same for the same lab."""
    lines = _frr(lab, router) if router.daemon == "frr" else _bird(lab, router)
    return "\n".join(lines) + "\n"


def router_id(router: Router) -> IP:
    return ip_interface(router.addresses[0]).ip


# --- BIRD ---------------------------------------------------------------------------------------------------------


def _bird(lab: Topology, router: Router) -> Iterator[str]:
    yield f"# {router.name}, AS {router.as_number}: passes on what it hears of pods' networks."
    yield "log stderr all;"
    yield f"router id {router_id(router)};"
    yield "protocol device { scan time 2; }"
    yield "protocol direct { ipv4; ipv6; }  # so that next hops can be resolved"
    for version in (4, 6):
        yield f"protocol kernel kernel{version} {{"
        yield "  merge paths on;"
        yield f"  ipv{version} {{ import none; export where source = RTS_BGP; }};"
        yield "}"
    for one in neighbours(lab, router):
        yield from _bird_session(router, one)


def _bird_session(router: Router, one: Neighbour) -> Iterator[str]:
    yield f"protocol bgp {one.protocol} {{"
    yield f"  local {one.own} as {router.as_number};"
    yield f"  neighbor {one.ip} as {one.as_number};"
    yield "  direct;"
    yield "  graceful restart;"
    yield "  connect delay time 0; connect retry time 5; error wait time 1,5;"
    if one.node:
        yield "  passive on;"
        if one.internal:
            yield "  rr client;"
    yield f"  ipv{one.ip.version} {{ import all; export where source = RTS_BGP; }};"
    yield "}"


# --- FRR ----------------------------------------------------------------------------------------------------------


def _frr(lab: Topology, router: Router) -> Iterator[str]:
    yield f"hostname {router.name}"
    yield "log stdout informational"
    yield f"router bgp {router.as_number}"
    yield f" bgp router-id {router_id(router)}"
    yield " no bgp ebgp-requires-policy"
    yield " no bgp default ipv4-unicast"
    yield " bgp graceful-restart"
    every = list(neighbours(lab, router))
    for one in every:
        yield f" neighbor {one.ip} remote-as {one.as_number}"
        yield f" neighbor {one.ip} description {one.name}"
        yield f" neighbor {one.ip} timers connect 5"
        if one.node:
            yield f" neighbor {one.ip} passive"
    for version in (4, 6):
        yield f" address-family ipv{version} unicast"
        for one in every:
            if one.ip.version == version:
                yield f"  neighbor {one.ip} activate"
                if one.node and one.internal:
                    yield f"  neighbor {one.ip} route-reflector-client"
        yield " exit-address-family"
