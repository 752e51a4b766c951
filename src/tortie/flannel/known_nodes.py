"""What is known of a cluster's Nodes, and what a list makes of it: values in, values out.

    a list ──► has no Node of our own, or another one of its name? ──yes──► forgets nobody
           ──► lacks Nodes of which no watch said that they went?  ──yes──► each is asked for by name
           ──► older than what was seen, another history?          ──yes──► looked at again, then the same
    a watch ─► believed

How lists are judged is in `model/belief`, as for agents. An agent waits for a person where a history was rewritten;
here nobody would come: what such a list has is taken after a while, and what it lacks stays when we are not in it
ourselves. A route that nobody needs any more does no harm, and one too few cuts off a node.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tortie.flannel.annotations import Names, lease_of
from tortie.flannel.config import NetworkConfig
from tortie.flannel.lease import Lease
from tortie.model.belief import Judgement, judge, revision_of
from tortie.model.k8s import K8sNode
from tortie.model.store import Event, EventType, Listing


@dataclass(frozen=True, slots=True)
class _Known:
    revision: int
    lease: Lease | None
    problems: tuple[str, ...]


class KnownNodes:
    """`own` is our Node, None while it is not there. `complete` says whether a list was taken."""

    def __init__(self, name: str, config: NetworkConfig, names: Names) -> None:
        self.config = config
        self.own: K8sNode | None = None
        self.complete = False
        self._name = name
        self._names = names
        self._uid = ""
        self._seen = 0
        self._known: dict[str, _Known] = {}

    @property
    def leases(self) -> dict[str, Lease]:
        """Of the other Nodes."""
        return {name: one.lease for name, one in self._known.items() if one.lease is not None and name != self._name}

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with other Nodes, in lines."""
        return tuple(line for name, one in sorted(self._known.items()) if name != self._name for line in one.problems)

    def judge(self, listing: Listing[K8sNode], *, patient: bool) -> Judgement:
        """What to make of a list. Not `patient` any more: revisions do not count."""
        listed = {("", node.name): revision_of(node.metadata.resource_version) for node in listing.items}
        known = {("", name): one.revision for name, one in self._known.items()}
        seen, revision = (self._seen if patient else 0), revision_of(listing.revision)
        if not patient:
            known = dict.fromkeys(known, 0)
        return judge("nodes", seen, known, revision, listed)

    def stranger(self, listing: Listing[K8sNode]) -> str:
        """Why a list says nothing of who went: we are not in it as we were. "" where we are."""
        own = next((node for node in listing.items if node.name == self._name), None)
        if own is None:
            return f'node "{self._name}" itself is missing from the list of nodes'
        if self._uid and own.metadata.uid != self._uid:
            return f'node "{self._name}" is another one than before'
        return ""

    def add(self, listing: Listing[K8sNode]) -> None:
        """What a list has is taken; of what it lacks nothing is said."""
        everybody = {node.name for node in listing.items}.issuperset(self._known)
        for node in listing.items:
            self._put(node)
        self._seen = revision_of(listing.revision)
        if everybody and self.own is not None:
            self._uid = self.own.metadata.uid  # made anew, in the same cluster

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            self._known.pop(name, None)
            if name == self._name:
                self.own = None

    def hear(self, event: Event[K8sNode]) -> None:
        self._seen = max(self._seen, revision_of(event.object.metadata.resource_version))
        if event.type is EventType.DELETED:
            self.remove([event.object.name])
        else:
            self._put(event.object)

    def _put(self, node: K8sNode) -> None:
        lease, problems = lease_of(node, self.config, self._names)
        self._known[node.name] = _Known(revision_of(node.metadata.resource_version), lease, problems)
        if node.name == self._name:
            self.own, self._uid = node, self._uid or node.metadata.uid
