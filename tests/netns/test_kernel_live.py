"""Routes kept current by announcements are those that a listing shows, whatever has happened to them and to links."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tortie.kernel import links, routes
from tortie.kernel.live import LiveRoutes
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.listener import PER_READ
from tortie.kernel.netlink.tables import AF_INET, AF_INET6, RT_TABLE_MAIN, RTPROT_KERNEL
from tortie.kernel.routes import Route, list_routes

pytestmark = pytest.mark.root

LINKS = ("calia", "calib", "eth0")
COMMANDS = (
    "route add 10.0.0.{n} dev {dev} metric 1024",
    "route replace 10.0.0.{n} dev {dev} metric 1024",
    "route append 10.0.0.{n} dev {dev} metric 1024 proto static",
    "route change 10.0.0.{n} dev {dev} metric 1024 mtu 1300",
    "route del 10.0.0.{n} metric 1024",
    "route add 10.1.{n}.0/24 nexthop dev calia nexthop dev calib",
    "route add 10.2.{n}.0/24 via 192.0.2.1 dev {dev} onlink",
    "route add blackhole 10.3.{n}.0/24 proto 80",
    "route del blackhole 10.3.{n}.0/24",
    "route add 10.4.{n}.0/24 dev {dev} table 77",
    "route add fd00::{n} dev {dev} metric 1024",
    "route replace fd00::{n} dev {dev} metric 1024",
    "route append fd00::{n} dev {dev} metric 1024",
    "-6 route del fd00::{n} metric 1024",
    "-6 route append fd01:{n}::/64 via fe80::{n} dev {dev} metric 9",
    "link set {dev} down",
    "link set {dev} up",
    "link set {dev} up",
    "link set p-{dev} up",
    "link del {dev}",
    "link add {dev} type veth peer name p-{dev}",
    "link add {dev} type veth peer name p-{dev}",
    "addr add 172.16.{n}.1/24 dev {dev}",
    "addr flush dev {dev} scope global",
)


def listed(path: str) -> set[Route]:
    with Netlink(path) as nl:
        return {
            route
            for family in (AF_INET, AF_INET6)
            for route in list_routes(nl, family, table=RT_TABLE_MAIN, without=RTPROT_KERNEL)
        }


def known(live: LiveRoutes) -> set[Route]:
    return {route for dev in (None, *live.names) for route in live.out_of(dev)}


@pytest.fixture
def node(make_ns: Callable[..., object]):
    ns = make_ns("live")
    for name in LINKS:
        ns.ip("link", "add", name, "type", "veth", "peer", "name", f"p-{name}")
        ns.ip("link", "set", f"p-{name}", "up")
        ns.ip("link", "set", name, "up")
    return ns


@pytest.mark.parametrize("seed", range(6))
def test_announcements_lead_where_a_listing_does(node, seed: int) -> None:
    dice = random.Random(seed)
    with LiveRoutes(node.path) as live:
        for _ in range(40):
            for _ in range(dice.choice((1, 1, 2, 5))):
                words = dice.choice(COMMANDS).format(n=dice.randint(1, 4), dev=dice.choice(LINKS))
                node.run("ip", *words.split(), check=False)
            live.refresh()
            assert known(live) == listed(node.path)
            assert live.names == links.names(node.path)


def test_route_and_link_are_seen_without_a_listing(node) -> None:
    with LiveRoutes(node.path) as live:
        live.refresh()
        node.ip("route", "add", "10.0.0.1", "dev", "calia", "metric", "1024")
        node.ip("route", "add", "fd00::1", "dev", "calia", "metric", "1024")
        live.refresh()
        assert {str(route.dst) for route in known(live)} == {"10.0.0.1/32", "fd00::1/128"}
        node.ip("link", "del", "calia")
        live.refresh()
        assert known(live) == set()
        assert "calia" not in live.names.values()
        assert live.listings == 1


def test_many_changes_that_nobody_read_cost_a_listing_and_no_mistake(node) -> None:
    with LiveRoutes(node.path) as live:
        live.refresh()
        for word in ("add", "del"):
            batch = "\n".join(f"route {word} 10.{n >> 8}.{n & 255}.1 dev calia" for n in range(1, 5000))
            node.run("ip", "-batch", "-", stdin=batch)
            live.refresh()
            assert known(live) == listed(node.path)


def test_what_comes_after_much_that_says_nothing_is_heard(node) -> None:
    """More announcements about being a bridge's port than are read at a time."""
    node.batch("link add br0 type bridge", "link set calia master br0")
    ports = "\n".join(f"link set dev calia cost {cost}" for cost in range(1, 3 * PER_READ))
    with LiveRoutes(node.path) as live:
        live.refresh()
        node.run("bridge", "-batch", "-", stdin=ports)
        node.ip("route", "add", "10.0.0.1", "dev", "calib", "metric", "1024")
        live.refresh()
        assert {str(route.dst) for route in known(live)} == {"10.0.0.1/32"}
        assert live.listings == 1


def test_what_went_is_forgotten_when_everything_is_listed(node) -> None:
    """Each pod has a link and routes that are never seen again."""
    with LiveRoutes(node.path) as live:
        live.refresh()
        for number in range(20):
            node.ip("link", "add", f"cali{number}", "type", "veth", "peer", "name", f"p-{number}")
            node.ip("link", "set", f"cali{number}", "up")
            node.ip("route", "add", f"10.0.1.{number}", "dev", f"cali{number}")
            live.refresh()
            node.ip("link", "del", f"cali{number}")
            live.refresh()
        assert len(live.changes) >= 20
        routes.decode.cache_clear()
        for number in range(2 * routes.SPARE):
            ip = (0x0A000000 + number).to_bytes(4, "big")
            routes.decode(bytes([2, 32, 0, 0, 254, 3, 253, 1, 0, 0, 0, 0, 8, 0, 1, 0]) + ip)
        live.forget()
        live.refresh()
        assert known(live) == listed(node.path)
        assert len(live.changes) <= len(LINKS) + 1
        assert routes.decode.cache_info().currsize < routes.SPARE
