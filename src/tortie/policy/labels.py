"""Which of many selectors match which of many labelled items, kept up to date as either changes.

An item (an endpoint, a network set) has labels of its own and inherits those of its parents (profiles): its own win,
then those of the parent named first. A parent may be named before its labels are known.

So that a change touches few pairs, both sides are put in bins. A bin is `(label, value)`, or `(label, None)` for any
value, or `EVERY`:

    item {app: web, tier: front}      is in all that are its own:  (app, web) (app, -) (tier, front) (tier, -) EVERY
    selector app == "web" && has(x)   is in as few as will do:     (app, web)

What a selector can match shares a bin with it; among the choices its restrictions leave, the emptiest bins are taken.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from tortie.base.errors import NotFound
from tortie.policy.terms import Selector

SelectorId = TypeVar("SelectorId", bound=Hashable)
ItemId = TypeVar("ItemId", bound=Hashable)
Member = TypeVar("Member", bound=Hashable)

Bin = tuple[str, str | None] | None
EVERY: Bin = None


class Match(NamedTuple, Generic[SelectorId, ItemId]):
    """A selector started, or stopped, matching an item."""

    selector_id: SelectorId
    item_id: ItemId
    started: bool


@dataclass(slots=True)
class _Item(Generic[SelectorId]):
    arrival: int
    own: dict[str, str] = field(default_factory=dict)
    parents: tuple[Hashable, ...] = ()
    labels: dict[str, str] | None = None  # own and inherited; None until put in its bins
    matched: set[SelectorId] = field(default_factory=set)


@dataclass(slots=True)
class _Asked(Generic[ItemId]):
    """A selector with the bins it was put in; these stay as chosen until it changes."""

    arrival: int
    selector: Selector
    bins: tuple[Bin, ...] = ()
    matched: set[ItemId] = field(default_factory=set)


class _Bins(Generic[Member]):
    """Who is in which bin; an empty bin takes no room."""

    def __init__(self) -> None:
        self._members: dict[Bin, set[Member]] = {}

    def put(self, member: Member, bins: Iterable[Bin]) -> None:
        for bin_ in bins:
            self._members.setdefault(bin_, set()).add(member)

    def drop(self, member: Member, bins: Iterable[Bin]) -> None:
        for bin_ in bins:
            members = self._members[bin_]
            members.remove(member)
            if not members:
                del self._members[bin_]

    def of(self, bins: Iterable[Bin]) -> set[Member]:
        """All that are in any of these."""
        return set().union(*[self._members[bin_] for bin_ in bins if bin_ in self._members])

    def count(self, bins: Iterable[Bin]) -> int:
        return sum(len(self._members.get(bin_, ())) for bin_ in bins)


class LabelIndex(Generic[SelectorId, ItemId]):
    """Every change returns the matches it started and stopped, by arrival of the selector, then of the item.

    What matches depends on what was set last, not on the order; to set what is set, or remove what is not there,
    changes nothing.
    """

    def __init__(self) -> None:
        self._arrivals = 0
        self._items: dict[ItemId, _Item[SelectorId]] = {}
        self._selectors: dict[SelectorId, _Asked[ItemId]] = {}
        self._parents: dict[Hashable, dict[str, str]] = {}
        self._children: dict[Hashable, set[ItemId]] = {}
        self._items_in = _Bins[ItemId]()
        self._selectors_in = _Bins[SelectorId]()

    def set_item(
        self, item_id: ItemId, labels: Mapping[str, str], parents: Sequence[Hashable] = ()
    ) -> list[Match[SelectorId, ItemId]]:
        """The item has these labels and these parents, those that come first winning over those that come later."""
        item = self._items.get(item_id)
        if item is None:
            item = self._items[item_id] = _Item(self._arrival())
        self._leave_parents(item_id, item)
        item.own, item.parents = dict(labels), tuple(parents)
        for parent_id in item.parents:
            self._children.setdefault(parent_id, set()).add(item_id)
        return self._relabel(item_id, item)

    def remove_item(self, item_id: ItemId) -> list[Match[SelectorId, ItemId]]:
        item = self._items.get(item_id)
        if item is None:
            return []
        stopped = self._record(Match(selector_id, item_id, False) for selector_id in item.matched)
        self._leave_parents(item_id, item)
        self._items_in.drop(item_id, _bins_of(item.labels or {}))
        del self._items[item_id]
        return stopped

    def set_parent(self, parent_id: Hashable, labels: Mapping[str, str]) -> list[Match[SelectorId, ItemId]]:
        """The labels that all items with this parent inherit, now or later."""
        if self._parents.get(parent_id) == labels:
            return []
        self._parents[parent_id] = dict(labels)
        return self._relabel_children(parent_id)

    def remove_parent(self, parent_id: Hashable) -> list[Match[SelectorId, ItemId]]:
        """The labels are gone; items may go on naming this parent."""
        self._parents.pop(parent_id, None)
        return self._relabel_children(parent_id)

    def set_selector(self, selector_id: SelectorId, selector: Selector) -> list[Match[SelectorId, ItemId]]:
        asked = self._selectors.get(selector_id)
        if asked is None:
            asked = self._selectors[selector_id] = _Asked(self._arrival(), selector)
        elif asked.selector == selector:
            return []
        self._selectors_in.drop(selector_id, asked.bins)
        asked.selector, asked.bins = selector, self._choose_bins(selector)
        self._selectors_in.put(selector_id, asked.bins)
        hits = {item_id for item_id in self._items_in.of(asked.bins) if selector.matches(self.labels_of(item_id))}
        changed = asked.matched ^ hits
        return self._record(Match(selector_id, item_id, item_id in hits) for item_id in changed)

    def remove_selector(self, selector_id: SelectorId) -> list[Match[SelectorId, ItemId]]:
        asked = self._selectors.get(selector_id)
        if asked is None:
            return []
        stopped = self._record(Match(selector_id, item_id, False) for item_id in asked.matched)
        self._selectors_in.drop(selector_id, asked.bins)
        del self._selectors[selector_id]
        return stopped

    def matching_items(self, selector_id: SelectorId) -> frozenset[ItemId]:
        """The items it matches; none when there is no such selector."""
        asked = self._selectors.get(selector_id)
        return frozenset(asked.matched) if asked else frozenset()

    def matching_selectors(self, item_id: ItemId) -> frozenset[SelectorId]:
        """The selectors that match it; none when there is no such item."""
        item = self._items.get(item_id)
        return frozenset(item.matched) if item else frozenset()

    def labels_of(self, item_id: ItemId) -> Mapping[str, str]:
        """Its own and inherited labels; not to be changed. Raises NotFound."""
        item = self._items.get(item_id)
        if item is None or item.labels is None:
            raise NotFound(f"no labelled item {item_id!r}")
        return item.labels

    def _arrival(self) -> int:
        self._arrivals += 1
        return self._arrivals

    def _leave_parents(self, item_id: ItemId, item: _Item[SelectorId]) -> None:
        for parent_id in set(item.parents):
            children = self._children[parent_id]
            children.remove(item_id)
            if not children:
                del self._children[parent_id]

    def _relabel_children(self, parent_id: Hashable) -> list[Match[SelectorId, ItemId]]:
        changes: list[Match[SelectorId, ItemId]] = []
        for item_id in self._children.get(parent_id, ()):
            changes += self._relabel(item_id, self._items[item_id])
        changes.sort(key=self._by_arrival)
        return changes

    def _relabel(self, item_id: ItemId, item: _Item[SelectorId]) -> list[Match[SelectorId, ItemId]]:
        """Bring its labels, bins and matches up to date with its own labels and those of its parents."""
        labels: dict[str, str] = {}
        for parent_id in reversed(item.parents):
            labels.update(self._parents.get(parent_id, {}))
        labels.update(item.own)
        if labels == item.labels:
            return []
        before = set() if item.labels is None else set(_bins_of(item.labels))
        after = set(_bins_of(labels))
        self._items_in.drop(item_id, before - after)
        self._items_in.put(item_id, after - before)
        item.labels = labels
        near = self._selectors_in.of(after)
        hits = {selector_id for selector_id in near if self._selectors[selector_id].selector.matches(labels)}
        changed = item.matched ^ hits
        return self._record(Match(selector_id, item_id, selector_id in hits) for selector_id in changed)

    def _record(self, changes: Iterable[Match[SelectorId, ItemId]]) -> list[Match[SelectorId, ItemId]]:
        """Note the changes on both sides and put them in order."""
        ordered = sorted(changes, key=self._by_arrival)
        for selector_id, item_id, started in ordered:
            asked, item = self._selectors[selector_id], self._items[item_id]
            if started:
                asked.matched.add(item_id)
                item.matched.add(selector_id)
            else:
                asked.matched.remove(item_id)
                item.matched.remove(selector_id)
        return ordered

    def _by_arrival(self, match: Match[SelectorId, ItemId]) -> tuple[int, int]:
        return self._selectors[match.selector_id].arrival, self._items[match.item_id].arrival

    def _choose_bins(self, selector: Selector) -> tuple[Bin, ...]:
        """Bins of which everything that `selector` can match is in at least one; none if it can match nothing.

        The fewest items decide. Where policies arrive before pods all bins are empty: then a definite value is better
        than a mere presence, and bins with few selectors in them spread what would crowd in `orchestrator == "k8s"`.
        """
        restrictions = selector.restrictions()
        if any(restriction.impossible for restriction in restrictions.values()):
            return ()
        choices: list[tuple[int, bool, int, tuple[Bin, ...]]] = []
        for label, restriction in sorted(restrictions.items(), key=lambda entry: entry[0]):
            bins: tuple[Bin, ...]
            if restriction.values is not None:
                bins = tuple([(label, value) for value in sorted(restriction.values)])
            elif restriction.must_be_present:
                bins = ((label, None),)
            else:
                continue
            vague = restriction.values is None
            choices.append((self._items_in.count(bins), vague, self._selectors_in.count(bins), bins))
        return min(choices, key=lambda choice: choice[:3])[3] if choices else (EVERY,)


def _bins_of(labels: Mapping[str, str]) -> Iterator[Bin]:
    yield EVERY
    for label, value in labels.items():
        yield label, None
        yield label, value
