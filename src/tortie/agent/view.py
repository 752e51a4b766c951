"""The agent's picture of the cluster: fed by watches and by what the agent itself has just written.

    snapshot of an earlier agent ─┐
    lists and watches (following) ┼─► objects, each with its revision ─► Cluster ─► DesiredState
    what CNI calls write          ┘

Nothing leaves before every kind has been listed once, or the snapshot is what there is: a restarted agent writes no
half picture over a good kernel. An object is only replaced by a newer revision of itself, so that a watch that is
behind does not undo what a CNI call put in directly; nor does it bring back what one has deleted. What is put in ahead
of being written stays until the datastore has it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager

from tortie.agent.datastore import Datastore
from tortie.agent.following import Following
from tortie.agent.known import ALSO, Known
from tortie.agent.sharing import share
from tortie.base.errors import Unavailable
from tortie.calc.cluster import INPUTS, Cluster
from tortie.calc.hosts import asks_interfaces
from tortie.calc.routing import BgpEnvironment
from tortie.calc.state import DesiredState
from tortie.model.belief import Judgement, judge, revision_of
from tortie.model.belief import Key as Name
from tortie.model.k8s import Pod
from tortie.model.meta import Resource, changed
from tortie.model.node import ClusterInformation
from tortie.model.secret import Secret
from tortie.model.store import Event, EventType, Listing, Store
from tortie.model.workload import INTERFACE_PREFIX, WorkloadEndpoint

log = logging.getLogger(__name__)

Key = tuple[type[Resource], str, str]

QUIET = 0.01
"""Seconds between two states when changes keep coming: Calico's calculation graph flushes as often."""
GATHER = 0.03
"""Seconds that the endpoint of a pod waits for those of others that are being attached: many at once are one state, and
one pass over the kernel, in place of many."""
RETRY = 1.0
HOLD = 10.0
"""Seconds in which states wait for the rest of the kinds, when a datastore is back after a snapshot: the policies of a
pod may come after it."""
TOMBSTONES = 1000
"""Deletions remembered. A watch is behind by milliseconds, not by a thousand deletions."""


