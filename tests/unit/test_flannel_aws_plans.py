"""aws-vpc's decisions: what a route table needs, what its option may say, and what a refusal tells people to do."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from tortie.base.errors import ConfigError, NotFound, Unavailable
from tortie.flannel.aws.refusals import refusal
from tortie.flannel.aws.tables import (
    Eni,
    Route,
    Table,
    find_eni,
    overlaps,
    read_enis,
    read_tables,
    steps,
    wanted_tables,
)
from tortie.flannel.backend import Setting
from tortie.flannel.backends.aws_vpc import backend
from tortie.flannel.config import NetworkConfig

NETWORK = IPv4Network("10.20.0.0/16")
OWN = IPv4Network("10.20.5.0/24")
LOCAL = Route(IPv4Network("172.31.0.0/16"), "local")


def route(dst: str, target: str = "eni-other", **more: Any) -> Route:
    return Route(IPv4Network(dst), target, **more)


def planned(*routes: Route) -> list[str]:
    return [
        str(step).removeprefix("aws ec2 ").replace(" --route-table-id rtb-1 --destination-cidr-block", "")
        for step in steps(Table("rtb-1", (LOCAL, *routes)), OWN, "eni-own", NETWORK)
    ]


def test_a_step_prints_as_what_one_would_type() -> None:
    (step,) = steps(Table("rtb-1", ()), OWN, "eni-own", NETWORK)
    text = "aws ec2 create-route --route-table-id rtb-1 --destination-cidr-block 10.20.5.0/24"
    assert str(step) == f"{text} --network-interface-id eni-own"
    assert step.action == "CreateRoute"


def test_126_a_dead_route_goes_and_the_own_one_comes() -> None:
    dead = route("10.20.3.0/24", blackhole=True)
    assert planned(dead) == ["delete-route 10.20.3.0/24", "create-route 10.20.5.0/24 --network-interface-id eni-own"]


def test_what_is_right_is_left_alone() -> None:
    assert planned(route("10.20.5.0/24", "eni-own"), route("10.20.6.0/24")) == []


@pytest.mark.parametrize("there", [route("10.20.5.0/24"), route("10.20.5.0/24", "eni-own", blackhole=True)])
def test_what_leads_elsewhere_or_nowhere_is_replaced_and_never_deleted(there: Route) -> None:
    assert planned(there) == ["replace-route 10.20.5.0/24 --network-interface-id eni-own"]


@pytest.mark.parametrize(
    "dead",
    [
        route("10.21.3.0/24", blackhole=True),  # nobody of this network's
        route("10.16.0.0/12", blackhole=True),  # larger than the network
        route("10.20.3.0/24", blackhole=True, propagated=True),  # a gateway's, which cannot be deleted
        route("10.20.3.0/24"),  # alive
    ],
)
def test_routes_that_are_not_dead_nodes_stay(dead: Route) -> None:
    assert planned(dead, route("10.20.5.0/24", "eni-own")) == []


def test_a_propagated_route_cannot_be_replaced_and_a_route_of_ours_goes_before_it() -> None:
    there = route("10.20.5.0/24", "vgw-1", propagated=True)
    assert planned(there) == ["create-route 10.20.5.0/24 --network-interface-id eni-own"]


def test_a_network_that_overlaps_the_vpc() -> None:
    assert list(overlaps(Table("rtb-1", (LOCAL,)), NETWORK)) == []
    (line,) = overlaps(Table("rtb-1", (LOCAL,)), IPv4Network("172.16.0.0/12"))
    assert "172.16.0.0/12 overlaps 172.31.0.0/16, which is the VPC's own (rtb-1)" in line


@pytest.mark.parametrize(
    ("found", "tables"),
    [
        (None, ()),
        ("", ()),
        ([], ()),
        ("rtb-0a1b2c3d", ("rtb-0a1b2c3d",)),
        (["rtb-1", "rtb-2", "rtb-1"], ("rtb-1", "rtb-2")),
    ],
)
def test_route_table_ids(found: object, tables: tuple[str, ...]) -> None:
    assert wanted_tables(found) == tables


@pytest.mark.parametrize("found", [5, True, {"id": "rtb-1"}, ["rtb-1", 5], [None]])
def test_127_route_table_ids_of_another_type(found: object) -> None:
    text = "Backend.RouteTableID: Unexpected RouteTableID type. Must be string or array of strings."
    config = NetworkConfig(None, None, "aws-vpc", {"Type": "aws-vpc", "RouteTableID": found})
    with pytest.raises(ConfigError) as caught:
        backend(config, Setting())
    assert str(caught.value) == text


def test_an_id_of_something_else() -> None:
    with pytest.raises(ConfigError, match=r'"subnet-1" is not the ID of a route table, such as rtb-0a1b2c3d'):
        wanted_tables("subnet-1")


def test_what_the_api_says_is_read() -> None:
    answer = {
        "RouteTables": [
            {
                "RouteTableId": "rtb-1",
                "Routes": [
                    {"DestinationCidrBlock": "172.31.0.0/16", "GatewayId": "local", "State": "active"},
                    {
                        "DestinationCidrBlock": "10.20.5.0/24",
                        "InstanceId": "i-1",
                        "InstanceOwnerId": "1",
                        "NetworkInterfaceId": "eni-1",
                        "Origin": "CreateRoute",
                        "State": "blackhole",
                    },
                    {"DestinationIpv6CidrBlock": "::/0", "GatewayId": "igw-1"},
                    {"DestinationPrefixListId": "pl-1", "GatewayId": "vpce-1"},
                    {
                        "DestinationCidrBlock": "10.9.0.0/16",
                        "GatewayId": "vgw-1",
                        "Origin": "EnableVgwRoutePropagation",
                    },
                ],
            }
        ]
    }
    dead, propagated = route("10.20.5.0/24", "eni-1", blackhole=True), route("10.9.0.0/16", "vgw-1", propagated=True)
    assert read_tables(answer) == (Table("rtb-1", (LOCAL, dead, propagated)),)


def test_an_eni_is_found_by_any_of_its_addresses() -> None:
    addresses = [{"PrivateIpAddress": "172.31.0.5"}, {"PrivateIpAddress": "172.31.0.6"}]
    eni = {"NetworkInterfaceId": "eni-1", "SubnetId": "subnet-1", "VpcId": "vpc-1", "PrivateIpAddresses": addresses}
    enis = read_enis({"Reservations": [{"Instances": [{"NetworkInterfaces": [eni]}]}]})
    second = IPv4Address("172.31.0.6")
    assert enis == (Eni("eni-1", "subnet-1", "vpc-1", (IPv4Address("172.31.0.5"), second), checked=True),)
    assert find_eni(enis, second, "i-1") is enis[0]
    with pytest.raises(ConfigError) as caught:
        find_eni(enis, IPv4Address("192.0.2.1"), "i-1")
    text = "unable to find ENI that matches the 192.0.2.1 IP address. Instance i-1 has 172.31.0.5, 172.31.0.6: "
    assert str(caught.value) == text + "choose the interface by --iface"


@pytest.mark.parametrize(
    ("code", "action", "kind", "says"),
    [
        ("UnauthorizedOperation", "CreateRoute", ConfigError, "rtb-1: CreateRoute is not allowed: add ec2:CreateRoute"),
        ("RouteLimitExceeded", "CreateRoute", ConfigError, 'raise the quota "Routes per route table" of VPC'),
        ("AuthFailure", "DescribeInstances", ConfigError, "attach an IAM role to this instance, and look at its clock"),
        (
            "InvalidRouteTableID.NotFound",
            "DescribeRouteTables",
            ConfigError,
            "Backend.RouteTableID: rtb-1: there is no",
        ),
        ("InvalidRoute.NotFound", "DeleteRoute", NotFound, "rtb-1: words"),
        ("InvalidParameterValue", "ReplaceRoute", NotFound, "rtb-1: words"),
        ("RequestLimitExceeded", "CreateRoute", Unavailable, "rtb-1: CreateRoute failed: RequestLimitExceeded: words"),
    ],
)
def test_refusals(code: str, action: str, kind: type[Exception], says: str) -> None:
    error = refusal(code, "words", action, "rtb-1")
    assert type(error) is kind
    assert says in str(error)
    assert "words" in str(error)


def test_without_the_extra_one_line_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['boto3'] = None\n"
        "import tortie.flannel.backends.aws_vpc\n"
        "from tortie.base.errors import NotSupported\n"
        "from tortie.flannel.aws.cloud import Cloud\n"
        "try: Cloud('eu-west-1')\n"
        "except NotSupported as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "aws-vpc needs the Python package boto3: pip install 'tortie[aws]'\n"
