"""Workloads of this node that speak BGP with it: the endpoints that a BGPPeer's localWorkloadSelector matches.

A selector sees an endpoint's own labels and those of its profiles, as policy does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tortie.base.addr import IP
from tortie.calc.state import EndpointKey
from tortie.policy.labels import LabelIndex
from tortie.policy.selector import Selector


@dataclass(frozen=True, slots=True)
class LocalWorkload:
    """An endpoint of this node, as a session needs it."""

    interface: str
    ips: tuple[IP, ...]


class LocalWorkloads:
    """Feed it this node's endpoints, profiles' labels and selectors in any order; ask `matched`."""

    def __init__(self) -> None:
        self._index: LabelIndex[str, EndpointKey] = LabelIndex()
        self._endpoints: dict[EndpointKey, LocalWorkload] = {}
        self._selectors: dict[str, Selector] = {}

    def set_endpoint(
        self, key: EndpointKey, workload: LocalWorkload, labels: Mapping[str, str], profiles: Iterable[str]
    ) -> bool:
        """Whether it makes a difference to any session."""
        moved = self._endpoints.get(key) != workload
        self._endpoints[key] = workload
        matched = self._index.set_item(key, labels, tuple(profiles))
        return bool(matched) or (moved and self._matches(key))

    def remove_endpoint(self, key: EndpointKey) -> bool:
        self._endpoints.pop(key, None)
        return bool(self._index.remove_item(key))

    def set_profile_labels(self, name: str, labels: Mapping[str, str] | None) -> bool:
        """None when it is gone."""
        if labels is None:
            return bool(self._index.remove_parent(name))
        return bool(self._index.set_parent(name, labels))

    def set_selector(self, peer: str, selector: Selector | None) -> None:
        """That of a BGPPeer; None when it has none."""
        if selector is None:
            self._selectors.pop(peer, None)
            self._index.remove_selector(peer)
        else:
            self._selectors[peer] = selector
            self._index.set_selector(peer, selector)

    def matched(self, peer: str) -> Iterator[LocalWorkload]:
        """The endpoints that a BGPPeer has sessions with, by name."""
        for key in sorted(self._index.matching_items(peer)):
            yield self._endpoints[key]

    def _matches(self, key: EndpointKey) -> bool:
        return any(key in self._index.matching_items(peer) for peer in self._selectors)
