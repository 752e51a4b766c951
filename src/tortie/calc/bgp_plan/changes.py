"""What is to change of a cluster's routing, and the safety net that a plan may hang under it meanwhile.

The net is a FelixConfiguration that has every agent write the routes to un-encapsulated blocks by itself, under BIRD's:
sessions may then come and go. What it was before is kept in an annotation, so that whoever finds it can put it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from msgspec.structs import replace

from tortie.base.errors import ConfigError, Conflict
from tortie.calc.admission import Objects, admit
from tortie.model.bgp import BGPConfiguration, BGPPeer
from tortie.model.bgpfilter import BGPFilter
from tortie.model.kinds import KINDS
from tortie.model.meta import Metadata, Resource, changed
from tortie.model.node import FelixConfiguration, Node, NodeBGPSpec, NodeSpec
from tortie.model.secret import Secret

_Spec = TypeVar("_Spec", NodeSpec, NodeBGPSpec)

PLANNED: tuple[type[Resource], ...] = tuple(
    kind for kind in KINDS if kind in (Secret, FelixConfiguration, Node, BGPConfiguration, BGPFilter, BGPPeer)
)
"""The kinds that a plan changes, in the order in which they are written."""

NET = "tortie.dev/bgp-plan"
"""The annotation of the FelixConfiguration that is a plan's net: the `programClusterRoutes` of before."""
_NO_OBJECT = "none"
_WITH_NET = {None: "Enabled", "": "Enabled", "EnabledIPIPOnly": "Enabled", "Disabled": "EnabledNoEncapOnly"}
"""What to say instead, so that the agent writes routes without a tunnel too; what is not here means that already."""


@dataclass(frozen=True, slots=True)
class Change:
    """An object that is created (no `old`), changed, or deleted (no `new`)."""

    old: Resource | None
    new: Resource | None

    @property
    def resource(self) -> Resource:
        found = self.new or self.old
        assert found is not None
        return found

    @property
    def verb(self) -> str:
        return "create" if self.old is None else "delete" if self.new is None else "change"

    @property
    def group(self) -> tuple[int, str]:
        """Changes of one group are made together. Nodes that begin to reflect routes, and nodes that cease to, are
        groups of their own: their sessions are others afterwards."""
        kind = PLANNED.index(type(self.resource))
        if isinstance(self.resource, Node):
            before, after = (bool(_bgp(one).route_reflector_cluster_id) for one in (self.old, self.new))
            return kind, "reflects" if after > before else "reflects no more" if before > after else "changes"
        return kind, self.verb

    def __str__(self) -> str:
        return f"{self.verb} {self.resource.title}"


def differing(before: Objects, after: Objects) -> tuple[Change, ...]:
    """In the order in which they are written: what others refer to is created first and deleted last."""
    written: list[Change] = []
    deleted: list[Change] = []
    for kind in PLANNED:
        old = {(one.namespace, one.name): one for one in before.all(kind)}
        new = {(one.namespace, one.name): one for one in after.all(kind)}
        for key in sorted(old.keys() | new.keys()):
            change = Change(old.get(key), new.get(key))
            if change.new is None:
                deleted.append(change)
            elif change.old is None or _said(change.old) != _said(change.new):
                written.append(change)
    return (*written, *reversed(deleted))


def overlaid(present: Objects, documents: Iterable[tuple[Resource, str]], prune: bool) -> Objects:
    """What is there, with documents (and where each is from) applied. `prune`: BGPPeers that are in none of them go.

    What agents publish of their nodes stays where a document leaves it out. Raises an ExceptionGroup with a ConfigError
    for each document that is wrong.
    """
    after = copied(present)
    wrong: list[ConfigError] = []
    peers: set[str] = set()
    for new, source in sorted(documents, key=lambda one: KINDS.index(type(one[0]))):
        old = after.get(type(new), new.name, new.namespace)
        try:
            if type(new) not in PLANNED:
                raise ConfigError(f"is none of {', '.join(kind.KIND.kind for kind in PLANNED)}")
            after.put(admit(_published(new, old), old, after))
        except ConfigError as error:
            wrong.append(error.within(source, new.title))
        if isinstance(new, BGPPeer):
            peers.add(new.name)
    if wrong:
        raise ExceptionGroup("documents are wrong", wrong)
    for peer in after.all(BGPPeer) if prune else ():
        if peer.name not in peers:
            after.drop(peer)
    return after


def copied(objects: Objects) -> Objects:
    return type(objects)(one for kind in KINDS for one in objects.all(kind))


