"""The `Store` that is an etcd.

    get, list ──► ranges, linearizable ─────────────────────────────────────────┐
    create, update, delete ──► read, decide (`rules`), swap (`writes`) ─────────┼─► a member (`wire`)
    watch ──► a stream (`watch`) ───────────────────────────────────────────────┘
                                                                 keys and values: `layout`

Revisions are etcd's. A stored object that this version cannot read is left out of lists and watches, with a warning:
one strange object must not hide the others.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from aetcd import rpc

from tortie.base.errors import Compacted, Conflict, NotSupported, Unavailable
from tortie.ipam import names
from tortie.model.apiconfig import ApiConfig
from tortie.model.closed_rules import unknown_conditions
from tortie.model.ipam import BlockAffinity, IPAMConfig, IPAMHandle
from tortie.model.meta import Metadata, Resource
from tortie.model.policy import Profile, ProfileSpec, Rule
from tortie.model.store import Event, EventType, Listing
from tortie.policy.translate import DEFAULT_ALLOW
from tortie.store import rules
from tortie.store.etcd import layout
from tortie.store.etcd.watch import Watch
from tortie.store.etcd.wire import ATTEMPT, PATIENCE, QUIET, Wire
from tortie.store.etcd.writes import Writes

R = TypeVar("R", bound=Resource)

log = logging.getLogger(__name__)

PAGE = 4_000_000
"""Bytes of a page of a list, about."""
FEWEST, MOST = 16, 5_000
"""Objects of a page."""
FIRST_PAGE = 500
PAGE_TIME = 30.0
"""Seconds that a page may take."""
REMEMBERED, SMALL = 256, 32_000
"""How many objects of how many bytes are remembered for their next update."""
RETRIES = 100
"""How often an unconditional write that others were quicker than is tried again."""
REMARKS = 1000
"""How many things that are not known are told of."""
INDEX = re.compile(r"\[\d+\]")
LONG_NAME = 200
"""Affinities of names this long may have been shortened: what they are of is found by looking at all."""

DEFAULT = Profile(
    metadata=Metadata(name=DEFAULT_ALLOW, resource_version="0"),
    spec=ProfileSpec(ingress=(Rule(action="Allow"),), egress=(Rule(action="Allow"),)),
)
"""The profile that is always there, though nobody has stored it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a key holds, and the revisions of its last and first write."""

    key: bytes
    value: bytes
    revision: int
    created: int


class EtcdStore:
    """Implements `tortie.model.store.Store`. `patience` is how many seconds a call looks for a member that answers;
    `quiet`, how long a watch believes in one that says nothing before it asks, and then waits for the answer."""

    def __init__(self, config: ApiConfig, patience: float = PATIENCE, quiet: float = QUIET) -> None:
        """Raises ConfigError and NotSupported for what is wrong with the configuration; nothing is asked yet."""
        self._wire = Wire(config, patience, quiet)
        self._writes = Writes(self._wire)
        self._watches: set[Watch] = set()
        self._spellings = Spellings(self._wire)
        self._warned: dict[bytes, int] = {}
        """The keys that hold what cannot be read, and the revision of it."""
        self._remarked: set[str] = set()
        self._recent = Recent()
        self._listed = Listed()

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        if is_default(kind, name):
            self._wire.check_open()
            return DEFAULT  # type: ignore[return-value]
        stored = await self._find(kind, name, namespace)
        return rules.present(kind, name, namespace, self._read(kind, stored) if stored else None)

    async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
        for _ in range(RETRIES):
            try:
                pages, revision, cluster = await self._pages(*layout.span(kind, namespace))
                break
            except Compacted:
                continue  # while it was being read: begin anew
        else:
            raise Unavailable(f"etcd {self._wire.where}: its history is compacted faster than it can be listed")
        self._listed.note(str(revision), cluster)
        found = [obj for stored in pages if (obj := self._readable(kind, stored)) is not None]
        if not found and kind is IPAMConfig and (other := await self._find(kind, "default", "")):
            found = [self._read(kind, other)]
        if kind is Profile:
            found = [obj for obj in found if obj.name != DEFAULT_ALLOW] + [DEFAULT]  # type: ignore[list-item]
        wanted = (obj for obj in found if namespace in (None, obj.namespace))
        return Listing(tuple(sorted(wanted, key=lambda obj: (obj.namespace, obj.name))), str(revision))

    async def create(self, obj: R) -> R:
        kind = type(obj)
        new = rules.created(obj, None, 0)
        if is_default(kind, obj.name):
            rules.created(obj, obj, 0)
        key, value = layout.key(new), layout.value(new)
        alike = await self._find(kind, obj.name, obj.namespace) if len(_places(obj)) > 1 else None
        revision = None if alike else await self._writes.put(key, value, 0)
        if revision is None:
            rules.created(obj, obj, 0)  # raises Exists
        assert revision is not None
        self._spellings.note(key)
        return self._written(kind, Stored(key, value, revision, revision))

    async def update(self, obj: R) -> R:
        kind = type(obj)
        self._refuse_default(kind, obj.name, "update")
        recent = self._recent.get(layout.key(obj), obj.metadata.resource_version) if obj.name else None
        if recent and (new := await self._update_over(obj, recent, newest=False)):
            return new
        for _ in range(RETRIES):
            if new := await self._update_over(obj, await self._find(kind, obj.name, obj.namespace)):
                return new
        raise Conflict(f"update conflict: {rules.named(obj.KIND, obj.name, obj.namespace)}")

    async def delete(self, kind: type[R], name: str, namespace: str = "", revision: str = "") -> R:
        self._refuse_default(kind, name, "delete")
        keys = layout.keys(kind, name, namespace)
        recent = self._recent.get(keys[0], revision) if revision and len(keys) == 1 else None
        if recent and await self._writes.delete(recent.key, recent.revision):
            return self._read(kind, recent)
        for _ in range(RETRIES):
            stored = await self._find(kind, name, namespace)
            current = rules.present(kind, name, namespace, self._read(kind, stored) if stored else None)
            rules.at_revision(current, revision)
            assert stored is not None
            if await self._writes.delete(stored.key, stored.revision):
                return current
        raise Conflict(f"update conflict: {rules.named(kind.KIND, name, namespace)}")

    async def watch(self, kind: type[R], revision: str) -> AsyncIterator[tuple[Event[R], ...]]:
        self._wire.check_open()
        watch = Watch(self._wire, *layout.span(kind), kind.KIND.key, revision, self._listed.cluster_of(revision))
        self._watches.add(watch)
        try:
            async with aclosing(watch.batches()) as batches:
                async for batch in batches:
                    events = tuple(event for one in batch if (event := self._event(kind, one)) is not None)
                    if events:
                        yield events
        finally:
            self._watches.discard(watch)
            watch.close()

    async def compact(self, revision: str) -> None:
        """Forgets the history before a revision, which is not the Store protocol's: not every datastore is asked to.

        What is forgotten already is no error. Raises Unavailable.
        """
        with suppress(Compacted):
            await self._wire.ask("Compact", rpc.CompactionRequest(revision=int(revision)), PAGE_TIME)

    async def close(self) -> None:
        self._wire.closed = True
        for watch in list(self._watches):
            watch.close()
        await self._wire.close()

    async def _update_over(self, obj: R, stored: Stored | None, newest: bool = True) -> R | None:
        """Writes an object over what was read; None when that is no longer there, or is not the `newest` for sure and
        nothing would change."""
        kind = type(obj)
        current = self._read(kind, stored) if stored else None
        new = rules.updated(layout.normal(obj) if stored else obj, current, 0)
        assert stored is not None
        assert current is not None
        if new is current:
            return current if newest else None
        key = layout.key(new)
        same = key == stored.key
        value = layout.value_over(stored.value, current, new) if same else layout.value(new)
        at, first = (stored.revision, stored.created) if same else (0, 0)
        revision = await self._writes.put(key, value, at)
        return self._written(kind, Stored(key, value, revision, first or revision)) if revision else None

    async def _find(self, kind: type[Resource], name: str, namespace: str) -> Stored | None:
        """What is stored of an object; of several keys that its name may stand for, the first that is there."""
        keys = layout.keys(kind, name, namespace)
        if kind is BlockAffinity and not keys and len(name) > LONG_NAME:
            pages, *_ = await self._pages(*layout.span(kind))
            return next((stored for stored in pages if layout.identity(kind, stored.key) == ("", name)), None)
        found = await self._first(keys) if keys else None
        if found is None and kind is IPAMHandle and (spelt := await self._spellings.of(name)):
            found = await self._first((spelt,))
            if found is None:
                self._spellings.forget(spelt)
        return found

    async def _first(self, keys: Sequence[bytes]) -> Stored | None:
        if len(keys) == 1:
            kvs = (await self._wire.ask("Range", rpc.RangeRequest(key=keys[0]))).kvs
        else:
            ranges = [rpc.RequestOp(request_range=rpc.RangeRequest(key=key)) for key in keys]
            answers = (await self._wire.ask("Txn", rpc.TxnRequest(success=ranges))).responses
            kvs = [kv for answer in answers for kv in answer.response_range.kvs]
        if not kvs:
            return None
        found = _stored(kvs[0])
        self._recent.note(found)
        return found

    async def _pages(self, first: bytes, end: bytes) -> tuple[Sequence[Stored], int, int]:
        """All keys of a range at one revision, that, and the id of the etcd that it is of.

        Raises Compacted when it is gone before the last page is read.
        """
        found: list[Stored] = []
        limit, revision = FIRST_PAGE, 0
        while True:
            request = rpc.RangeRequest(key=first, range_end=end, limit=limit, revision=revision)
            page = await self._wire.ask("Range", request, PAGE_TIME if revision else ATTEMPT)
            revision = revision or page.header.revision
            kvs = [_stored(kv) for kv in page.kvs]
            found += kvs
            if not page.more:
                return found, revision, page.header.cluster_id
            first = kvs[-1].key + b"\0"
            size = sum(len(stored.value) for stored in kvs) / len(kvs)
            limit = max(FEWEST, min(MOST, int(PAGE / (size + 1))))

    def _read(self, kind: type[R], stored: Stored, left_out: layout.Paths | None = None) -> R:
        """Raises NotSupported naming the key."""
        try:
            return layout.read(kind, stored.key, stored.value, stored.revision, stored.created, left_out)
        except NotSupported as error:
            raise NotSupported(f"etcd key {stored.key.decode(errors='replace')}: {error}") from None

    def _written(self, kind: type[R], stored: Stored) -> R:
        self._recent.note(stored)
        return self._read(kind, stored)

    def _readable(self, kind: type[R], stored: Stored) -> R | None:
        """The object; None, with a warning the first time, for what cannot be read, or where there is none."""
        if layout.identity(kind, stored.key) is None:
            return None
        left_out: layout.Paths = []
        try:
            found = self._read(kind, stored, left_out)
            if left_out:
                self._remark(found, stored.key, left_out)
            return found
        except NotSupported as error:
            if self._warned.get(stored.key) != stored.revision:
                self._warned[stored.key] = stored.revision
                log.warning("%s; it is left out", error)
            return None

    def _remark(self, found: Resource, key: bytes, left_out: Sequence[str]) -> None:
        """Says what is not known to this version: of a policy's rules each time another one lets nothing through for
        it, of other fields once. Says of entries that cannot be read where they are and what is wrong with them."""
        lines = [*unknown_conditions(found), *(line for line in left_out if " " in line)]
        paths = [path for path in left_out if " " not in path]
        fields = [f"{found.KIND.kind} {INDEX.sub('[]', path)}" for path in paths]
        new = [one for one in (*(f"{key!r} {line}" for line in lines), *fields) if one not in self._remarked]
        if new and len(self._remarked) < REMARKS:
            self._remarked.update(new)
            what = "; ".join(lines) or f"{', '.join(paths)}: not known to this version, without effect"
            log.warning("etcd key %s: %s", key.decode(errors="replace"), what)

    def _event(self, kind: type[R], event: Any) -> Event[R] | None:
        """What has happened, as watchers see it; None when nothing that they can see has changed."""
        place = layout.identity(kind, event.kv.key)
        if place is None or is_default(kind, place[1]):
            return None
        revision = event.kv.mod_revision
        if event.type == rpc.Event.DELETE:
            if not event.prev_kv.key:
                raise Compacted(f"watch {kind.KIND.key}: what was deleted at revision {revision} is gone; list again")
            last = self._readable(kind, _stored(event.prev_kv))
            self._warned.pop(event.kv.key, None)
            return None if last is None else Event(EventType.DELETED, rules.deleted(last, revision))
        new = self._readable(kind, _stored(event.kv))
        was_seen = event.kv.create_revision != revision
        if was_seen and (new is None or self._warned):
            before = self._readable(kind, _stored(event.prev_kv)) if event.prev_kv.key else None
            if new is None:  # it can be read no longer: for us that is its end
                return None if before is None else Event(EventType.DELETED, rules.deleted(before, revision))
            was_seen = before is not None
        return None if new is None else Event(EventType.MODIFIED if was_seen else EventType.ADDED, new)

    def _refuse_default(self, kind: type[Resource], name: str, doing: str) -> None:
        if is_default(kind, name):
            raise NotSupported(f"operation {doing} is not supported on Profile({name}): it is always the same")


class Listed:
    """Of which etcd the revisions of lists are: one that took another's place may have the same revisions."""

    def __init__(self) -> None:
        self._clusters: OrderedDict[str, int] = OrderedDict()

    def note(self, revision: str, cluster: int) -> None:
        self._clusters[revision] = cluster
        self._clusters.move_to_end(revision)
        if len(self._clusters) > REMEMBERED:
            self._clusters.popitem(last=False)

    def cluster_of(self, revision: str) -> int:
        """0 where it is not known."""
        return self._clusters.get(revision, 0)


