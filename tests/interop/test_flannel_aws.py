"""aws-vpc against moto's EC2: what is in the route tables afterwards, and which calls it took."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from ec2 import REGION, Gate, Metadata, moto, needs_moto, serving
from tortie.base.errors import ConfigError, Unavailable
from tortie.flannel.aws.metadata import instance
from tortie.flannel.backend import Setting
from tortie.flannel.backends.aws_vpc import AwsVpc, backend
from tortie.flannel.config import Family, NetworkConfig
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.state import External, Place, Site

pytestmark = needs_moto

NETWORK, OWN = IPv4Network("10.20.0.0/16"), IPv4Network("10.20.5.0/24")
_vpcs = itertools.count(1)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with moto(tmp_path_factory.mktemp("moto") / "log") as port:
        yield port


class World:
    """A VPC with two instances, and the way there that a backend on the first has. `ec2` goes past the gate."""

    def __init__(self, port: int, stack: ExitStack, patch: pytest.MonkeyPatch) -> None:
        import boto3

        patch.setenv("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        self.ec2 = boto3.client("ec2", region_name=REGION, endpoint_url=f"http://127.0.0.1:{port}")
        self.prefix = f"172.{15 + next(_vpcs)}"
        self.vpc = self.ec2.create_vpc(CidrBlock=f"{self.prefix}.0.0/16")["Vpc"]["VpcId"]
        made = self.ec2.create_subnet(VpcId=self.vpc, CidrBlock=f"{self.prefix}.1.0/24")
        self.subnet = made["Subnet"]["SubnetId"]
        self.instance, self.eni = self.start(f"{self.prefix}.1.10")
        _, self.other = self.start(f"{self.prefix}.1.11")
        filters = [{"Name": "vpc-id", "Values": [self.vpc]}]
        self.main = self.ec2.describe_route_tables(Filters=filters)["RouteTables"][0]["RouteTableId"]
        self.gate = Gate(port)
        self.metadata = Metadata(self.instance)
        patch.setenv("AWS_ENDPOINT_URL_EC2", stack.enter_context(serving(self.gate.handler())))
        self.service = stack.enter_context(serving(self.metadata.handler()))
        patch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", self.service)
        self.patch = patch

    def start(self, address: str) -> tuple[str, str]:
        """An instance and its ENI."""
        wanted = {"ImageId": "ami-12c6146b", "MinCount": 1, "MaxCount": 1, "PrivateIpAddress": address}
        made = self.ec2.run_instances(SubnetId=self.subnet, **wanted)["Instances"][0]
        return made["InstanceId"], made["NetworkInterfaces"][0]["NetworkInterfaceId"]

    def table(self) -> str:
        """Another one."""
        found: str = self.ec2.create_route_table(VpcId=self.vpc)["RouteTable"]["RouteTableId"]
        return found

    def put(self, table: str, dst: str, eni: str) -> None:
        self.ec2.create_route(RouteTableId=table, DestinationCidrBlock=dst, NetworkInterfaceId=eni)

    def routes(self, table: str) -> dict[str, str]:
        """Destinations and ENIs of what is not the VPC's own."""
        (found,) = self.ec2.describe_route_tables(RouteTableIds=[table])["RouteTables"]
        routes = (route for route in found["Routes"] if route.get("GatewayId") != "local")
        return {route["DestinationCidrBlock"]: route["NetworkInterfaceId"] for route in routes}

    def checked(self, eni: str) -> bool:
        asked = {"NetworkInterfaceId": eni, "Attribute": "sourceDestCheck"}
        found: bool = self.ec2.describe_network_interface_attribute(**asked)["SourceDestCheck"]["Value"]
        return found

    def place(self, address: str = "") -> Place:
        family = Family(NETWORK, 24, IPv4Address("10.20.1.0"), IPv4Address("10.20.255.0"))
        config = NetworkConfig(family, None, "aws-vpc", {"Type": "aws-vpc"})
        own = IPv4Address(address or f"{self.prefix}.1.10")
        return Place(Site(config, External("eth0", 2, 9001, own), own), Lease(OWN, None, Attrs(own)))

    async def begun(self, tables: object = None, every: float = 0.0) -> AwsVpc:
        """Every call of `carry_out` looks, unless told otherwise."""
        made = AwsVpc(tuple(tables) if isinstance(tables, list) else (), every)
        published = await made.begin(self.place().site, None)
        assert (published.data, published.data6) == (None, None)
        return made


