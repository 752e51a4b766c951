"""Routes of both families, one at a time and by the ten thousand, read back with `ip -j` and with pyroute2."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

import pytest
from pyroute2 import NetNS

from tortie.base.addr import IP, Net
from tortie.base.errors import ConfigError, Exists, KernelError, NotFound
from tortie.kernel import links, routes
from tortie.kernel.netlink import Netlink
from tortie.kernel.routes import Nexthop, Route

pytestmark = pytest.mark.root

MANY = 10_000


@dataclass(frozen=True)
class Family:
    """What a family's tests are made of: our address on the link, two gateways there, one off the link, a big block."""

    number: int
    option: str
    address: str
    gateways: tuple[IP, IP]
    far: IP
    block: Net
    length: int

    def net(self, ordinal: int) -> Net:
        base, bits = int(self.block.network_address), self.block.max_prefixlen - self.length
        return ip_network((base + (ordinal << bits), self.length))


V4 = Family(
    socket.AF_INET,
    "-4",
    "10.0.0.1",
    (ip_address("10.0.0.2"), ip_address("10.0.0.3")),
    ip_address("192.0.2.1"),
    ip_network("11.0.0.0/8"),
    24,
)
V6 = Family(
    socket.AF_INET6,
    "-6",
    "fd00::1",
    (ip_address("fd00::2"), ip_address("fd00::3")),
    ip_address("fd99::1"),
    ip_network("fd11::/16"),
    64,
)


@pytest.fixture(params=[V4, V6], ids=["ipv4", "ipv6"])
def family(request) -> Family:
    return request.param


@pytest.fixture
def nl(ns) -> Iterator[Netlink]:
    ns.ip("link", "add", "name", "eth0", "type", "veth", "peer", "name", "eth1")
    ns.ip("address", "add", "10.0.0.1/24", "dev", "eth0")
    ns.ip("address", "add", "fd00::1/64", "dev", "eth0", "nodad")
    for link in ("eth0", "eth1"):
        ns.ip("link", "set", link, "addrgenmode", "none")  # or link-local routes appear in the middle of a test
        ns.ip("link", "set", link, "up")
    with Netlink(ns.path) as nl:
        yield nl


@pytest.fixture
def eth0(nl) -> int:
    return links.link_index(nl, "eth0")


def shown(ns, family: Family, *words: str) -> list[dict]:
    return ns.json(family.option, "route", "show", *words)


def count(ns, family: Family) -> int:
    """How many routes `ip` shows of our protocol."""
    return len(ns.run("ip", family.option, "route", "show", "proto", "80").splitlines())


def one(nl, family: Family, dst: Net, table: int = 254) -> Route:
    (route,) = [route for route in routes.list_routes(nl, family.number, table) if route.dst == dst]
    return route


# --- one at a time ------------------------------------------------------------------------------------------------


def kinds(family: Family, dev: int) -> dict[str, Route]:
    """A route of each kind."""
    near, second = family.gateways
    base = Route(family.net(1), near, dev, protocol=80)
    return {
        "gateway": base,
        "link": replace(base, via=None, scope=""),
        "source": replace(base, src=ip_address(family.address)),
        "metric": replace(base, metric=77),
        "mtu": replace(base, mtu=1300),
        "onlink": replace(base, via=family.far, onlink=True),
        "high-table": replace(base, table=1000),
        "host": replace(base, dst=ip_network(family.net(7).network_address + 5)),
        "default": replace(base, dst=ip_network("::/0" if family is V6 else "0.0.0.0/0")),
        "blackhole": replace(base, via=None, dev=None, type="blackhole", scope=""),
        "unreachable": replace(base, via=None, dev=None, type="unreachable", scope=""),
        "prohibit": replace(base, via=None, dev=None, type="prohibit", scope=""),
        "throw": replace(base, via=None, dev=None, type="throw", table=44, scope=""),
        "multipath": replace(base, via=None, dev=None, nexthops=(Nexthop(near, dev), Nexthop(second, dev, 5))),
    }


@pytest.mark.parametrize("kind", list(kinds(V4, 1)))
def test_every_kind_comes_back_as_it_went(ns, nl, eth0, family: Family, kind: str) -> None:
    route = kinds(family, eth0)[kind]
    routes.add_route(nl, route)
    assert one(nl, family, route.dst, route.table) == route
    assert_ip_reads_it_the_same(ns, family, route)
    with pytest.raises(Exists, match=r"^ip (-6 )?route add .* proto 80"):
        routes.add_route(nl, route)
    routes.replace_route(nl, route)
    assert one(nl, family, route.dst, route.table) == route
    routes.delete_route(nl, route)
    assert routes.list_routes(nl, family.number, protocol=80) == []
    with pytest.raises(NotFound, match=r"^ip (-6 )?route delete .* proto 80"):
        routes.delete_route(nl, route)


