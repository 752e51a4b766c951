"""Which of many selectors match which of many labelled items, kept up to date as either changes.

An item (an endpoint, a network set) has labels of its own and inherits those of its parents (profiles): its own win,
then those of the parent named first. A parent may be named before its labels are known.

So that a change touches few pairs, both sides are put in bins. A bin is `(label, value)`, or `(label, None)` for any
value, or `EVERY`:

    item {app: web, tier: front}      is in all that are its own:  (app, web) (app, -) (tier, front) (tier, -) EVERY
    selector app == "web" && has(x)   is in as few as will do:     (app, web)

What a selector can match shares a bin with it; among the choices its restrictions leave, the emptiest bins are taken.
When labels of an item change, only the selectors that look at one of these are asked again.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from tortie.base.errors import NotFound
from tortie.policy.terms import Selector

SelectorId = TypeVar("SelectorId", bound=Hashable)
ItemId = TypeVar("ItemId", bound=Hashable)

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


class _Bins(Generic[SelectorId]):
    """Which selectors are in which bin; an empty bin takes no room."""

    def __init__(self) -> None:
        self._in: dict[Bin, set[SelectorId]] = {}

    def put(self, selector_id: SelectorId, bins: Iterable[Bin]) -> None:
        for bin_ in bins:
            self._in.setdefault(bin_, set()).add(selector_id)

    def drop(self, selector_id: SelectorId, bins: Iterable[Bin]) -> None:
        for bin_ in bins:
            inside = self._in[bin_]
            inside.remove(selector_id)
            if not inside:
                del self._in[bin_]

    def of(self, bins: Iterable[Bin]) -> set[SelectorId]:
        """All that are in any of these."""
        return set().union(*[self._in[bin_] for bin_ in bins if bin_ in self._in])

    def count(self, bins: Iterable[Bin]) -> int:
        return sum(len(self._in.get(bin_, ())) for bin_ in bins)


class _Labelled(Generic[ItemId]):
    """The items by label and value; the bins of items are made of these."""

    def __init__(self) -> None:
        self._by_label: dict[str, dict[str, set[ItemId]]] = {}

    def put(self, item_id: ItemId, labels: Iterable[tuple[str, str]]) -> None:
        for label, value in labels:
            self._by_label.setdefault(label, {}).setdefault(value, set()).add(item_id)

    def drop(self, item_id: ItemId, labels: Iterable[tuple[str, str]]) -> None:
        for label, value in labels:
            by_value = self._by_label[label]
            by_value[value].remove(item_id)
            if not by_value[value]:
                del by_value[value]
            if not by_value:
                del self._by_label[label]

    def of(self, bins: Iterable[tuple[str, str | None]]) -> set[ItemId]:
        """All that are in any of these."""
        return set().union(*[found for bin_ in bins for found in self._in(*bin_)])

    def count(self, bins: Iterable[tuple[str, str | None]]) -> int:
        return sum(len(found) for bin_ in bins for found in self._in(*bin_))

    def _in(self, label: str, value: str | None) -> Iterable[set[ItemId]]:
        by_value = self._by_label.get(label, {})
        if value is None:
            return by_value.values()
        return (by_value[value],) if value in by_value else ()


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
        self._labelled = _Labelled[ItemId]()
        self._selectors_in = _Bins[SelectorId]()
        self._looking_at: dict[str, set[SelectorId]] = {}
        """The selectors that look at a label."""

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
        self._labelled.drop(item_id, (item.labels or {}).items())
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
        else:
            self._withdraw(selector_id, asked)
        asked.selector, asked.bins = selector, self._choose_bins(selector)
        self._selectors_in.put(selector_id, asked.bins)
        for label in selector.labels():
            self._looking_at.setdefault(label, set()).add(selector_id)
        near = self._items if EVERY in asked.bins else self._labelled.of(filter(None, asked.bins))
        hits = {item_id for item_id in near if selector.matches(self.labels_of(item_id))}
        changed = asked.matched ^ hits
        return self._record(Match(selector_id, item_id, item_id in hits) for item_id in changed)

    def remove_selector(self, selector_id: SelectorId) -> list[Match[SelectorId, ItemId]]:
        asked = self._selectors.get(selector_id)
        if asked is None:
            return []
        stopped = self._record(Match(selector_id, item_id, False) for item_id in asked.matched)
        self._withdraw(selector_id, asked)
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

    def _withdraw(self, selector_id: SelectorId, asked: _Asked[ItemId]) -> None:
        """Out of its bins, and of what its labels are asked for."""
        self._selectors_in.drop(selector_id, asked.bins)
        for label in asked.selector.labels():
            looking = self._looking_at[label]
            looking.remove(selector_id)
            if not looking:
                del self._looking_at[label]

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
        before, item.labels = item.labels, labels
        if labels == before:
            return []
        near = self._selectors_in.of(_bins_of(labels))
        asked = item.matched
        if before is None:
            self._labelled.put(item_id, labels.items())
        else:
            self._labelled.drop(item_id, before.items() - labels.items())
            self._labelled.put(item_id, labels.items() - before.items())
            other = {label for label, _ in before.items() ^ labels.items()}
            looking = set[SelectorId]().union(*[self._looking_at.get(label, ()) for label in other])
            near, asked = near & looking, asked & looking
        hits = {selector_id for selector_id in near if self._selectors[selector_id].selector.matches(labels)}
        return self._record(Match(selector_id, item_id, selector_id in hits) for selector_id in asked ^ hits)

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
        choices: list[tuple[int, bool, int, tuple[tuple[str, str | None], ...]]] = []
        for label, restriction in sorted(restrictions.items(), key=lambda entry: entry[0]):
            bins: tuple[tuple[str, str | None], ...]
            if restriction.values is not None:
                bins = tuple([(label, value) for value in sorted(restriction.values)])
            elif restriction.must_be_present:
                bins = ((label, None),)
            else:
                continue
            vague = restriction.values is None
            choices.append((self._labelled.count(bins), vague, self._selectors_in.count(bins), bins))
        return min(choices, key=lambda choice: choice[:3])[3] if choices else (EVERY,)


def _bins_of(labels: Mapping[str, str]) -> Iterator[Bin]:
    yield EVERY
    for label, value in labels.items():
        yield label, None
        yield label, value
