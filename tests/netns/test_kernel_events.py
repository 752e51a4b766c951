"""What the kernel tells of changes, and that losing some of it is noticed."""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network

import pytest

from tortie.kernel import addresses, events, links, neighbours, routes
from tortie.kernel.events import AddressEvent, Event, LinkEvent, Monitor, NeighbourEvent, Overrun, RouteEvent
from tortie.kernel.neighbours import Neighbour
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.codec import Message
from tortie.kernel.netlink.listener import PER_READ
from tortie.kernel.netlink.tables import RTPROT_BIRD
from tortie.kernel.routes import Route

pytestmark = pytest.mark.root


@pytest.fixture
def nl(ns) -> Iterator[Netlink]:
    with Netlink(ns.path) as nl:
        links.create_veth(nl, "eth0", "eth1")
        links.set_up(nl, "eth0")
        links.set_up(nl, "eth1")
        yield nl


@pytest.fixture
def monitor(ns, nl) -> Iterator[Monitor]:
    with Monitor(ns.path) as monitor:
        yield monitor


def before(monitor: Monitor, good: Callable[[Event], bool], seconds: float = 5) -> list[Event]:
    """The events up to the first that is good."""
    seen: list[Event] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for event in monitor.read():
            seen.append(event)
            if good(event):
                return seen
        select.select([monitor], [], [], max(0.0, end - time.monotonic()))
    pytest.fail(f"the event did not come, but {seen}")


def until(monitor: Monitor, good: Callable[[Event], bool]) -> Event:
    """The first event that is good."""
    return before(monitor, good)[-1]


def test_nothing_waiting_is_nothing_and_no_wait(ns) -> None:
    with Monitor(ns.path) as monitor:
        started = time.monotonic()
        assert monitor.read() == []
        assert time.monotonic() - started < 1


def test_links(nl, monitor) -> None:
    links.create_bridge(nl, "br0", 1300)
    made = until(monitor, lambda event: isinstance(event, LinkEvent) and event.link.name == "br0")
    assert isinstance(made, LinkEvent)
    assert (made.link, made.gone) == (links.get_link(nl, "br0"), False)
    links.set_up(nl, "br0")
    until(monitor, lambda event: isinstance(event, LinkEvent) and event.link.name == "br0" and event.link.up)
    links.delete_link(nl, "br0")
    until(monitor, lambda event: isinstance(event, LinkEvent) and event.link.name == "br0" and event.gone)


def test_a_link_leaving_its_bridge_is_not_gone(nl, monitor) -> None:
    links.create_bridge(nl, "br0")
    links.set_master(nl, "eth0", "br0")
    links.set_master(nl, "eth0", None)
    links.set_alias(nl, "eth0", "the end")
    seen = before(monitor, lambda event: isinstance(event, LinkEvent) and event.link.alias == "the end")
    links_seen = [event for event in seen if isinstance(event, LinkEvent) and event.link.name == "eth0"]
    assert not any(event.gone for event in links_seen)
    assert any(event.link.master for event in links_seen)


@pytest.mark.parametrize("ip", ["10.0.0.1/24", "fd00::1/64"], ids=["ipv4", "ipv6"])
def test_addresses(nl, monitor, ip: str) -> None:
    index = links.link_index(nl, "eth0")
    addresses.add_address(nl, index, ip, nodad=True)
    made = until(monitor, lambda event: isinstance(event, AddressEvent) and event.address.ip == ip)
    assert isinstance(made, AddressEvent)
    assert (made.address.index, made.gone) == (index, False)
    addresses.delete_address(nl, index, ip)
    until(monitor, lambda event: isinstance(event, AddressEvent) and event.address.ip == ip and event.gone)


@pytest.mark.parametrize(
    ("ip", "dst", "via"),
    [
        pytest.param("10.0.0.1/24", "10.1.0.0/16", "10.0.0.2", id="ipv4"),
        pytest.param("fd00::1/64", "fd01::/64", "fd00::2", id="ipv6"),
    ],
)
def test_routes(nl, monitor, ip: str, dst: str, via: str) -> None:
    index = links.link_index(nl, "eth0")
    addresses.add_address(nl, index, ip, nodad=True)
    route = Route(ip_network(dst), ip_address(via), index, table=1000, protocol=80)
    routes.add_route(nl, route)
    assert until(monitor, lambda event: isinstance(event, RouteEvent) and event.route.protocol == 80) == RouteEvent(
        route
    )
    routes.delete_route(nl, route)
    gone = until(monitor, lambda event: isinstance(event, RouteEvent) and event.gone)
    assert gone == RouteEvent(route, gone=True)


