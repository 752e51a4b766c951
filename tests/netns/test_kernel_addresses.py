"""Addresses of both families, read back with `ip -j` and with pyroute2."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyroute2 import NetNS

from tortie.base.errors import ConfigError, Exists, NotFound
from tortie.kernel import addresses, links
from tortie.kernel.addresses import AddressFlag
from tortie.kernel.netlink import Netlink

pytestmark = pytest.mark.root

FAMILIES = pytest.mark.parametrize(
    ("family", "ip", "length"),
    [pytest.param("inet", "10.0.0.1", 24, id="ipv4"), pytest.param("inet6", "fd00::1", 64, id="ipv6")],
)


@pytest.fixture
def nl(ns) -> Iterator[Netlink]:
    ns.ip("link", "add", "name", "eth0", "type", "veth", "peer", "name", "eth1")
    with Netlink(ns.path) as nl:
        yield nl


@pytest.fixture
def index(nl) -> int:
    return links.link_index(nl, "eth0")


def shown(ns, dev: str = "eth0") -> list[dict]:
    return [item for item in ns.json("address", "show", "dev", dev)[0]["addr_info"] if item["scope"] != "link"]


@FAMILIES
def test_add_and_delete(ns, nl, index, family: str, ip: str, length: int) -> None:
    addresses.add_address(nl, index, f"{ip}/{length}", nodad=True)
    (there,) = shown(ns)
    assert (there["family"], there["local"], there["prefixlen"], there["scope"]) == (family, ip, length, "global")
    (ours,) = addresses.list_addresses(nl, index)
    assert (ours.index, ours.ip, ours.scope, ours.peer, ours.usable) == (index, f"{ip}/{length}", "global", "", True)
    with NetNS(ns.name) as oracle:
        found = [address.get_attr("IFA_ADDRESS") for address in oracle.get_addr(index=index)]
    assert found == [ip]
    addresses.delete_address(nl, index, f"{ip}/{length}")
    assert shown(ns) == []


@FAMILIES
def test_host_prefix_scope_and_no_prefix_route(ns, nl, index, family: str, ip: str, length: int) -> None:
    addresses.add_address(nl, index, ip, scope="link", noprefixroute=True)
    (there,) = ns.json("address", "show", "dev", "eth0")[0]["addr_info"]
    assert (there["local"], there["prefixlen"], there["noprefixroute"]) == (ip, 32 if family == "inet" else 128, True)
    assert there["scope"] == ("link" if family == "inet" else "global")  # IPv6 reads the scope from the address
    (ours,) = addresses.list_addresses(nl, index)
    assert ours.flags & AddressFlag.NOPREFIXROUTE
    assert ours.scope == there["scope"]


@pytest.mark.parametrize(
    ("ip", "peer"),
    [pytest.param("10.0.0.1/32", "10.9.9.9/32", id="ipv4"), pytest.param("fd00::1/128", "fd09::9/128", id="ipv6")],
)
def test_peer(ns, nl, index, ip: str, peer: str) -> None:
    addresses.add_address(nl, index, ip, peer=peer)
    (there,) = shown(ns)
    assert f"{there['address']}/{there['prefixlen']}" == peer
    (ours,) = addresses.list_addresses(nl, index)
    assert (ours.ip, ours.peer) == (ip, peer)
    addresses.delete_address(nl, index, ip, peer=peer)
    assert shown(ns) == []


@FAMILIES
def test_there_already_and_not_there(nl, index, family: str, ip: str, length: int) -> None:
    text = f"{ip}/{length}"
    addresses.add_address(nl, index, text)
    with pytest.raises(Exists, match=f"^ip address add {text} dev if{index} scope global: "):
        addresses.add_address(nl, index, text)
    addresses.add_address(nl, index, text, replace=True)
    addresses.delete_address(nl, index, text)
    with pytest.raises(NotFound, match=f"^ip address delete {text} dev if{index}: "):
        addresses.delete_address(nl, index, text)
    with pytest.raises(NotFound):
        addresses.add_address(nl, 4711, text)
    assert addresses.list_addresses(nl, 4711) == []


@pytest.mark.parametrize("text", ["10.0.0.1/33", "10.0.0/24", "fd00::1/129", "fd00:::1/64", "10.0.0.1/x", "", "eth0"])
def test_what_is_no_address(nl, index, text: str) -> None:
    with pytest.raises(ConfigError):
        addresses.add_address(nl, index, text)
    assert addresses.list_addresses(nl, index) == []


def test_duplicate_detection_unless_told_not_to(ns, nl, index) -> None:
    ns.ip("link", "set", "eth0", "up")
    ns.ip("link", "set", "eth1", "up")
    addresses.add_address(nl, index, "fd00::1/64")
    addresses.add_address(nl, index, "fd00::2/64", nodad=True)
    usable = {address.ip: address.usable for address in addresses.list_addresses(nl, index)}
    assert (usable["fd00::1/64"], usable["fd00::2/64"]) == (False, True)


def test_listing_agrees_with_ip(ns, nl, index) -> None:
    for number in range(1, 40):
        addresses.add_address(nl, index, f"10.0.{number}.1/24")
        addresses.add_address(nl, index, f"fd00:{number:x}::1/64")
    there = {
        (link["ifindex"], f"{item['local']}/{item['prefixlen']}", item["scope"])
        for link in ns.json("address")
        for item in link["addr_info"]
    }
    assert {(address.index, address.ip, address.scope) for address in addresses.list_addresses(nl)} == there
    assert len(addresses.list_addresses(nl, index)) == 78