@pytest.fixture
def world(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(port, stack, monkeypatch)


async def test_126_a_dead_route_goes_the_own_one_comes_and_the_check_is_off(world: World) -> None:
    world.put(world.main, "10.20.3.0/24", world.other)
    world.put(world.main, "10.99.0.0/24", world.other)
    world.gate.dead |= {"10.20.3.0/24", "10.99.0.0/24"}
    assert world.checked(world.eni)
    made = await world.begun()
    assert await made.carry_out(world.place(), ()) == []
    assert world.routes(world.main) == {"10.99.0.0/24": world.other, "10.20.5.0/24": world.eni}
    assert not world.checked(world.eni)
    assert world.checked(world.other)
    assert world.gate.taken() == ["ModifyNetworkInterfaceAttribute", "DeleteRoute", "CreateRoute"]


async def test_what_is_right_is_only_looked_at(world: World) -> None:
    made = await world.begun()
    await made.carry_out(world.place(), ())
    world.gate.taken()
    assert await made.carry_out(world.place(), ()) == []
    assert world.gate.calls
    assert world.gate.taken() == []


async def test_a_stolen_route_is_replaced_in_one_call(world: World) -> None:
    world.put(world.main, str(OWN), world.other)
    made = await world.begun()
    assert await made.carry_out(world.place(), ()) == []
    assert world.routes(world.main) == {str(OWN): world.eni}
    assert world.gate.taken() == ["ModifyNetworkInterfaceAttribute", "ReplaceRoute"]


async def test_a_route_that_was_taken_away_comes_back_at_the_next_look_and_not_before(world: World) -> None:
    made = await world.begun(every=3600.0)
    await made.carry_out(world.place(), ())
    world.ec2.delete_route(RouteTableId=world.main, DestinationCidrBlock=str(OWN))
    world.gate.calls.clear()
    for _ in range(3):
        await made.carry_out(world.place(), ())
    assert world.gate.calls == []
    again = await world.begun()
    await again.carry_out(world.place(), ())
    world.ec2.delete_route(RouteTableId=world.main, DestinationCidrBlock=str(OWN))
    await again.carry_out(world.place(), ())
    assert world.routes(world.main) == {str(OWN): world.eni}


async def test_several_tables(world: World) -> None:
    one, two = world.table(), world.table()
    made = await world.begun([one, two])
    assert await made.carry_out(world.place(), ()) == []
    assert [world.routes(table) for table in (one, two, world.main)] == [{str(OWN): world.eni}] * 2 + [{}]


async def test_a_subnet_with_a_table_of_its_own(world: World) -> None:
    own = world.table()
    made = await world.begun()
    await made.carry_out(world.place(), ())
    world.ec2.associate_route_table(RouteTableId=own, SubnetId=world.subnet)
    await made.carry_out(world.place(), ())
    assert world.routes(own) == {str(OWN): world.eni}


async def test_a_table_that_is_not_there(world: World) -> None:
    with pytest.raises(ConfigError, match=r"Backend\.RouteTableID: rtb-0123: there is no such route table"):
        await world.begun(["rtb-0123"])


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("UnauthorizedOperation", "add ec2:CreateRoute to the IAM role of this instance (The gate says no.)"),
        ("RouteLimitExceeded", "it has no room for another route (50 unless the quota is raised)"),
    ],
)
async def test_what_the_cloud_refuses_is_told_until_it_does_not(world: World, code: str, says: str) -> None:
    made = await world.begun()
    world.gate.refused["CreateRoute"] = code
    (line,) = await made.carry_out(world.place(), ())
    assert line.startswith(f"{world.main}: ")
    assert says in line
    world.gate.refused.clear()
    assert await made.carry_out(world.place(), ()) == []
    assert world.routes(world.main) == {str(OWN): world.eni}