class View:
    """Owns the Cluster. All methods run on the event loop."""

    def __init__(
        self,
        node: str,
        store: Store,
        publish: Callable[[DesiredState], None],
        *,
        bird: bool = True,
        environment: BgpEnvironment | None = None,
    ) -> None:
        self.cluster = Cluster(node, bird=bird, environment=environment)
        self.known = Known(node)
        self.datastore = store if isinstance(store, Datastore) else Datastore(store)
        self.following = Following(self, self.datastore)
        self.changed: Callable[[type[Resource], str, str], None] = lambda kind, namespace, name: None
        """Told of every object that the datastore has or has no more, for whoever keeps a copy."""
        self.snapshot_from: float | None = None
        """Of when the picture is, in seconds since 1970, while it is a snapshot's."""
        self._publish = publish
        self._held: dict[type[Resource], dict[Name, tuple[int, Resource]]] = {}
        """Everything that is there, with its revision."""
        self._seen: dict[type[Resource], int] = {}
        """By kind the highest revision that was seen of it, of an object or a list."""
        self._tombstones: dict[Key, int] = {}
        """What is deleted, oldest first, with the last revision known of it."""
        self._ahead: dict[Key, Resource] = {}
        """What is in the picture and not in the datastore yet."""
        self._unlisted: set[type[Resource]] = set(INPUTS)
        self._flush: asyncio.TimerHandle | asyncio.Handle | None = None
        self._last_flush = 0.0
        self._attaching = 0
        self._latest: DesiredState | None = None
        self._reported: dict[str, str] = {}
        self._held_back: float | None = None
        self._restored = False
        self.in_sync = asyncio.Event()
        self.secrets_wanted = asyncio.Event()
        self.cluster.secrets_are_known(False)

    @property
    def interfaces(self) -> Container[str]:
        """Those of this node's endpoints in the state that was published last."""
        return self._latest.endpoints if self._latest is not None else ()

    def pod_at(self, interface: str) -> str:
        """`red/web`: whose interface it is; its own name while that is not known."""
        here = self._latest.endpoints.get(interface) if self._latest is not None else None
        endpoint = self.cluster.endpoint(here.key) if here is not None else None
        return f"{endpoint.namespace}/{endpoint.spec.pod}" if endpoint is not None and endpoint.spec.pod else interface

    @property
    def latest(self) -> DesiredState | None:
        """The state that was published last; None before the first."""
        return self._latest

    def revisions(self) -> dict[str, int]:
        """By kind the highest revision of what has been heard of, be it there or gone."""
        return {kind.KIND.key: revision for kind, revision in self._seen.items()}

    @property
    def live(self) -> bool:
        """Whether every kind has been listed since this agent started."""
        return not self._unlisted

    def serves(self, kind: type[Resource]) -> bool:
        """Whether what is known of a kind is to be used without asking: it is followed, or there is nobody to ask."""
        return self.known.current(kind) or bool(self.datastore.away or self.datastore.disbelief)

    def objects(self, kind: type[Resource]) -> Mapping[Name, tuple[int, Resource]]:
        """Those of a kind that are there, with their revisions."""
        return self._held.get(kind, {})

    def matches_interface(self, name: str) -> bool:
        """Whether a host endpoint may become that of an interface, or cease to be, as it comes, goes or is renamed."""
        return self._latest is not None and asks_interfaces(self._latest) and not name.startswith(INTERFACE_PREFIX)

    def matches_address(self, ip: str) -> bool:
        """Whether some host endpoint of this node waits for an address."""
        hosts = self._latest.host_endpoints.values() if self._latest is not None else ()
        return any(ip == str(expected) for host in hosts if not host.interface for expected in host.expected_ips)

    async def follow(self, kind: type[Resource]) -> None:
        """List a kind, then apply its changes; forever. A lost history or a datastore that is away starts over."""
        await self.following.follow(kind)

    @contextmanager
    def attaching(self) -> Iterator[None]:
        """While the block runs a pod is being attached, whose endpoint is put in ahead next."""
        self._attaching += 1
        try:
            yield
        finally:
            self._attaching -= 1

    def put_ahead(self, resource: Resource) -> int | None:
        """Something that this agent is going to write: it counts from now on. The answer is the generation of the first
        state that has it; None while not in sync. That state is made at once, or together with those of other pods."""
        self._ahead[_key(resource)] = resource
        self.cluster.put(resource)
        if not self._attaching or not self.in_sync.is_set():
            state = self._publish_now()
            if state is None and self.in_sync.is_set():  # it is held back, and will be in the next one
                return self.cluster.generation + 1
            return None if state is None else state.generation
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(GATHER, self._publish_now)
        return self.cluster.generation + 1

    def withdraw(self, resource: Resource) -> None:
        """It is not going to be written after all."""
        key = _key(resource)
        if self._ahead.pop(key, None) is not None:
            self.cluster.drop(*key)
            self._schedule()

    def confirm(self, resource: Resource) -> None:
        """What was put in ahead is written, like this: nothing is news that is the same."""
        if self._apply(resource, gone=False):
            return
        ahead = self._ahead.pop(_key(resource), None)  # of a journal, and known from the snapshot all the same
        if ahead is not None and not same(ahead, resource):
            self.cluster.put(resource)
            self._schedule()

    def put(self, resource: Resource) -> DesiredState | None:
        """Something this agent has just written: publish it at once, unless the watch was faster still. The answer is
        a state that has it; None while not in sync."""
        if not self._apply(resource, gone=False) and self._flush is None:
            return self._latest
        return self._publish_now(urgent=True)

    def drop(self, resource: Resource) -> DesiredState | None:
        """Something this agent has just deleted. `resource` is what the store returned, its last state."""
        self._apply(resource, gone=True)
        return self._publish_now(urgent=True)

    def take_out(self, namespace: str, name: str, container_id: str) -> None:
        """An endpoint of a container that went, which the datastore cannot be told of now: it counts no more. Whatever
        is written to it later counts again."""
        key: Key = (WorkloadEndpoint, namespace, name)
        endpoint = self.cluster.endpoint((namespace, name))
        if endpoint is None or endpoint.spec.container_id not in ("", container_id):
            return
        if (ahead := self._ahead.get(key)) is not None:
            self.withdraw(ahead)
        if (there := self.objects(WorkloadEndpoint).get((namespace, name))) is not None:
            self._bury(key, there[0])
        self._schedule()

    # --- what following tells ---

    def judge(self, kind: type[Resource], listing: Listing[Resource]) -> Judgement:
        """Whether a listing can be true, after all that was seen."""
        objects = self._held.get(kind, {})
        known = {name: revision for name, (revision, _) in objects.items()}
        listed = {(one.namespace, one.name): revision_of(one.metadata.resource_version) for one in listing.items}
        for one in listing.items:
            name = one.namespace, one.name
            # Of a pod's many changes a fan-out server has those of what it is to us, and so an older revision of it.
            if listed[name] < known.get(name, 0) and same(objects[name][1], one):
                listed[name] = known[name]
        return judge(kind.KIND.plural, self._seen.get(kind, 0), known, revision_of(listing.revision), listed)

    def loses_nothing(self, kind: type[Resource]) -> bool:
        """Whether no list of a kind could take anything away."""
        return not self.in_sync.is_set() and not self._restored and not self._held.get(kind)

    def add(self, kind: type[Resource], listing: Listing[Resource]) -> None:
        """These objects are there, whatever else is."""
        for item in listing.items:
            self._apply(item, gone=False)

    def complete(self, kind: type[Resource], revision: str, gone: Iterable[Name]) -> None:
        """A kind is listed: all of it is known, as of a revision, and these are gone, but for what was made since."""
        number = revision_of(revision)
        self._seen[kind] = max(self._seen.get(kind, 0), number)
        for namespace, name in gone:
            there = self.objects(kind).get((namespace, name))
            if there is None or not 0 < number < there[0]:
                self._bury((kind, namespace, name), number)
        self.known.listed(kind)
        self._unlisted.discard(kind)
        if kind is Secret:
            self.cluster.secrets_are_known(True)
        if not self._unlisted and (not self.in_sync.is_set() or self.snapshot_from is not None):
            self.snapshot_from = None
            self.in_sync.set()
            log.info("in sync with the datastore")
        self._schedule()

    def hear(self, event: Event[Resource]) -> None:
        """A watch has told this."""
        gone = event.type is EventType.DELETED
        if isinstance(event.object, ClusterInformation):
            self.datastore.see(None if gone else event.object)
        self._apply(event.object, gone=gone)

    def lose(self, kind: type[Resource]) -> None:
        """A kind is not followed for now."""
        self.known.lost(kind)

    # --- before and after the datastore ---

    def restore(self, objects: Iterable[Resource], seen: Mapping[str, int]) -> None:
        """Begin with what an earlier agent knew; nothing is published of it until `publish_restored` says so, or all is
        listed. `seen` are revisions by kind."""
        self._restored = True
        for one in objects:
            if isinstance(one, Pod):
                self.known.put(one)
            else:
                self._apply(one, gone=False)
        for kind in (*INPUTS, *ALSO):
            self._seen[kind] = max(self._seen.get(kind, 0), seen.get(kind.KIND.key, 0))

    def publish_restored(self, when: float) -> None:
        """The datastore is away: what was restored is the picture, of a time in seconds since 1970."""
        if not self.in_sync.is_set():
            self.snapshot_from = when
            self.in_sync.set()
            self._schedule()

    def begin_again(self) -> None:
        """Whatever the datastore says from now on is right: nothing is compared with what was seen. Until all is listed
        nothing is published."""
        self.in_sync.clear()
        self.snapshot_from = None
        self._unlisted = set(INPUTS)
        self._tombstones.clear()
        self._seen.clear()
        for objects in self._held.values():
            objects.update({name: (-1, one) for name, (_, one) in objects.items()})
        self.following.look_again()

    def _apply(self, resource: Resource, *, gone: bool) -> bool:
        """Whether it was news."""
        key = _key(resource)
        kind, *name = key
        objects = self._held.setdefault(kind, {})
        revision = revision_of(resource.metadata.resource_version)
        self._seen[kind] = max(revision, self._seen.get(kind, 0))
        there = objects.get((name[0], name[1]))
        known = there[0] if there is not None else self._tombstones.get(key, -1)
        # What a deletion returns has the revision of the last write before it.
        if revision < known or (revision == known and not gone):
            return False
        if gone:
            self._bury(key, revision)
            if there is None:
                return False
        else:
            if isinstance(resource, WorkloadEndpoint):
                share(resource)
            objects[name[0], name[1]] = revision, resource
            self._tombstones.pop(key, None)
            self.changed(*key)
            self.known.put(resource)
            if same(self._ahead.pop(key, None), resource):
                return True
            self.cluster.put(resource)
        if kind in INPUTS or kind is Secret:
            self._schedule()
        return True

    def without_secrets(self) -> None:
        """Nobody waits for Secrets any longer: sessions whose passwords are not known go without."""
        self.cluster.secrets_are_known(True)
        self._schedule()

    def _bury(self, key: Key, revision: int) -> None:
        kind, namespace, name = key
        if self._held.get(kind, {}).pop((namespace, name), None) is not None:
            self.changed(*key)
        self._tombstones.pop(key, None)
        self._tombstones[key] = revision
        if len(self._tombstones) > TOMBSTONES:
            del self._tombstones[next(iter(self._tombstones))]
        if key not in self._ahead:  # else it is one before it that is gone
            self.known.drop(*key)
            self.cluster.drop(*key)

    def _schedule(self) -> None:
        if self._flush is None and self.in_sync.is_set():
            loop = asyncio.get_running_loop()
            self._flush = loop.call_at(max(loop.time(), self._last_flush + QUIET), self._publish_now)

    def _publish_now(self, *, urgent: bool = False) -> DesiredState | None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if not self.in_sync.is_set():
            return None
        now = self._last_flush = asyncio.get_running_loop().time()
        if not urgent and self._is_held_back(now):
            self._schedule()
            return None
        self._latest = state = self.cluster.state()
        if self.cluster.asks_secrets():
            self.secrets_wanted.set()
        self._report()
        self._publish(state)
        return state

    def _is_held_back(self, now: float) -> bool:
        """Whether a state would be half of a snapshot and half of the datastore, for a moment more."""
        if self.snapshot_from is None or self._unlisted >= set(INPUTS):
            self._held_back = None
            return False
        if self._held_back is None:
            self._held_back = now
        return now - self._held_back < HOLD

    def _report(self) -> None:
        """Say once what cannot be understood."""
        for title, why in self.cluster.problems.items():
            if self._reported.get(title) != why:
                log.warning("%s is ignored: %s", title, why)
        self._reported = dict(self.cluster.problems)


