"""The neighbours and forwarding entries of a few links, kept current by the kernel's own announcements.

They are listed once for each link that is asked about; a thousand of them take a while.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from tortie.kernel import events
from tortie.kernel.neighbours import Forwarding, Neighbour, list_forwarding, list_neighbours
from tortie.kernel.netlink import Netlink

Entry = Neighbour | Forwarding
Key = tuple[int, str, str]
"""The link's index; a neighbour's address and "", or a forwarding entry's MAC address and, where there may be several
for one MAC address, its destination."""
FLOODED = "00:00:00:00:00:00"
"""What is for nobody in particular goes to all destinations of this one."""


def key(entry: Entry) -> Key:
    """Where there is one entry."""
    if isinstance(entry, Neighbour):
        return entry.dev, entry.ip, ""
    return entry.dev, entry.mac, entry.dst if entry.mac == FLOODED else "-"


def is_echo(entry: Entry, there: Mapping[Key, Entry]) -> bool:
    """Whether that announces once more, without its destination, what is known already.

    Kernels before 6.13 do so after each entry that somebody gives to a tunnel, in words for all kinds of links.
    """
    if not isinstance(entry, Forwarding) or entry.dst or entry.master:
        return False
    same = there.values() if entry.mac == FLOODED else filter(None, [there.get(key(entry))])
    return any(isinstance(one, Forwarding) and one.mac == entry.mac and one.dst for one in same)


class LiveNeighbours:
    """Used by one thread. `netns` is a path; None is the namespace of the thread that refreshes first."""

    def __init__(self, netns: str | None = None) -> None:
        self.changes = 0
        """How often something has changed; listing counts."""
        self._entries: dict[int, dict[Key, Entry]] = {}
        self._netns = netns
        self._monitor: events.Monitor | None = None

    def close(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        self._entries.clear()

    def forget(self) -> None:
        """List everything at the next refresh."""
        self._entries.clear()

    def of(self, dev: int) -> Mapping[Key, Entry]:
        """The entries of a link that the last refresh was about."""
        return self._entries.get(dev, {})

    def refresh(self, devs: Set[int]) -> None:
        """Take in what has changed on these links since the last time. Raises KernelError."""
        if self._monitor is None:
            self._monitor = events.Monitor(self._netns, (events.Group.NEIGHBOUR,))
        for event in self._monitor.all_waiting():
            self._take_in(event)
        for dev in self._entries.keys() - devs:
            del self._entries[dev]
        new = devs - self._entries.keys()
        if new:
            self._list(new)

    def _list(self, devs: Set[int]) -> None:
        with Netlink(self._netns) as nl:
            for dev in devs:
                found: list[Entry] = [*list_neighbours(nl, dev=dev), *list_forwarding(nl, dev)]
                self._entries[dev] = {key(entry): entry for entry in found}
        self.changes += 1

    def _take_in(self, event: events.Event) -> None:
        match event:
            case events.NeighbourEvent(entry, gone):
                there = self._entries.get(entry.dev)
                if there is None or (isinstance(entry, Neighbour) and entry.proxy):
                    return
                if gone:
                    self.changes += there.pop(key(entry), None) is not None
                elif there.get(key(entry)) != entry and not is_echo(entry, there):
                    there[key(entry)] = entry
                    self.changes += 1
            case events.Overrun():
                self._entries.clear()