def assert_ip_reads_it_the_same(ns, family: Family, route: Route) -> None:
    table = shown(ns, family, "table", str(route.table))
    (there,) = [item for item in table if item["dst"] == route.words({}).removeprefix(f"{route.type} ").split()[0]]
    assert there["type"] == route.type
    assert there.get("gateway") == (str(route.via) if route.via else None)
    assert there.get("dev") == ("eth0" if route.dev else "lo" if family is V6 and not route.nexthops else None)
    assert there["protocol"] == "80"
    assert there["scope"] == route.scope
    assert there.get("metric", 0) == (route.metric or (1024 if family is V6 else 0))
    assert there.get("prefsrc") == (str(route.src) if route.src else None)
    assert there.get("metrics", [{}])[0].get("mtu", 0) == route.mtu
    assert ("onlink" in there["flags"]) == route.onlink
    hops = [(hop["gateway"], hop["dev"], hop["weight"]) for hop in there.get("nexthops", [])]
    assert hops == [(str(hop.via), "eth0", hop.weight) for hop in route.nexthops]


def test_ip_understands_what_a_route_prints(ns, nl, eth0, family: Family) -> None:
    for route in kinds(family, eth0).values():
        ns.ip(family.option, "route", "add", *route.words({eth0: "eth0"}).split())
        assert one(nl, family, route.dst, route.table) == route
        ns.ip(family.option, "route", "delete", *str(route).split())
        assert route not in routes.list_routes(nl, family.number, route.table)


def test_ipv4_through_an_ipv6_gateway(ns, nl, eth0) -> None:
    route = Route(V4.net(1), V6.gateways[0], eth0, protocol=80)
    routes.add_route(nl, route)
    (there,) = shown(ns, V4, "proto", "80")
    assert there["via"] == {"family": "inet6", "host": "fd00::2"}
    assert one(nl, V4, route.dst) == route


def test_replace_changes_in_place(ns, nl, eth0, family: Family) -> None:
    near, second = family.gateways
    routes.add_route(nl, Route(family.net(1), near, eth0, protocol=80))
    for better in (
        Route(family.net(1), second, eth0, protocol=80),
        Route(family.net(1), second, eth0, protocol=80, mtu=1400),
        Route(family.net(1), type="blackhole", protocol=80),
        Route(family.net(1), near, eth0, protocol=81),
    ):
        routes.replace_route(nl, better)
        assert one(nl, family, better.dst) == better
    assert len(shown(ns, family, "exact", str(family.net(1)))) == 1


def test_pyroute2_reads_it_the_same(ns, nl, eth0, family: Family) -> None:
    routes.add_route(nl, Route(family.net(1), family.gateways[0], eth0, table=1000, protocol=80, metric=5))
    with NetNS(ns.name) as oracle:
        (there,) = oracle.get_routes(family=family.number, table=1000)
        assert f"{there.get_attr('RTA_DST')}/{there['dst_len']}" == str(family.net(1))
        assert there.get_attr("RTA_GATEWAY") == str(family.gateways[0])
        assert (there.get_attr("RTA_OIF"), there.get_attr("RTA_PRIORITY"), there["proto"]) == (eth0, 5, 80)
        oracle.route("add", dst=str(family.net(2)), gateway=str(family.gateways[1]), oif=eth0, table=1000, proto=80)
    assert one(nl, family, family.net(2), 1000) == Route(family.net(2), family.gateways[1], eth0, 1000, 80)


def test_the_kernels_own_words(nl, eth0, family: Family) -> None:
    with pytest.raises(KernelError, match=r"Nexthop has invalid gateway|No route to host") as caught:
        routes.add_route(nl, Route(family.net(1), family.far, eth0))
    assert caught.value.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
    assert str(caught.value).startswith(f"ip {'-6 ' * (family is V6)}route add {family.net(1)} via {family.far}")
    with pytest.raises(ConfigError):
        routes.add_route(nl, Route(family.net(1), family.gateways[0], eth0, scope="nowhere-near", mtu=-1))


# --- listing ------------------------------------------------------------------------------------------------------


