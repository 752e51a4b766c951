"""The far ends of VXLAN tunnels, and the steps to them: what the stages of far ends do alike.

For each node a permanent neighbour, an address there to a MAC address, and a forwarding entry, that MAC address to the
node's own address.
"""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Set
from typing import Generic, Protocol, TypeVar

from tortie.base.addr import IP
from tortie.base.plan import Op, Plan, Verb, diff
from tortie.dataplane.batch import BatchStage, carry_out
from tortie.kernel.live_links import LiveLinks
from tortie.kernel.live_neighbours import Entry, Key, LiveNeighbours, key
from tortie.kernel.neighbours import Forwarding, Neighbour, apply_many

S = TypeVar("S", contravariant=True)
"""What the kernel should be like, as in `converge`."""

GONE = (errno.ENOENT, errno.ENODEV)
"""Refusals of what is gone already."""


class FarEnd(Protocol):
    """A node behind a VXLAN device: its address there, the MAC address that has it, and the host to send that to."""

    @property
    def device(self) -> str: ...
    @property
    def address(self) -> IP: ...
    @property
    def mac(self) -> str: ...
    @property
    def host(self) -> IP: ...


def select(far_ends: Iterable[FarEnd], index: Mapping[str, int]) -> dict[Key, Entry]:
    """What should be on the devices that are there. `index` is that of each of them."""
    want: dict[Key, Entry] = {}
    for end in far_ends:
        if (dev := index.get(end.device)) is not None:
            for entry in (Forwarding(dev, end.mac, str(end.host)), Neighbour(dev, str(end.address), end.mac)):
                want[key(entry)] = entry
    return want


def plan(want: Mapping[Key, Entry], have: Mapping[Key, Entry]) -> Plan[Key, Entry]:
    """The steps from what is to what should be."""
    return diff(want, have, _words)


def _words(verb: Verb, _: Key, entry: Entry) -> str:
    what = "bridge fdb" if isinstance(entry, Forwarding) else "ip neighbour"
    return f"{what} {'delete' if verb is Verb.DELETE else 'replace'} {entry}"


class FarEndStage(BatchStage, Generic[S]):
    """Keeps the far ends as the state has them, on the devices that are there."""

    name = "far ends of tunnels"

    def __init__(self, links: LiveLinks, netns: str | None) -> None:
        self._links = links
        self._live = LiveNeighbours(netns)
        self._netns = netns
        self._settled: tuple[object, ...] = ()

    @abstractmethod
    def devices(self, state: S) -> Iterable[str]:
        """The names of the VXLAN devices."""

    @abstractmethod
    def far_ends(self, state: S) -> Iterable[FarEnd]: ...

    @abstractmethod
    def source(self, state: S) -> object:
        """What of the state the steps depend on."""

    @abstractmethod
    def is_ours(self, entry: Entry) -> bool: ...

    def needed(self, state: S, have: Mapping[Key, Entry]) -> Set[Key]:
        """What has to stay for now, whether it is wanted or not."""
        return frozenset()

    def observe(self, index: Mapping[str, int]) -> dict[Key, Entry]:
        """What is ours in the kernel."""
        every = (entry for dev in index.values() for entry in self._live.of(dev).items())
        return {where: one for where, one in every if self.is_ours(one)}

    def plan(self, state: S) -> Plan[Key, Entry]:
        self._links.refresh()
        names = self.devices(state)
        found = {name: link.index for name in names if (link := self._links.named(name)) is not None}
        if not found:
            self._live.close()  # neighbours change all the time
            return Plan()
        self._live.refresh(set(found.values()))
        stamp = (self.source(state), tuple(found.items()), self._live.changes)
        if self._settled == stamp:
            return Plan()
        want, have = select(self.far_ends(state), found), self.observe(found)
        needed = self.needed(state, have)
        steps = plan(want, {where: entry for where, entry in have.items() if where in want or where not in needed})
        self._settled = () if steps or needed else stamp
        return steps

    def _carry_out(self, ops: Iterable[Op[Key, Entry]]) -> None:
        carry_out(ops, self._netns, apply_many, GONE)

    def forget(self) -> None:
        self._live.forget()
        self._settled = ()
