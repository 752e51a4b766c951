"""The interface to the other nodes and this node's address on it: every way to name it, their order, what is said."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.base.addr import Net
from tortie.base.errors import ConfigError
from tortie.flannel.config import Family, NetworkConfig
from tortie.flannel.interface import NOTHING_MATCHES, Sight, choose
from tortie.flannel.options import parse
from tortie.flannel.state import External
from tortie.kernel.addresses import Address, AddressFlag
from tortie.kernel.links import Link

KEPT = AddressFlag.PERMANENT


def family(net: Net) -> Family:
    return Family(net, 24 if net.version == 4 else 64, net[0], net[-1])


V4, V6 = family(ip_network("10.244.0.0/16")), family(ip_network("fd00:10::/48"))
ONLY4, ONLY6, BOTH = NetworkConfig(V4, None, ""), NetworkConfig(None, V6, ""), NetworkConfig(V4, V6, "")

LO, ETH0, ETH1, CNI0 = (
    Link(1, "lo", mtu=65536),
    Link(2, "eth0", mtu=1500),
    Link(3, "eth1", mtu=9000),
    Link(4, "cni0", mtu=1450),
)
ADDRESSES = (
    Address(1, "127.0.0.1/8", "host", KEPT),
    Address(1, "::1/128", "host", KEPT),
    Address(2, "10.0.2.15/24", flags=KEPT),
    Address(2, "fe80::2/64", "link", KEPT),
    Address(2, "2001:db8::2/64", flags=KEPT),
    Address(3, "192.0.2.7/24", flags=KEPT),
    Address(3, "192.0.2.77/24", flags=KEPT | AddressFlag.SECONDARY),
    Address(3, "fe80::3/64", "link", KEPT),
    Address(4, "10.244.1.1/24", flags=KEPT),
)
MACHINE = Sight((LO, ETH0, ETH1, CNI0), ADDRESSES, {4: (2, 3), 6: (2,)})


def chosen(*words: str, config: NetworkConfig = ONLY4, sight: Sight = MACHINE) -> External:
    return choose(parse(words, {}), config, sight)


def refused(*words: str, config: NetworkConfig = ONLY4, sight: Sight = MACHINE) -> str:
    with pytest.raises(ConfigError) as caught:
        choose(parse(words, {}), config, sight)
    return str(caught.value)


def eth0(ipv4: str | None = "10.0.2.15", ipv6: str | None = None) -> External:
    return External("eth0", 2, 1500, *(text and ip_address(text) for text in (ipv4, ipv6)))


def eth1(ipv4: str | None = "192.0.2.7", ipv6: str | None = None) -> External:
    return External("eth1", 3, 9000, *(text and ip_address(text) for text in (ipv4, ipv6)))


# --- what is named ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-iface=eth1"], eth1()),
        (["-iface=192.0.2.7"], eth1()),
        (["-iface=192.0.2.77"], eth1("192.0.2.77")),
        (["-iface=wlan0", "-iface=192.0.2.99", "-iface=eth1"], eth1()),
        (["-iface-regex=^192"], eth1()),
        (["-iface-regex=^eth1$"], eth1()),
        (["-iface-regex=wlan", "-iface-regex=77$"], eth1("192.0.2.77")),
        (["-iface-regex=eth0", "-iface=eth1"], eth1()),  # every -iface comes before
        (["-iface-can-reach=198.51.100.1", "-iface-regex=eth0"], eth0()),
        (["-iface=eth1", "-public-ip=192.0.2.77"], eth1("192.0.2.77")),
        (["-iface=eth0", "-public-ip=198.51.100.9"], eth0()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_first_that_is_there(words: list[str], expected: External) -> None:
    assert chosen(*words) == expected


def test_an_expression_is_held_against_addresses_first_and_not_against_pods() -> None:
    assert chosen("-iface-regex=^10\\.") == eth0()
    only_pods = Sight((CNI0, ETH1), MACHINE.addresses)
    assert "matches none of cni0, eth1, nor an address" in refused("-iface-regex=^10\\.", sight=only_pods)
    assert chosen("-iface-regex=^cni", sight=only_pods).name == "cni0"  # whoever names it means it


def test_a_loopback_address_matches_no_expression() -> None:
    assert chosen("-iface-regex=.*1").name == "eth0"
    assert "failed to find IPv4 address for interface lo" in refused("-iface=lo")


def test_the_interface_to_an_address_and_what_packets_there_are_sent_from() -> None:
    there = Sight(MACHINE.links, MACHINE.addresses, {}, (3, ip_address("192.0.2.77")))
    assert chosen("-iface-can-reach=198.51.100.1", sight=there) == eth1("192.0.2.77")
    gone = Sight(MACHINE.links, MACHINE.addresses, {}, None, "ip route get 198.51.100.1: Network is unreachable")
    assert refused("-iface-can-reach=198.51.100.1", sight=gone) == (
        f"{NOTHING_MATCHES}: -iface-can-reach 198.51.100.1: ip route get 198.51.100.1: Network is unreachable"
    )


def test_nothing_that_is_named_is_there() -> None:
    assert refused("-iface=wlan0", "-iface=192.0.2.99", "-iface-regex=^wl") == (
        f"{NOTHING_MATCHES}: -iface wlan0: there is no such interface; "
        "-iface 192.0.2.99: No interface with given IP found; "
        "-iface-regex ^wl: matches none of lo, eth0, eth1, cni0, nor an address of theirs"
    )


# --- nothing is named ---------------------------------------------------------------------------------------------


def test_the_public_address_if_this_machine_has_it() -> None:
    assert chosen("-public-ip=192.0.2.77") == eth1("192.0.2.77")
    assert chosen("-public-ip=198.51.100.9") == eth0()  # that of a router which translates
    assert chosen("-public-ipv6=2001:db8::2", config=ONLY6) == eth0(None, "2001:db8::2")


def test_else_the_default_route() -> None:
    assert chosen() == eth0()
    assert chosen(config=ONLY6) == eth0(None, "2001:db8::2")
    assert chosen(config=BOTH) == eth0("10.0.2.15", "2001:db8::2")
    assert chosen(sight=Sight(MACHINE.links, ADDRESSES, {4: (3, 2)})) == eth1()


@pytest.mark.parametrize(("config", "version"), [(ONLY4, 4), (ONLY6, 6), (BOTH, 4)])
def test_no_default_route(config: NetworkConfig, version: int) -> None:
    text = refused(config=config, sight=Sight(MACHINE.links, ADDRESSES))
    assert text.startswith(f"there is no IPv{version} default route")
    assert "-iface" in text


def test_both_default_routes_must_leave_by_the_same_interface() -> None:
    assert refused(config=BOTH, sight=Sight(MACHINE.links, ADDRESSES, {4: (3,), 6: (2,)})).startswith(
        "v6 default route interface eth0 must be the same with v4 default route interface eth1"
    )
    # Which is only asked where neither is named.
    assert chosen("-iface=eth0", config=BOTH, sight=Sight(MACHINE.links, ADDRESSES, {4: (3,), 6: (2,)})).name == "eth0"


def test_an_interface_without_an_mtu_is_refused() -> None:
    sight = Sight((Link(2, "eth0", mtu=0),), ADDRESSES, {4: (2,)})
    assert refused(sight=sight) == "failed to determine MTU for eth0: it is 0"


# --- of an interface's addresses ----------------------------------------------------------------------------------


def test_one_address_each_of_both_versions_whichever_was_named() -> None:
    assert chosen("-iface=10.0.2.15", config=BOTH) == eth0("10.0.2.15", "2001:db8::2")
    assert chosen("-iface=2001:db8::2", config=BOTH) == eth0("10.0.2.15", "2001:db8::2")
    assert chosen("-iface=eth1", config=BOTH) == eth1("192.0.2.7", "fe80::3")


def test_an_interface_without_an_address_of_a_version_is_passed_over() -> None:
    bare = Sight((ETH0, ETH1), (ADDRESSES[2], *ADDRESSES[5:8]))
    assert chosen("-iface=eth0", "-iface=eth1", config=BOTH, sight=bare).name == "eth1"
    assert "-iface eth0: failed to find IPv6 address for interface eth0" in refused(
        "-iface=eth0", config=BOTH, sight=bare
    )


TEMPORARY = AddressFlag.SECONDARY
RANKED: list[tuple[str, dict[str, Any]]] = [
    ("2001:db8::a", {"flags": KEPT}),
    ("2001:db8::b", {"flags": 0}),
    ("2001:db8::c", {"flags": TEMPORARY}),
    ("fe80::d", {"flags": KEPT, "scope": "link"}),
    ("2001:db8::e", {"flags": KEPT | AddressFlag.TENTATIVE}),
    ("2001:db8::f", {"flags": KEPT | AddressFlag.DEPRECATED}),
    ("2001:db8::10", {"flags": KEPT | AddressFlag.DADFAILED}),
    ("::1", {"flags": KEPT, "scope": "host"}),
    ("ff02::1", {"flags": KEPT}),
]
"""From the best on; the last four are never taken."""
NEVER = 4


@given(st.permutations(RANKED).flatmap(lambda every: st.integers(0, len(every)).map(lambda count: every[:count])))
def test_the_best_is_taken_in_whatever_order_the_kernel_has_them(these: list[tuple[str, dict[str, Any]]]) -> None:
    sight = Sight((ETH0,), tuple(Address(2, f"{ip}/64", **how) for ip, how in these), {6: (2,)})
    will_do = [ip for ip, how in RANKED[:-NEVER] if (ip, how) in these]
    if will_do:
        assert chosen(config=ONLY6, sight=sight).ipv6 == ip_interface(will_do[0]).ip
    else:
        assert refused(config=ONLY6, sight=sight) == "failed to find IPv6 address for interface eth0"


def test_an_address_stays_while_it_will_do() -> None:
    """A second one, as of a service that moves from node to node, does not make this another node."""
    older, newer = Address(2, "2001:db8::a/64", flags=KEPT), Address(2, "2001:db8::b/64", flags=KEPT)
    flags = parse([], {})
    first = choose(flags, ONLY6, Sight((ETH0,), (older,), {6: (2,)}))
    both = Sight((ETH0,), (newer, older), {6: (2,)})
    assert choose(flags, ONLY6, both, first) == first
    assert choose(flags, ONLY6, both) != first
    assert choose(parse(["-iface-regex=^2001"], {}), ONLY6, both, first) == first
    assert choose(parse(["-iface=2001:db8::b"], {}), ONLY6, both, first) != first
    gone = Address(2, "2001:db8::a/64", flags=KEPT | AddressFlag.DEPRECATED)
    assert choose(flags, ONLY6, Sight((ETH0,), (newer, gone), {6: (2,)}), first) != first


def test_equal_addresses_are_taken_in_the_kernels_order() -> None:
    both = (Address(2, "10.0.0.1/24", flags=KEPT), Address(2, "10.0.1.1/24", flags=KEPT))
    assert str(chosen(sight=Sight((ETH0,), both, {4: (2,)})).ipv4) == "10.0.0.1"
    assert str(chosen(sight=Sight((ETH0,), both[::-1], {4: (2,)})).ipv4) == "10.0.1.1"
