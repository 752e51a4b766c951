"""Route tables of a VPC: what is in them, and what leads to a way to this node's subnet. Decisions on values.

    RouteTableID ─► Wanted ──┐
    DescribeRouteTables ─► Table ─► steps: replace, create, delete ─► the cloud
    own subnet, own ENI ─────┘

A route that is right already is left alone, and one that leads elsewhere is replaced: never deleted and made again,
which would lose packets in between. Source: flannel's aws-vpc backend and the EC2 API.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from tortie.base.errors import ConfigError

LOCAL = "local"
"""The target of the routes to the VPC's own networks."""
PROPAGATED = "EnableVgwRoutePropagation"
"""The origin of routes that a gateway put there; a route of ours goes before them, and they cannot be changed."""
TARGETS = (
    "NetworkInterfaceId",
    "InstanceId",
    "GatewayId",
    "NatGatewayId",
    "TransitGatewayId",
    "VpcPeeringConnectionId",
    "EgressOnlyInternetGatewayId",
    "LocalGatewayId",
    "CarrierGatewayId",
    "CoreNetworkArn",
)
"""Of a route in the API's answer; an ENI goes before the instance that it is of."""
UNEXPECTED = "Unexpected RouteTableID type. Must be string or array of strings."
_TABLE_ID = re.compile(r"rtb-[0-9a-z]+")


@dataclass(frozen=True, slots=True)
class Eni:
    """A network interface of an instance. `checked`: the cloud drops packets that are not from or to its addresses."""

    id: str
    subnet: str
    vpc: str
    addresses: tuple[IPv4Address, ...]
    checked: bool


@dataclass(frozen=True, slots=True)
class Route:
    """To an IPv4 network. `blackhole`: what it leads to is gone. `propagated`: a gateway put it there."""

    dst: IPv4Network
    target: str
    blackhole: bool = False
    propagated: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    id: str
    routes: tuple[Route, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One call: `verb` is `replace`, `create` or `delete`. `before` is where the route led until now, for people."""

    verb: str
    table: str
    dst: IPv4Network
    eni: str = ""
    before: str = ""

    @property
    def action(self) -> str:
        """As policies of IAM and the API name it."""
        return f"{self.verb.capitalize()}Route"

    def __str__(self) -> str:
        target = f" --network-interface-id {self.eni}" if self.eni else ""
        return f"aws ec2 {self.verb}-route --route-table-id {self.table} --destination-cidr-block {self.dst}{target}"


def wanted_tables(found: object) -> tuple[str, ...]:
    """What `Backend.RouteTableID` says; () has them detected. Raises ConfigError."""
    ids = (found,) if isinstance(found, str) else found
    if ids is None or found == "":
        return ()
    if not isinstance(ids, Sequence) or not all(isinstance(one, str) for one in ids):
        raise ConfigError(UNEXPECTED, "Backend.RouteTableID")
    for one in ids:
        if not _TABLE_ID.fullmatch(one):
            raise ConfigError(f'"{one}" is not the ID of a route table, such as rtb-0a1b2c3d', "Backend.RouteTableID")
    return tuple(dict.fromkeys(ids))


def find_eni(enis: Sequence[Eni], ip: IPv4Address, instance: str) -> Eni:
    """That which has the external interface's own address. Raises ConfigError."""
    for eni in enis:
        if ip in eni.addresses:
            return eni
    has = ", ".join(str(address) for eni in enis for address in eni.addresses) or "none"
    text = f"Instance {instance} has {has}: choose the interface by --iface"
    raise ConfigError(f"unable to find ENI that matches the {ip} IP address. {text}")


def steps(table: Table, subnet: IPv4Network, eni: str, network: IPv4Network) -> tuple[Step, ...]:
    """A new route comes after the dead ones have gone: they may be what a full table is full of."""
    dead = tuple(
        Step("delete", table.id, route.dst, before=route.target)
        for route in table.routes
        if route.blackhole and not route.propagated and route.dst.subnet_of(network) and route.dst != subnet
    )
    own = [route for route in table.routes if route.dst == subnet and not route.propagated]
    if not own:
        return (*dead, Step("create", table.id, subnet, eni))
    if own[0].target == eni and not own[0].blackhole:
        return dead
    return (Step("replace", table.id, subnet, eni, own[0].target), *dead)


def overlaps(table: Table, network: IPv4Network) -> Iterator[str]:
    """Lines: the network takes, or is taken, addresses of the VPC itself."""
    for route in table.routes:
        if route.target == LOCAL and route.dst.overlaps(network):
            yield (
                f"the network {network} overlaps {route.dst}, which is the VPC's own ({table.id}): packets to these "
                "addresses go astray; choose another Network"
            )


# --- the API's answers --------------------------------------------------------------------------------------------


def read_enis(answer: Mapping[str, Any]) -> tuple[Eni, ...]:
    """Of DescribeInstances."""
    return tuple(
        Eni(
            eni["NetworkInterfaceId"],
            eni.get("SubnetId", ""),
            eni.get("VpcId", ""),
            tuple(IPv4Address(one["PrivateIpAddress"]) for one in eni.get("PrivateIpAddresses", ())),
            bool(eni.get("SourceDestCheck", True)),
        )
        for reservation in answer.get("Reservations", ())
        for instance in reservation.get("Instances", ())
        for eni in instance.get("NetworkInterfaces", ())
    )


def read_tables(answer: Mapping[str, Any]) -> tuple[Table, ...]:
    """Of DescribeRouteTables. Routes to IPv6 networks and prefix lists are not looked at."""
    return tuple(
        Table(table["RouteTableId"], tuple(_read_route(route) for route in table.get("Routes", ()) if _is_v4(route)))
        for table in answer.get("RouteTables", ())
    )


def _is_v4(route: Mapping[str, Any]) -> bool:
    return bool(route.get("DestinationCidrBlock"))


def _read_route(route: Mapping[str, Any]) -> Route:
    return Route(
        IPv4Network(route["DestinationCidrBlock"], strict=False),
        next((str(route[key]) for key in TARGETS if route.get(key)), ""),
        route.get("State") == "blackhole",
        route.get("Origin") == PROPAGATED,
    )
