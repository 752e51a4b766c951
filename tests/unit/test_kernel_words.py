"""Kernel objects print as the commands that a network engineer would type."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from tortie.base.errors import ConfigError
from tortie.kernel import sysctl
from tortie.kernel.neighbours import Forwarding, Neighbour
from tortie.kernel.netns import path
from tortie.kernel.routes import Nexthop, Route
from tortie.kernel.rules import Rule

ETH0 = {3: "eth0", 4: "eth1"}


@pytest.mark.parametrize(
    ("route", "words"),
    [
        (
            Route(ip_network("10.0.1.0/24"), ip_address("192.0.2.7"), 3, protocol=80),
            "10.0.1.0/24 via 192.0.2.7 dev eth0 proto 80",
        ),
        (Route(ip_network("10.0.1.5/32"), dev=3), "10.0.1.5 dev eth0 scope link"),
        (Route(ip_network("fd00::5/128"), dev=3, metric=1024), "fd00::5 dev eth0"),
        (Route(ip_network("0.0.0.0/0"), ip_address("10.0.0.1"), 9), "default via 10.0.0.1 dev if9"),
        (Route(ip_network("::/0"), ip_address("fe80::1"), 3, metric=7), "default via fe80::1 dev eth0 metric 7"),
        (Route(ip_network("10.0.1.0/26"), type="blackhole", protocol=80), "blackhole 10.0.1.0/26 proto 80"),
        (
            Route(ip_network("10.0.1.1/32"), dev=3, type="local", table=255),
            "local 10.0.1.1 dev eth0 table local scope host",
        ),
        (
            Route(ip_network("10.0.2.0/24"), ip_address("10.9.0.1"), 3, table=100, onlink=True, mtu=1400, protocol=12),
            "10.0.2.0/24 via 10.9.0.1 dev eth0 table 100 proto bird mtu 1400 onlink",
        ),
        (Route(ip_network("10.0.1.0/24"), ip_address("fd00::9"), 3), "10.0.1.0/24 via inet6 fd00::9 dev eth0"),
        (
            Route(
                ip_network("10.0.1.0/24"),
                nexthops=(Nexthop(ip_address("10.0.0.2"), 3), Nexthop(ip_address("10.0.0.3"), 4, 7, onlink=True)),
            ),
            "10.0.1.0/24 nexthop via 10.0.0.2 dev eth0 weight 1 nexthop via 10.0.0.3 dev eth1 weight 7 onlink",
        ),
    ],
)
def test_route(route: Route, words: str) -> None:
    assert route.words(ETH0) == words


def test_route_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match='"blackhol" is no type of route'):
        Route(ip_network("10.0.0.0/8"), type="blackhol")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule(2, 100, 7, mark=0x10), "priority 100 from all fwmark 0x10 lookup 7"),
        (
            Rule(2, 100, 254, src=ip_network("10.0.0.0/8"), mark=0x10, mask=0xF0, invert=True, protocol=80),
            "priority 100 not from 10.0.0.0/8 fwmark 0x10/0xf0 lookup main protocol 80",
        ),
        (
            Rule(10, 5, action="prohibit", dst=ip_network("fd00::/8"), iif="lo"),
            "priority 5 from all to fd00::/8 iif lo prohibit",
        ),
        (Rule(2, 5, action="goto", goto=9), "priority 5 from all goto 9"),
        (Rule(2, 5, 254, suppress_prefixlength=0), "priority 5 from all lookup main suppress_prefixlength 0"),
    ],
)
def test_rule(rule: Rule, words: str) -> None:
    assert str(rule) == words


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (Neighbour(3, "10.0.0.1", "02:00:00:00:00:01"), "10.0.0.1 lladdr 02:00:00:00:00:01 dev if3 nud permanent"),
        (Neighbour(3, "fd00::1", proxy=True), "proxy fd00::1 dev if3"),
        (
            Forwarding(3, "02:00:00:00:00:01", "192.0.2.1"),
            "02:00:00:00:00:01 dev if3 dst 192.0.2.1 self permanent",
        ),
        (
            Forwarding(3, "02:00:00:00:00:01", master=True, vlan=5, extern_learn=True),
            "02:00:00:00:00:01 dev if3 vlan 5 master permanent extern_learn",
        ),
    ],
)
def test_neighbour(entry: Neighbour | Forwarding, words: str) -> None:
    assert str(entry) == words


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a\0b", "x" * 256])
def test_what_cannot_name_a_namespace(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a network namespace"):
        path(name)


@pytest.mark.parametrize(
    "setting", ["", "net", "/etc/passwd", "../etc/passwd", "net/../../../etc/passwd", "net//ipv4", "net/ipv4/"]
)
def test_what_cannot_name_a_sysctl(setting: str) -> None:
    with pytest.raises(ConfigError, match="is not a sysctl"):
        sysctl.read(setting)