@pytest.mark.parametrize("ip", ["10.0.0.9", "fd00::9"], ids=["ipv4", "ipv6"])
def test_neighbours_only_for_those_who_ask(ns, nl, monitor, ip: str) -> None:
    entry = Neighbour(links.link_index(nl, "eth0"), ip, "02:00:00:00:00:01")
    with Monitor(ns.path, [events.Group.NEIGHBOUR]) as nosy:
        neighbours.replace(nl, entry)
        assert until(nosy, lambda event: event == NeighbourEvent(entry))
    links.set_alias(nl, "eth0", "after")
    seen = before(monitor, lambda event: isinstance(event, LinkEvent) and event.link.alias == "after")
    assert not any(isinstance(event, NeighbourEvent) for event in seen)


def test_groups_that_were_not_asked_for_are_silent(ns, nl) -> None:
    with Monitor(ns.path, [events.Group.IPV4_ADDRESS]) as monitor:
        links.create_bridge(nl, "br0")
        addresses.add_address(nl, links.link_index(nl, "eth0"), "fd00::1/64")
        addresses.add_address(nl, links.link_index(nl, "eth0"), "10.0.0.1/24")
        select.select([monitor], [], [], 5)
        (event,) = monitor.read()
    assert isinstance(event, AddressEvent)
    assert event.address.ip == "10.0.0.1/24"


def test_other_namespaces_are_not_heard(make_ns, nl, monitor) -> None:
    make_ns("other").ip("link", "add", "name", "elsewhere", "type", "bridge")
    links.create_bridge(nl, "here")
    seen = before(monitor, lambda event: isinstance(event, LinkEvent) and event.link.name == "here")
    assert not any(isinstance(event, LinkEvent) and event.link.name == "elsewhere" for event in seen)


def test_lost_events_are_an_overrun_and_later_ones_come_again(nl, monitor) -> None:
    flood = [
        Route(ip_network(((11 << 24) + (number << 8), 24)), type="blackhole", protocol=80) for number in range(8000)
    ]
    assert routes.apply_many(nl, [("add", route) for route in flood]) == []
    seen: list[Event] = []
    while batch := monitor.read():
        seen += batch
    assert Overrun() in seen
    assert len(seen) < len(flood)
    last = Route(ip_network("10.7.0.0/16"), type="blackhole", protocol=81)
    routes.add_route(nl, last)
    assert until(monitor, lambda event: event == RouteEvent(last))


async def test_in_an_event_loop(nl, monitor) -> None:
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[Event] = asyncio.Queue()

    def readable() -> None:
        for event in monitor.read():
            heard.put_nowait(event)

    loop.add_reader(monitor.fileno(), readable)
    try:
        await asyncio.to_thread(links.create_bridge, nl, "br0")
        async with asyncio.timeout(5):
            while True:
                event = await heard.get()
                if isinstance(event, LinkEvent) and event.link.name == "br0":
                    break
    finally:
        loop.remove_reader(monitor.fileno())


def test_all_that_waits_is_told_behind_however_much_does_not_matter(ns) -> None:
    """As when BIRD gives the kernel a table, and somebody else a route."""

    def is_of_others(message: Message) -> bool:
        return events.protocol_of(message) != RTPROT_BIRD

    with Monitor(ns.path, [events.Group.IPV4_ROUTE], is_of_others) as monitor:
        ns.batch(*(f"route add blackhole 10.{n >> 8}.{n & 255}.0/24 proto bird" for n in range(3 * PER_READ)))
        ns.ip("route", "add", "blackhole", "192.0.2.0/24")
        (event,) = monitor.all_waiting()
        assert isinstance(event, RouteEvent)
        assert str(event.route.dst) == "192.0.2.0/24"
        assert list(monitor.all_waiting()) == []