def _key(resource: Resource) -> Key:
    return type(resource), resource.namespace, resource.name


def same(one: Resource | None, other: Resource) -> bool:
    """Whether they differ in what a datastore fills in alone."""
    if one is None:
        return False
    return one == changed(
        other,
        resource_version=one.metadata.resource_version,
        uid=one.metadata.uid,
        creation_timestamp=one.metadata.creation_timestamp,
        generation=one.metadata.generation,
    )


class Progress:
    """Which states the kernel has reached; CNI calls wait on it. Runs on the event loop."""

    def __init__(self) -> None:
        self.generation = 0
        self.failures: tuple[str, ...] = ()
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def reached(self, generation: int, failures: tuple[str, ...], enforced: bool = True) -> None:
        """A pass has ended. `enforced`: policy is in the kernel, whatever else of the state is not."""
        self.failures = failures
        if not enforced:
            return
        self.generation = max(self.generation, generation)
        for wanted, future in self._waiting:
            if wanted <= self.generation and not future.done():
                future.set_result(None)

    async def wait(self, generation: int, timeout: float) -> None:
        """Until the kernel enforces at least `generation`. Raises Unavailable after `timeout` seconds."""
        if generation <= self.generation:
            return
        waiting = generation, asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(timeout):
                await waiting[1]
        except TimeoutError:
            why = "; ".join(self.failures) or "the kernel is slow"
            raise Unavailable(f"policy is not programmed after {timeout:g} s: {why}") from None
        finally:
            self._waiting.remove(waiting)
