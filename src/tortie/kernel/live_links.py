"""The links and addresses of a namespace, kept current by the kernel's own announcements, as `live` keeps the routes.

Unlike a route, neither goes without a word.
"""

from __future__ import annotations

from tortie.kernel import events
from tortie.kernel.addresses import Address, list_addresses
from tortie.kernel.announced import Announced
from tortie.kernel.links import Link, list_links
from tortie.kernel.netlink import Netlink

GROUPS = (events.Group.LINK, events.Group.IPV4_ADDRESS, events.Group.IPV6_ADDRESS)


class LiveLinks(Announced):
    """Links whose name begins with `without` are passed over: there may be many of them, and they come and go."""

    def __init__(self, netns: str | None = None, *, without: str = "") -> None:
        super().__init__(netns, GROUPS)
        self.links: dict[int, Link] = {}
        """By index."""
        self.changes = 0
        """How often something has changed; listing everything counts."""
        self._addresses: dict[int, dict[str, Address]] = {}
        self._without = without

    def named(self, name: str) -> Link | None:
        return next((link for link in self.links.values() if link.name == name), None)

    def addresses(self, index: int) -> list[Address]:
        """Those of one link, in the order in which they came."""
        return list(self._addresses.get(index, {}).values())

    def having(self, ip: str) -> Link | None:
        """The link with an address, without its prefix length; of several the one with the lowest index."""
        for index in sorted(self._addresses):
            if index in self.links and any(one.partition("/")[0] == ip for one in self._addresses[index]):
                return self.links[index]
        return None

    def _list(self) -> None:
        with Netlink(self._netns) as nl:
            self.links = {link.index: link for link in list_links(nl) if self._counts(link.name)}
            addresses = list_addresses(nl)
        self._addresses = {}
        for address in addresses:
            self._addresses.setdefault(address.index, {})[address.ip] = address
        self.changes += 1

    def _counts(self, name: str) -> bool:
        return not (self._without and name.startswith(self._without))

    def _take_in(self, event: events.Event) -> None:
        match event:
            case events.LinkEvent(gone=True):
                self.changes += self.links.pop(event.index, None) is not None
                self._addresses.pop(event.index, None)
            case events.LinkEvent():
                self._link(event)
            case events.AddressEvent(address, gone):
                mine = self._addresses.setdefault(address.index, {})
                if gone:
                    mine.pop(address.ip, None)
                else:
                    mine[address.ip] = address
                self.changes += address.index in self.links
            case events.Overrun():
                self._known = False

    def _link(self, event: events.LinkEvent) -> None:
        if not self._counts(event.name):
            self.links.pop(event.index, None)
        elif (link := event.link) != self.links.get(event.index):
            self.links[event.index] = link
            self.changes += 1
