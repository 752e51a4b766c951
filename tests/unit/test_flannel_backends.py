"""What vxlan, host-gw, ipip and alloc want of the kernel, as values: no kernel is asked here."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flannel_nodes import network_config, subnet6_of, subnet_of
from tortie.base.addr import IP
from tortie.base.errors import ConfigError
from tortie.flannel import backends
from tortie.flannel.backend import Backend, Published, Setting
from tortie.flannel.backends.vxlan import random_mac, remembered_mac, unicast_mac
from tortie.flannel.config import NetworkConfig
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.state import (
    Device,
    External,
    FarEnd,
    FlannelState,
    Ipip,
    Path,
    Place,
    Site,
    Vxlan,
)

OWN, OWN6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
ETH0 = External("eth0", 2, 1500, OWN, OWN6)
MACS = {n: f"02:00:00:00:00:{n:02x}" for n in range(1, 10)}


def data(n: int, vni: int = 1) -> str:
    return json.dumps({"VNI": vni, "VtepMAC": MACS[n]}, separators=(",", ":"))


def lease(n: int, **attrs: Any) -> Lease:
    """That of node n, of both IP versions."""
    own = Attrs(ip_address(f"192.0.2.{n}"), ip_address(f"2001:db8::{n}"), "vxlan", data(n), data(n))  # type: ignore[arg-type]
    return Lease(subnet_of(n), subnet6_of(n), replace(own, **attrs), node=f"node{n}")


def begun(
    config: NetworkConfig, remembered: Attrs | None = None, external: External = ETH0
) -> tuple[Backend, Place, Published]:
    """A backend that has begun, where it is, and what it says of itself. What was remembered spares it the kernel."""
    backend = backends.load(config, Setting())
    site = Site(config, external, external.ipv4 if config.v4 else None, external.ipv6 if config.v6 else None)
    published = asyncio.run(backend.begin(site, remembered or Attrs(data=data(1), data6=data(2))))
    return backend, Place(site, lease(1)), published


def wanted(config: NetworkConfig, leases: Sequence[Lease], ways: Mapping[IP, bool] | None = None) -> FlannelState:
    backend, place, _ = begun(config)
    return backend.want(place, leases, ways or {})


# --- vxlan --------------------------------------------------------------------------------------------------------


def test_vxlan_reaches_every_node_by_its_vtep() -> None:
    state = wanted(network_config("vxlan", v6=True), [lease(3), lease(4)])
    assert state.networks == (ip_network("10.5.0.0/16"), ip_network("fd00:5::/48"))
    assert state.devices == (
        Device("flannel.1", Vxlan(1, OWN, 2), 1450, MACS[1], (ip_interface("10.5.1.0/32"),)),
        Device("flannel-v6.1", Vxlan(1, OWN6, 2), 1430, MACS[2], (ip_interface("fd00:5:0:1::/128"),)),
    )
    assert state.far_ends == tuple(
        FarEnd(device, ip_address(f"{start}{n}{end}"), MACS[n], ip_address(f"{host}{n}"))
        for device, start, end, host in (
            ("flannel.1", "10.5.", ".0", "192.0.2."),
            ("flannel-v6.1", "fd00:5:0:", "::", "2001:db8::"),
        )
        for n in (3, 4)
    )
    assert state.paths == tuple(
        Path(subnet, device, subnet.network_address, onlink=True)
        for device, subnet_at in (("flannel.1", subnet_of), ("flannel-v6.1", subnet6_of))
        for subnet in (subnet_at(3), subnet_at(4))
    )
    assert state.problems == ()


@pytest.mark.parametrize(
    ("config", "says", "says6"),
    [
        (network_config("vxlan"), '{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}', None),
        (network_config("vxlan", v6=True, VNI=7), *(f'{{"VNI":7,"VtepMAC":"{MACS[n]}"}}' for n in (1, 2))),
        (network_config("vxlan", v4=False, v6=True), None, '{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}'),
    ],
)
def test_vxlan_publishes_exactly_what_flannel_does(config: NetworkConfig, says: str | None, says6: str | None) -> None:
    assert begun(config)[2] == Published(says, says6)


def test_options_of_vxlan_are_those_of_its_device() -> None:
    config = network_config("vxlan", vni=42, port=4789, MTU=1400, gbp=True, learning=True)
    backend, place, _ = begun(config)
    (device,) = backend.want(place, (), {}).devices
    assert (device.name, device.mtu) == ("flannel.42", 1350)
    assert device.kind == Vxlan(42, OWN, 2, 4789, learning=True, gbp=True)


@pytest.mark.parametrize(
    ("config", "mtu"),
    [
        (network_config("vxlan"), 1450),
        (network_config("vxlan", v6=True), 1430),
        (network_config("vxlan", v4=False, v6=True), 1430),
        (network_config("vxlan", MTU=1400), 1350),
        (network_config("vxlan", MTU=9000), 1450),
        (network_config("host-gw", v6=True), 1500),
        (network_config("ipip"), 1480),
        (network_config("alloc"), 1500),
    ],
)
def test_mtu_of_pods(config: NetworkConfig, mtu: int) -> None:
    backend, place, _ = begun(config)
    assert backend.mtu(place.site) == mtu


def test_an_mtu_that_the_interface_does_not_carry_is_told(caplog: pytest.LogCaptureFixture) -> None:
    begun(network_config("vxlan", MTU=9000))
    assert "Backend.MTU: 9000 is too much: 1500, which is what eth0 carries, is used" in caplog.text


def test_direct_routing_goes_past_the_tunnel_where_it_can() -> None:
    config = network_config("vxlan", DirectRouting=True)
    state = wanted(config, [lease(3), lease(4)], {ip_address("192.0.2.3"): True, ip_address("192.0.2.4"): False})
    assert state.paths == (
        Path(subnet_of(3), "eth0", ip_address("192.0.2.3")),
        Path(subnet_of(4), "flannel.1", ip_address("10.5.4.0"), onlink=True),
    )
    assert [end.host for end in state.far_ends] == [ip_address("192.0.2.4")]


def test_without_direct_routing_nobody_is_asked_for_ways() -> None:
    assert not begun(network_config("vxlan"))[0].asks_ways
    assert begun(network_config("vxlan", DirectRouting=True))[0].asks_ways
    state = wanted(network_config("vxlan"), [lease(3)], {ip_address("192.0.2.3"): True})
    assert [path.device for path in state.paths] == ["flannel.1"]


NOT_A_MAC = "is not the MAC address of a device"


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (lease(3, data=None), 'node3: its BackendData is missing, not {"VNI":1,"VtepMAC":"…"}'),
        (lease(3, data="null"), 'node3: its BackendData is null, not'),
        (lease(3, data="{"), "node3: its BackendData is {, not"),
        (lease(3, data='"x"'), 'node3: its BackendData is "x", not'),
        (lease(3, data='{"VNI":1}'), 'node3: its BackendData is {"VNI":1}, not'),
        (lease(3, data='{"VtepMAC":7}'), 'node3: its BackendData is {"VtepMAC":7}, not'),
        (lease(3, data='{"VtepMAC":""}'), f'node3: its VtepMAC "" {NOT_A_MAC}'),
        (lease(3, data='{"VtepMAC":"01:00:5e:00:00:01"}'), f'node3: its VtepMAC "01:00:5e:00:00:01" {NOT_A_MAC}'),
        (lease(3, data='{"VtepMAC":"00:00:00:00:00:00"}'), f'"00:00:00:00:00:00" {NOT_A_MAC}'),
        (lease(3, data=data(4)), "node3: its VtepMAC 02:00:00:00:00:04 is that of node node4, too: was one of the"),
        (lease(3, data=data(1)), "node3: its VtepMAC 02:00:00:00:00:01 is that of this node, too"),
        (lease(3, public_ip=None), "node3: its lease of 10.5.3.0/24 has no public IPv4 address"),
        (lease(3, public_ip=OWN), "node3: its public address 192.0.2.1 is this node's own"),
        (replace(lease(3), subnet=ip_network("10.6.3.0/24")), "its subnet 10.6.3.0/24 is outside of the network"),
        (replace(lease(3), subnet=subnet_of(1)), "node3: its subnet 10.5.1.0/24 overlaps this node's own 10.5.1.0/24"),
        (replace(lease(3), subnet=ip_network("10.5.0.0/23")), "node3: its subnet 10.5.0.0/23 overlaps this node's own"),
        (replace(lease(3), subnet=subnet_of(4)), "node3: its subnet 10.5.4.0/24 is that of node node4, too"),
        (replace(lease(3, data=None), node=""), "the node of 10.5.3.0/24: its BackendData is missing"),
    ],
)  # fmt: skip
def test_a_lease_that_is_no_good_is_told_and_keeps_nobody_else_away(other: Lease, problem: str) -> None:
    state = wanted(network_config("vxlan"), [lease(4), other, lease(5)])
    assert [path.dst for path in state.paths] == [subnet_of(4), subnet_of(5)]
    (said,) = state.problems
    assert problem in said


def test_a_lease_without_a_version_has_nothing_of_that_version() -> None:
    only4 = replace(lease(3, public_ipv6=None, data6=None), subnet6=None)
    state = wanted(network_config("vxlan", v6=True), [only4, lease(4)])
    assert [str(path.dst) for path in state.paths] == ["10.5.3.0/24", "10.5.4.0/24", "fd00:5:0:4::/64"]
    assert state.problems == ()


@pytest.mark.parametrize(
    ("config", "external", "problem"),
    [
        (network_config("vxlan", v6=True), replace(ETH0, ipv6=None), "eth0 has no IPv6 address for flannel-v6.1"),
        (network_config("vxlan", v6=True, VNI=10000), ETH0, "Backend.VNI: flannel-v6.10000 is too long for the name"),
        (network_config("vxlan", VNI=10000000), ETH0, "Backend.VNI: flannel.10000000 is too long for the name"),
        (network_config("vxlan", VNI=1 << 24), ETH0, "Backend.VNI: 16777216 is not a whole number from 0 to 16777215"),
        (network_config("vxlan", Port="8472"), ETH0, "Backend.Port: '8472' is not a whole number from 0 to 65535"),
        (network_config("vxlan", Learning=1), ETH0, "Backend.Learning: 1 is neither true nor false"),
        (network_config("vxlan", v6=True), replace(ETH0, mtu=1300), "flannel-v6.1 would have an MTU of 1230, and"),
        (network_config("ipip"), replace(ETH0, ipv4=None), "eth0 has no IPv4 address for flannel.ipip to send from"),
    ],
)  # fmt: skip
def test_what_cannot_begin_says_why(config: NetworkConfig, external: External, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        begun(config, external=external)
    assert problem in str(error.value)


def test_what_only_windows_knows_is_accepted(caplog: pytest.LogCaptureFixture) -> None:
    begun(network_config("vxlan", MacPrefix="0E-2A", Name="flannel", Nonsense=1))
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "Backend.MacPrefix: only has a meaning on Windows, without effect",
        "Backend.Name: only has a meaning on Windows, without effect",
        "Backend.Nonsense: is not an option of vxlan, without effect",
    ]


@given(st.binary(min_size=6, max_size=6))
def test_a_random_mac_is_of_one_device_and_of_nobody_s_making(octets: bytes) -> None:
    mac = random_mac(octets)
    assert unicast_mac(mac) == mac
    assert int(mac[:2], 16) & 3 == 2


simple = st.none() | st.booleans() | st.integers() | st.text(max_size=20)


@given(
    st.none()
    | st.text(max_size=20)
    | (simple | st.lists(simple) | st.fixed_dictionaries({"VtepMAC": simple})).map(json.dumps)
)
def test_whatever_was_remembered_does_not_keep_us_from_beginning(text: str | None) -> None:
    assert remembered_mac(text) is None


@pytest.mark.parametrize("written", ["02:00:00:00:00:AB", "02-00-00-00-00-ab", "02:00:00:00:00:ab"])
def test_a_mac_in_any_spelling_is_remembered(written: str) -> None:
    assert remembered_mac(json.dumps({"vtepmac": written})) == "02:00:00:00:00:ab"


# --- host-gw, ipip, alloc -----------------------------------------------------------------------------------------


def test_host_gw_routes_by_the_nodes_themselves() -> None:
    state = wanted(network_config("host-gw", v6=True), [lease(3, data=None, data6=None)])
    assert state.devices == state.far_ends == state.problems == ()
    assert state.paths == (
        Path(subnet_of(3), "eth0", ip_address("192.0.2.3")),
        Path(subnet6_of(3), "eth0", ip_address("2001:db8::3")),
    )


def test_host_gw_tells_of_a_node_behind_a_gateway_and_leaves_it_out() -> None:
    state = wanted(network_config("host-gw"), [lease(3), lease(4)], {ip_address("192.0.2.3"): False})
    assert [path.dst for path in state.paths] == [subnet_of(4)]
    assert state.problems == (
        "node node3: 192.0.2.3 is not reached out of eth0 without a gateway, so that host-gw has no way to "
        "10.5.3.0/24: use vxlan, which may have DirectRouting for the nodes that are",
    )


@pytest.mark.parametrize("version", [4, 6])
def test_host_gw_behind_nat_is_refused(version: int) -> None:
    config = network_config("host-gw", v6=True)
    site = Site(config, ETH0, OWN, OWN6)
    site = replace(site, public_ip=ip_address("203.0.113.7")) if version == 4 else replace(site, public_ipv6=None)
    with pytest.raises(ConfigError) as error:
        asyncio.run(backends.load(config, Setting()).begin(site, None))
    assert str(error.value).startswith(
        "your PublicIP differs from interface IP, meaning that probably you're on a NAT, "
        "which is not supported by host-gw backend"
    )


def test_ipip_tunnels_to_the_nodes_themselves() -> None:
    state = wanted(network_config("ipip"), [lease(3)], {ip_address("192.0.2.3"): True})
    assert state.devices == (Device("flannel.ipip", Ipip(OWN), 1480, addresses=(ip_interface("10.5.1.0/32"),)),)
    assert state.paths == (Path(subnet_of(3), "flannel.ipip", ip_address("192.0.2.3"), onlink=True),)
    direct = wanted(network_config("ipip", DirectRouting=True), [lease(3)], {ip_address("192.0.2.3"): True})
    assert direct.paths == (Path(subnet_of(3), "eth0", ip_address("192.0.2.3")),)


def test_alloc_wants_nothing_of_the_kernel() -> None:
    backend, place, published = begun(network_config("alloc", v6=True))
    assert (backend.published_type, backend.watches, published) == ("", False, Published())
    assert backend.want(place, (), {}) == FlannelState((ip_network("10.5.0.0/16"), ip_network("fd00:5::/48")))


@pytest.mark.parametrize(
    ("kind", "said"), [("vxlan", "vxlan"), ("host-gw", "host-gw"), ("ipip", "ipip"), ("alloc", "")]
)
def test_what_leases_say_of_their_backend(kind: str, said: str) -> None:
    assert begun(network_config(kind))[0].published_type == said


@settings(max_examples=20)
@given(st.permutations([lease(n) for n in range(3, 9)]))
def test_the_order_of_leases_makes_no_difference(leases: list[Lease]) -> None:
    for kind in ("vxlan", "host-gw", "ipip"):
        state, sorted_state = (
            wanted(network_config(kind), leases),
            wanted(network_config(kind), sorted(leases, key=str)),
        )
        assert set(state.paths) == set(sorted_state.paths)
        assert set(state.far_ends) == set(sorted_state.far_ends)