def rebased(change: Change, current: Resource | None) -> Resource | None:
    """What to write when an object is no longer what the change was decided on: what others changed meanwhile stays.

    None for an object that is already as it should be. Raises Conflict when it was created, or deleted, meanwhile.
    """
    old, new = change.old, change.new
    assert new is not None
    if current is None:
        if old is not None:
            raise Conflict(f"{new.title} was deleted by somebody else meanwhile")
        return new
    if old is None:
        if _said(new) != _said(current):
            raise Conflict(f"{new.title} was created by somebody else meanwhile")
        return None  # it is to come back, and never went
    merged = changed(_merged(old, new, current), resource_version=current.metadata.resource_version)
    merged = replace(merged, status=current.status) if hasattr(current, "status") else merged
    return None if _said(merged) == _said(current) else merged


def _merged(old: Any, new: Any, current: Any) -> Any:
    """Field by field what is new where it is new, and what is current elsewhere; metadata, spec and a Node's BGP are
    looked into."""
    said = {}
    for name in new.__struct_fields__:
        before, after, now = getattr(old, name), getattr(new, name), getattr(current, name)
        if after == before:
            said[name] = now
        elif name in _LOOKED_INTO and None not in (before, after, now):
            said[name] = _merged(before, after, now)
    return replace(new, **said)


_LOOKED_INTO = ("metadata", "spec", "bgp")


# --- the net ------------------------------------------------------------------------------------------------------


def has_net(objects: Objects) -> bool:
    """Whether a plan's net is there."""
    felix = objects.get(FelixConfiguration, "default")
    return felix is not None and NET in felix.metadata.annotations


def with_net(objects: Objects) -> Objects:
    """The same with the net, which changes nothing where agents write these routes anyway."""
    if has_net(objects):
        return objects
    felix = objects.get(FelixConfiguration, "default")
    said = felix.spec.program_cluster_routes if felix is not None else None
    before = _NO_OBJECT if felix is None else said or ""
    felix = felix or FelixConfiguration(metadata=Metadata(name="default"))
    annotated = changed(felix, annotations={**felix.metadata.annotations, NET: before})
    after = copied(objects)
    after.put(replace(annotated, spec=replace(felix.spec, program_cluster_routes=_WITH_NET.get(said, said))))
    return after


def without_net(objects: Objects) -> Objects:
    """The same as it was before the net."""
    felix = objects.get(FelixConfiguration, "default")
    if felix is None or NET not in felix.metadata.annotations:
        return objects
    after = copied(objects)
    said = felix.metadata.annotations[NET]
    rest = {name: value for name, value in felix.metadata.annotations.items() if name != NET}
    plain = replace(
        changed(felix, annotations=rest),
        spec=replace(felix.spec, program_cluster_routes=None if said in ("", _NO_OBJECT) else said),
    )
    if said == _NO_OBJECT and plain.spec == FelixConfiguration().spec:
        after.drop(felix)
    else:
        after.put(plain)
    return after


# --- pieces -------------------------------------------------------------------------------------------------------


def _said(resource: Resource) -> Resource:
    """Without what only the datastore says of an object, and what its status is."""
    plain = changed(
        resource, resource_version="", generation=None, creation_timestamp=None, uid="", managed_fields=None
    )
    return replace(plain, status=None) if hasattr(plain, "status") else plain


def _bgp(node: Resource | None) -> NodeBGPSpec:
    return node.spec.bgp or NodeBGPSpec() if isinstance(node, Node) else NodeBGPSpec()


def _published(new: Resource, old: Resource | None) -> Resource:
    """A Node with its addresses, tunnels and whatever else its agent writes, where the document has none of them."""
    if not (isinstance(new, Node) and isinstance(old, Node)):
        return new
    bgp = _filled(_bgp(new), _bgp(old), _ADDRESSES)
    spec = _filled(new.spec, old.spec, _OF_THE_AGENT)
    of_kubernetes = {key: value for key, value in old.labels.items() if key.partition("/")[0].endswith("kubernetes.io")}
    labelled = changed(new, labels={**of_kubernetes, **new.labels})
    return replace(labelled, spec=replace(spec, bgp=bgp if bgp != NodeBGPSpec() else None))


_ADDRESSES = ("ipv4_address", "ipv6_address", "ipv4_ipip_tunnel_addr")
_OF_THE_AGENT = tuple(name for name in NodeSpec.__struct_fields__ if name != "bgp")


def _filled(new: _Spec, old: _Spec, names: Iterable[str]) -> _Spec:
    return replace(new, **dict(_missing(new, old, names)))


def _missing(new: object, old: object, names: Iterable[str]) -> Iterator[tuple[str, object]]:
    for name in names:
        if not getattr(new, name):
            yield name, getattr(old, name)
