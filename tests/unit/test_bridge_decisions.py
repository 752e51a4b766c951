"""What the plugins `bridge` and `ptp` decide before they do anything."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tortie.base.errors import ConfigError
from tortie.cni import masquerade, nftables, spoof, veth
from tortie.cni.attachments import all_of, valid_attachments
from tortie.cni.bridge_ports import Port, read_port, read_trunk
from tortie.cni.plugins import bridge, ptp
from tortie.cni.result import Address, Result, Route
from tortie.cni.span import cidr
from tortie.cni.spec import Call, CniError, read_call
from tortie.kernel.bridge_vlans import Vlan


def call(command: str = "ADD", **members: Any) -> Call:
    env = {"CNI_COMMAND": command, "CNI_CONTAINERID": "ctr1", "CNI_NETNS": "/n", "CNI_IFNAME": "eth0", "CNI_PATH": "/p"}
    conf = {"cniVersion": "1.1.0", "name": "net1", "type": "bridge", **members}
    return read_call(env, json.dumps(conf).encode())


# --- VLANs ----------------------------------------------------------------------------------------------------------


def test_trunk() -> None:
    assert read_trunk([{"minID": 200, "maxID": 202}, {"id": 300}, {"minid": 7, "MAXID": 7, "id": 200}]) == (
        *(7, 200, 201, 202),
        300,
    )
    assert read_trunk([{}]) == ()
    for wrong in (["a"], [{"id": "5"}]):
        with pytest.raises(CniError, match="failed to load netconf"):
            read_trunk(wrong)


def test_vlans_of_a_port() -> None:
    own = {"pvid": True, "untagged": True}
    assert Port().vlans == ()
    assert Port(vlan=5).vlans == (Vlan(5, **own),)
    assert Port(trunk=(1, 7)).vlans == (Vlan(7), Vlan(1, **own))
    assert Port(vlan=7, trunk=(1, 7)).vlans == (Vlan(1), Vlan(7, **own))
    assert read_port({"VLAN": 4094, "hairpinmode": True}) == Port(hairpin=True, vlan=4094)


# --- gateways -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "in_the_way"),
    [
        ([], []),
        (["10.1.2.1/24"], []),
        (["10.9.9.9/8", "10.1.2.1/24"], []),
        (["192.0.2.1/24", "10.1.2.1/25"], ["192.0.2.1/24", "10.1.2.1/25"]),
        (["fd00::1/64"], []),
    ],
)
def test_conflicts_of_ipv4(there: list[str], in_the_way: list[str]) -> None:
    found = bridge.conflicts(cidr("10.1.2.1/24"), [cidr(each) for each in there])
    assert [str(each) for each in found] == in_the_way


def test_conflicts_of_ipv6() -> None:
    there = [cidr(each) for each in ("fd00:1::1/64", "fd00:2::1/64", "fd00::/16", "10.1.2.1/24")]
    assert [str(each) for each in bridge.conflicts(cidr("fd00:1::7/80"), there)] == ["fd00:1::1/64", "fd00::/16"]


def gateways(**members: Any) -> bridge.Settings:
    return bridge.settings(call(ipam={"type": "host-local"}, **members))


def test_gateways() -> None:
    ipam = Result(ips=(Address("10.1.2.5/24"), Address("10.1.2.6/24"), Address("fd00::5/64", "fd00::9")))
    plain = bridge.with_gateways(ipam, gateways())
    assert plain == ipam
    found = bridge.with_gateways(ipam, gateways(isGateway=True))
    assert [each.gateway for each in found.ips] == ["10.1.2.1", "10.1.2.1", "fd00::9"]
    assert [str(each) for each in bridge.gateways(found)] == ["10.1.2.1/24", "fd00::9/64"]
    assert found.routes == ()
    found = bridge.with_gateways(ipam, gateways(isDefaultGateway=True))
    assert found.routes == (Route("0.0.0.0/0", "10.1.2.1"), Route("::/0", "fd00::9"))


def test_default_routes() -> None:
    """One with a gateway is enough; one without gets it, with all else that it has; one in another table is another."""
    other, bare = Route("10.9.0.0/16"), Route("0.0.0.0/0", mtu=1400)
    want = gateways(isDefaultGateway=True)

    def routes(*given: Route) -> tuple[Route, ...]:
        return bridge.with_gateways(Result(ips=(Address("10.1.2.5/24"),), routes=given), want).routes

    assert routes(other, bare) == (other, Route("0.0.0.0/0", "10.1.2.1", mtu=1400))
    through = Route("0.0.0.0/0", "10.1.2.99")
    assert routes(through) == (through,)
    elsewhere = Route("0.0.0.0/0", table=100)
    assert routes(elsewhere) == (elsewhere, Route("0.0.0.0/0", "10.1.2.1"))


def test_ways_of_ptp() -> None:
    ips = (Address("10.1.2.5/24", "10.1.2.1"), Address("10.1.2.6/24", "10.1.2.1"), Address("10.7.7.7/32", "10.1.2.1"))
    found = ptp.to_gateway(Result(ips=ips), 3)
    assert [str(each) for each in found] == [
        "route 10.1.2.1/32 dev if3 src 10.1.2.5",
        "route 10.1.2.0/24 via 10.1.2.1 dev if3 src 10.1.2.5",
    ]
    given = Result(
        ips=(*ips, Address("fd00::5/64", "fd00::1")), routes=(Route("::/0"), Route("10.9.0.0/16", "10.1.2.9"))
    )
    assert ptp.with_ways(given).routes == (Route("::/0", "fd00::1"), Route("10.9.0.0/16", "10.1.2.9"))


# --- names and notes ------------------------------------------------------------------------------------------------


def test_notes_of_rules() -> None:
    assert masquerade.identity("net1", "eth0", "ctr1") == "8e48f37d5de60467-7883a6f9ce71eedb"
    assert nftables.quoted('a"b"' + "c" * 200) == '"ab' + "c" * 126 + '"'
    assert nftables.quoted("é" * 100) == '"' + "é" * 64 + '"'
    assert spoof.identity("ctr1", "eth0") == "ctr1-eth0"
    for container, ifname in (("ctr1", "eth@0"), ("c" * 120, "eth0"), ("ctr1", "ethé")):
        assert len(spoof.identity(container, ifname)) == 32
    assert veth.alias("net1", "ctr1", "eth0") == "cni net1 ctr1 eth0"
    assert veth.alias("n" * 250, "ctr1", "eth0") == ""


@pytest.mark.parametrize(("mac", "wanted"), [("", ""), ("C2-11-22-33-44-55", "c2:11:22:33:44:55")])
def test_mac(mac: str, wanted: str) -> None:
    assert veth.asked_mac(call(runtimeConfig={"mac": mac})) == wanted


@pytest.mark.parametrize("mac", ["zz", "c2:11:22:33:44", "c2:11:22:33:44:5", "c2:11:22:33:44:555", "c2:11:22:33:44:-5"])
def test_no_mac(mac: str) -> None:
    with pytest.raises(CniError, match=f"address {mac}: invalid MAC address"):
        veth.asked_mac(call(args={"cni": {"mac": mac}}))


# --- the list of GC, and the steps of DEL ---------------------------------------------------------------------------


def test_valid_attachments() -> None:
    listed = [{"containerID": "a", "ifname": "eth0"}, {"containerid": "b", "IFNAME": "net1"}]
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        assert valid_attachments(call("GC", **{key: listed})) == {("a", "eth0"), ("b", "net1")}
        assert valid_attachments(call("GC", **{key: None})) == frozenset()
    for wrong in ({}, {"cni.dev/valid-attachments": "a"}, {"cni.dev/valid-attachments": [{"containerID": "a"}]}):
        with pytest.raises(ConfigError, match=r"cni\.dev/valid-attachments"):
            valid_attachments(call("GC", **wrong))


def test_all_steps(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    def fails(text: str) -> None:
        raise CniError(999, text)

    with pytest.raises(CniError, match="first"):
        all_of(lambda: done.append("a"), lambda: fails("first"), lambda: done.append("b"), lambda: fails("second"))
    assert done == ["a", "b"]
    assert capsys.readouterr().err == "second\n"
