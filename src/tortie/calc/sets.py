"""The members of the address sets that active rules look into, kept up to date change by change.

A member is counted, because two objects may bring the same address; a set that nobody needs is not kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property

from tortie.base.addr import IP, Net, host_net
from tortie.base.kinset import KinSet
from tortie.policy.labels import LabelIndex
from tortie.policy.rules import Member, SelectorRef, SelectorSet, SetRef

ItemKey = tuple[str, str, str]
"""Kind, namespace and name of an object with addresses."""


@dataclass(frozen=True)
class Addresses:
    """What an object brings into the sets that match it. `ports` are (name, protocol number, port)."""

    ips: tuple[IP, ...] = ()
    nets: tuple[Net, ...] = ()
    ports: tuple[tuple[str, int, int], ...] = ()

    @cached_property
    def networks(self) -> tuple[Net, ...]:
        """All addresses as networks: the same objects in every set, so that comparing them costs next to nothing."""
        return (*map(host_net, self.ips), *self.nets)

    def members_of(self, ref: SelectorRef) -> Iterator[Member]:
        if isinstance(ref, SelectorSet):
            yield from self.networks
            return
        for name, protocol, port in self.ports:
            if name == ref.port and ref.protocol in (None, protocol):
                yield from ((ip, protocol, port) for ip in self.ips)


class AddressSets:
    """All needed sets. Feed it items and profile labels in any order; ask `members`."""

    def __init__(self) -> None:
        self._index: LabelIndex[SelectorRef, ItemKey] = LabelIndex()
        self._items: dict[ItemKey, Addresses] = {}
        self._counts: dict[SelectorRef, dict[Member, int]] = {}
        self._sets: dict[SetRef, KinSet[Member]] = {}
        self._touched: dict[SelectorRef, set[Member]] = {}
        """What may have come to a set, or gone from it, since it was asked for last."""

    def set_item(self, key: ItemKey, labels: Mapping[str, str], parents: Iterable[str], addresses: Addresses) -> None:
        old = self._items.get(key)
        if old != addresses:
            for ref in self._index.matching_selectors(key) if old is not None else ():
                self._count(ref, old or Addresses(), -1)
                self._count(ref, addresses, +1)
            self._items[key] = addresses
        for match in self._index.set_item(key, labels, tuple(parents)):
            self._count(match.selector_id, addresses, +1 if match.started else -1)

    def remove_item(self, key: ItemKey) -> None:
        addresses = self._items.pop(key, None)
        if addresses is not None:
            for match in self._index.remove_item(key):
                self._count(match.selector_id, addresses, -1)

    def items(self) -> Iterable[tuple[ItemKey, Addresses]]:
        """What every object brings."""
        return self._items.items()

    def set_profile_labels(self, profile: str, labels: Mapping[str, str] | None) -> None:
        """The labels that endpoints of a profile inherit; None when the profile is gone."""
        index = self._index
        changes = index.remove_parent(profile) if labels is None else index.set_parent(profile, labels)
        for match in changes:
            self._count(match.selector_id, self._items[match.item_id], +1 if match.started else -1)

    def need(self, refs: Iterable[SelectorRef]) -> None:
        """Keep exactly these sets from now on."""
        wanted = set(refs)
        for ref in self._counts.keys() - wanted:
            self._index.remove_selector(ref)
            del self._counts[ref]
            self._sets.pop(ref, None)
            self._touched.pop(ref, None)
        for ref in wanted - self._counts.keys():
            self._counts[ref] = {}
            for match in self._index.set_selector(ref, ref.selector):
                self._count(ref, self._items[match.item_id], +1)

    def members(self) -> dict[SetRef, Set[Member]]:
        """Every needed set; a set that did not change is the very same object as last time, one that did is its kin."""
        for ref, touched in self._touched.items():
            counts = self._counts[ref]
            come = {member for member in touched if member in counts}
            self._sets[ref] = self._sets[ref].changed(come, touched - come)
        self._touched.clear()
        for ref in self._counts.keys() - self._sets.keys():
            self._sets[ref] = KinSet(self._counts[ref])
        return dict(self._sets)

    def _count(self, ref: SelectorRef, addresses: Addresses, change: int) -> None:
        counts = self._counts[ref]
        touched = self._touched.setdefault(ref, set()) if ref in self._sets else set()
        for member in addresses.members_of(ref):
            now = counts.get(member, 0) + change
            if now:
                counts[member] = now
            else:
                del counts[member]
            if now == 0 or (now == 1 and change > 0):
                touched.add(member)