def test_listing_only_some(ns, nl, eth0, family: Family) -> None:
    near = family.gateways[0]
    ours = Route(family.net(1), near, eth0, protocol=80)
    elsewhere = Route(family.net(2), near, eth0, protocol=80, table=1000)
    others = Route(family.net(3), near, eth0, protocol=81)
    local = Route(family.net(4), dev=links.link_index(nl, "eth1"), protocol=81)
    for route in (ours, elsewhere, others, local):
        routes.add_route(nl, route)
    number = family.number
    assert set(routes.list_routes(nl, number, protocol=80)) == {ours, elsewhere}
    assert set(routes.list_routes(nl, number, table=254, protocol=80)) == {ours}
    assert set(routes.list_routes(nl, number, table=1000)) == {elsewhere}
    assert set(routes.list_routes(nl, number, protocol=81, dev=local.dev)) == {local}
    assert set(routes.list_routes(nl, number, table=254, without=80)) >= {local}
    assert not {ours, elsewhere} & set(routes.list_routes(nl, number, without=80))
    assert routes.list_routes(nl, number, table=7777) == []
    assert routes.list_routes(nl, number, dev=7777) == []
    everything = routes.list_routes(nl, number)
    assert {ours, elsewhere, others, local} < set(everything)
    assert len(everything) == len(shown(ns, family, "table", "all"))


def test_listing_while_the_table_changes_misses_nothing(ns, nl, eth0, family: Family) -> None:
    near = family.gateways[0]
    steady = [Route(family.net(number), near, eth0, protocol=80) for number in range(0, 3000, 2)]
    assert routes.apply_many(nl, [("add", route) for route in steady]) == []
    stop = threading.Event()
    rounds = []

    def churn() -> None:
        with Netlink(ns.path) as mine:
            batch = [Route(family.net(number), near, eth0, protocol=81) for number in range(1, 40, 2)]
            while not stop.is_set():
                for _ in range(15):  # in bursts: no table can be listed that never stands still
                    routes.apply_many(mine, [("add", route) for route in batch])
                    routes.apply_many(mine, [("delete", route) for route in batch])
                rounds.append(1)
                stop.wait(0.1)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(10):
            found = [route for route in routes.list_routes(nl, family.number) if route.protocol == 80]
            assert sorted(found, key=lambda route: route.dst) == steady
    finally:
        stop.set()
        thread.join()
    assert rounds


# --- many ---------------------------------------------------------------------------------------------------------


def test_ten_thousand(ns, nl, eth0, family: Family) -> None:
    many = [Route(family.net(number), family.gateways[0], eth0, protocol=80) for number in range(MANY)]
    started = time.monotonic()
    assert routes.apply_many(nl, [("replace", route) for route in many]) == []
    found = routes.list_routes(nl, family.number, protocol=80)
    took = time.monotonic() - started
    assert set(found) == set(many)
    assert count(ns, family) == MANY
    assert routes.apply_many(nl, [("delete", route) for route in many]) == []
    assert count(ns, family) == 0
    assert took < 10  # a second or less on a quiet machine; a system call for each would be far more


def test_failures_in_a_batch_are_told_apart(ns, nl, eth0, family: Family) -> None:
    near = family.gateways[0]
    wrong = {0, 17, 255, 256, 257, 999}  # first, last, and around the edges of what is sent at once
    steps = [
        ("add", Route(family.net(number), family.far if number in wrong else near, eth0, protocol=80))
        for number in range(1000)
    ]
    failures = routes.apply_many(nl, steps)
    assert {index for index, _ in failures} == wrong
    assert [index for index, _ in failures] == sorted(wrong)
    assert f"route add {family.net(255)} via {family.far} dev if{eth0}" in str(dict(failures)[255])
    assert count(ns, family) == 1000 - len(wrong)


def test_a_batch_in_which_everything_fails(nl, eth0, family: Family) -> None:
    steps = [("delete", Route(family.net(number), protocol=80)) for number in range(3000)]
    failures = routes.apply_many(nl, steps)
    assert [index for index, _ in failures] == list(range(3000))
    assert {error.errno for _, error in failures} == {errno.ESRCH}
    assert routes.apply_many(nl, []) == []
    routes.add_route(nl, Route(family.net(1), family.gateways[0], eth0))  # and nothing is left over on the socket


def test_a_batch_is_done_in_order(nl, eth0, family: Family) -> None:
    first = Route(family.net(1), family.gateways[0], eth0, protocol=80)
    second = replace(first, via=family.gateways[1])
    assert routes.apply_many(nl, [("add", first), ("delete", first), ("add", second)]) == []
    assert one(nl, family, first.dst) == second


def test_a_batch_of_wide_routes_fits(nl, eth0, family: Family) -> None:
    hops = tuple(Nexthop(family.gateways[number % 2], eth0, number + 1) for number in range(32))
    many = [Route(family.net(number), protocol=80, nexthops=hops) for number in range(300)]
    if family is V6:  # IPv6 refuses the same way twice
        many = [replace(route, nexthops=hops[:2]) for route in many]
    assert routes.apply_many(nl, [("add", route) for route in many]) == []
    assert set(routes.list_routes(nl, family.number, protocol=80)) == set(many)