async def test_a_check_that_stays_on_is_a_line_and_the_route_is_made(world: World) -> None:
    world.gate.refused["ModifyNetworkInterfaceAttribute"] = "UnauthorizedOperation"
    made = await world.begun()
    (line,) = await made.carry_out(world.place(), ())
    assert line.startswith("failed to disable SourceDestCheck, so that the cloud drops pods' packets: ")
    assert "add ec2:ModifyNetworkInterfaceAttribute" in line
    assert world.routes(world.main) == {str(OWN): world.eni}
    world.ec2.modify_network_interface_attribute(NetworkInterfaceId=world.eni, SourceDestCheck={"Value": False})
    assert await made.carry_out(world.place(), ()) == []


async def test_an_address_that_no_eni_has(world: World) -> None:
    made = AwsVpc(())
    with pytest.raises(ConfigError, match=r"unable to find ENI that matches the 192\.0\.2\.9 IP address\. Instance i-"):
        await made.begin(world.place("192.0.2.9").site, None)


async def test_a_node_that_begins_anew_with_another_address(world: World) -> None:
    made = await world.begun(every=3600.0)
    await made.carry_out(world.place(), ())
    world.metadata.instance, other = world.start(f"{world.prefix}.1.12")
    place = world.place(f"{world.prefix}.1.12")
    await made.begin(place.site, None)
    assert await made.carry_out(place, ()) == []
    assert world.routes(world.main) == {str(OWN): other}


async def test_the_backend_of_a_configuration(world: World) -> None:
    config = NetworkConfig(world.place().site.config.v4, None, "aws-vpc", {"RouteTableID": [world.main]})
    made: Any = backend(config, Setting())
    assert (made.published_type, made.versions, made.watches, made.mtu(world.place().site)) == ("", {4}, False, 9001)
    await made.begin(world.place().site, None)
    assert await made.carry_out(world.place(), ()) == []
    assert world.routes(world.main) == {str(OWN): world.eni}


# --- who this is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["required", "optional", "unknown"])
async def test_both_versions_of_the_metadata_service(world: World, tokens: str) -> None:
    world.metadata.tokens = tokens
    found = await instance({"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"{world.service}/"})
    assert (found.id, found.region) == (world.instance, REGION)


async def test_credentials_of_the_instances_role(world: World, tmp_path: Any) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        world.patch.delenv(name)
    world.patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    world.patch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="attach an IAM role to this instance"):
        await world.begun()
    world.metadata.role = "node"
    await world.begun()
    assert world.gate.signers == {"AKIAROLE"}


async def test_no_metadata_service() -> None:
    with pytest.raises(Unavailable, match=r"service at http://127\.0\.0\.1:9 does not answer: .*is this an EC2"):
        await instance({"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"})
    with pytest.raises(ConfigError, match="AWS_EC2_METADATA_DISABLED: aws-vpc has to ask which instance this is"):
        await instance({"AWS_EC2_METADATA_DISABLED": "true"})


@pytest.mark.parametrize("endpoint", ["169.254.169.254", "http://[::1", "http://127.0.0.1:99999", "ftp://127.0.0.1"])
async def test_a_metadata_service_that_is_no_url(endpoint: str) -> None:
    text = f'AWS_EC2_METADATA_SERVICE_ENDPOINT: "{endpoint}" is not a URL such as http://169.254.169.254'
    with pytest.raises(ConfigError) as caught:
        await instance({"AWS_EC2_METADATA_SERVICE_ENDPOINT": endpoint})
    assert str(caught.value) == text
