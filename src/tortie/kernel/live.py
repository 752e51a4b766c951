"""The routes and links of a namespace, kept current by the kernel's own announcements instead of listed over and over.

What is not told is not guessed: a route that took another's place comes without a word about the old one, and then
everything is listed anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from tortie.base.addr import Net
from tortie.kernel import events, links
from tortie.kernel.announced import Announced
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import AF_INET, AF_INET6, RT_TABLE_MAIN, RTPROT_KERNEL
from tortie.kernel.routes import Route, forget_older, list_routes

GROUPS = (events.Group.LINK, events.Group.IPV4_ADDRESS, events.Group.IPV4_ROUTE, events.Group.IPV6_ROUTE)


class LiveRoutes(Announced):
    """The main table without the kernel's own routes, and the names of the links."""

    def __init__(self, netns: str | None = None) -> None:
        super().__init__(netns, GROUPS)
        self.names: dict[int, str] = {}
        """Of all links, by index."""
        self.listings = 0
        """How often everything was listed."""
        self.changes: Counter[int | None] = Counter()
        """How often something has changed in the routes out of each link, since everything was listed."""
        self._by_dev: dict[int | None, dict[Route, None]] = {}
        self._at: dict[tuple[Net, int], dict[Route, None]] = {}
        """By destination and metric: where a new route may have replaced one."""

    def out_of(self, dev: int | None) -> Iterator[Route]:
        """The routes out of one link; None: those of no link or of several."""
        yield from self._by_dev.get(dev, ())

    def out_of_any(self, devs: Iterable[int]) -> Iterator[Route]:
        """The routes out of these links, and those of no link or of several."""
        return (route for dev in (None, *devs) for route in self.out_of(dev))

    def heard(self, devs: Iterable[int]) -> tuple[object, ...]:
        """What is another with every change in the same routes."""
        return self.listings, *((dev, self.changes[dev]) for dev in (None, *devs))

    def _list(self) -> None:
        self.names = links.names(self._netns)
        self._by_dev.clear()
        self._at.clear()
        self.changes.clear()
        with Netlink(self._netns) as nl:
            for family in (AF_INET, AF_INET6):
                for route in list_routes(nl, family, table=RT_TABLE_MAIN, without=RTPROT_KERNEL):
                    self._add(route)
        forget_older(len(self._at))
        self.listings += 1

    def _take_in(self, event: events.Event) -> None:
        match event:
            case events.LinkEvent():
                self._link(event)
            case events.RouteEvent(route, gone):
                if route.table == RT_TABLE_MAIN and route.protocol != RTPROT_KERNEL:
                    self._route(route, gone)
            case events.AddressEvent(address, gone=True) if address.index in self._by_dev:
                self._known = False  # with the last one of a link go its routes, of IPv4 without a word
            case events.Overrun():
                self._known = False

    def _link(self, link: events.LinkEvent) -> None:
        """A link that goes or is set down takes its routes with it, of IPv4 without a word."""
        if link.gone:
            self.names.pop(link.index, None)
        else:
            self.names[link.index] = link.name
        if link.gone or not link.up:
            for route in list(self._by_dev.get(link.index, ())):
                self._discard(route)
            if any(hop.dev == link.index for route in self.out_of(None) for hop in route.nexthops):
                self._known = False

    def _route(self, route: Route, gone: bool) -> None:
        there = self._at.get((route.dst, route.metric), ())
        if route in there:
            if gone:
                self._discard(route)
        elif there:
            self._known = False  # in the place of which of them? beside them?
        elif not gone:
            self._add(route)

    def _add(self, route: Route) -> None:
        self.changes[route.dev] += 1
        self._by_dev.setdefault(route.dev, {})[route] = None
        self._at.setdefault((route.dst, route.metric), {})[route] = None

    def _discard(self, route: Route) -> None:
        place = route.dst, route.metric
        self.changes[route.dev] += 1
        self._by_dev[route.dev].pop(route)
        self._at[place].pop(route)
        if not self._by_dev[route.dev]:
            del self._by_dev[route.dev]
        if not self._at[place]:
            del self._at[place]