class Recent:
    """What was read or written lately, so that an update of it need not read it again.

    What was stored at a revision stays true, and a write that compares it succeeds only if it is still the newest.
    """

    def __init__(self) -> None:
        self._stored: OrderedDict[bytes, Stored] = OrderedDict()

    def note(self, stored: Stored) -> None:
        if len(stored.value) <= SMALL:
            self._stored[stored.key] = stored
            self._stored.move_to_end(stored.key)
            if len(self._stored) > REMEMBERED:
                self._stored.popitem(last=False)

    def get(self, key: bytes, revision: str) -> Stored | None:
        """What a key holds as far as we remember, at a revision if one is given."""
        found = self._stored.get(key)
        return found if found is not None and revision in ("", str(found.revision)) else None


class Spellings:
    """Handles whose names in etcd have capitals: their objects are named in lower case, so that these must be found.

    Keys that were made since it was last asked are looked at, no others.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._seen = 0
        self._keys: dict[str, bytes] = {}

    def note(self, key: bytes) -> None:
        found = layout.identity(IPAMHandle, key) if key.startswith(layout.HANDLES.encode()) else None
        if found and layout.keys(IPAMHandle, found[1])[0] != key:
            self._keys[found[1]] = key

    def forget(self, key: bytes) -> None:
        """Nothing is there any more."""
        self._keys = {name: one for name, one in self._keys.items() if one != key}

    async def of(self, name: str) -> bytes | None:
        """The key of a handle that is not there in lower case."""
        first, end = layout.span(IPAMHandle)
        since = self._seen + 1
        answer = await self._wire.ask(
            "Range", rpc.RangeRequest(key=first, range_end=end, keys_only=True, min_create_revision=since), PAGE_TIME
        )
        self._seen = answer.header.revision
        for kv in answer.kvs:
            self.note(kv.key)
        return self._keys.get(names.handle_name(name))


def is_default(kind: type[Resource], name: str) -> bool:
    """Whether it is the profile that nobody stores."""
    return kind is Profile and name == DEFAULT_ALLOW


def _places(obj: Resource) -> tuple[bytes, ...]:
    """The keys that another object of this name may have; of an affinity only its own counts."""
    if isinstance(obj, BlockAffinity):
        return (layout.key(obj),)
    if isinstance(obj, IPAMHandle):
        own, lower = layout.key(obj), layout.keys(IPAMHandle, obj.name)
        return (own,) if own in lower else (own, *lower)
    return layout.keys(type(obj), obj.name, obj.namespace)


def _stored(kv: Any) -> Stored:
    return Stored(kv.key, kv.value, kv.mod_revision, kv.create_revision)
