"""What apply, create, replace and delete do: admit everything, then write, one object at a time.

manifests ─► snapshot of what is stored ─► plan: all admitted, or nothing is written ─► write, deciding again when
                                                                                       somebody else was faster
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

from tortie.base.errors import ConfigError, Conflict, Exists, NotFound, NotSupported, TortieError, Unavailable
from tortie.calc.admission import TIERED, Objects, admit, bootstrap, companions, deletable
from tortie.calc.unserved import unserved
from tortie.cli.manifests import Manifest
from tortie.ipam.retire import retire
from tortie.model.bgp import BGPPeer
from tortie.model.bgpfilter import BGPFilter
from tortie.model.ipam import IPAMBlock, IPAMConfig, IPPool
from tortie.model.k8s import K8sNetworkPolicy, K8sNode, Namespace, ServiceAccount
from tortie.model.kinds import KINDS
from tortie.model.meta import Resource, changed, title
from tortie.model.policy import NetworkPolicy, Tier
from tortie.model.store import Store

R = TypeVar("R", bound=Resource)

ATTEMPTS = 5
"""How often a write is decided again before giving up, as calicoctl does."""

COPIED = "knp.default."
"""How the names of Kubernetes' policies begin, where Calico keeps copies of them."""

Say = Callable[[str], None]


class Verb(StrEnum):
    """What a user asks for; `apply` creates or replaces."""

    APPLY = "apply"
    CREATE = "create"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class Write:
    """One object to be written. `wanted` is what the user wrote, `new` what it becomes, `old` what is stored."""

    wanted: Resource
    new: Resource
    old: Resource | None

    @property
    def outcome(self) -> str:
        return "created" if self.old is None else "unchanged" if self._same else "configured"

    @property
    def _same(self) -> bool:
        old = self.old
        return old is not None and changed(self.new, resource_version=old.metadata.resource_version) == old


@dataclass(frozen=True, slots=True)
class Done:
    """How many objects are as was asked for, and why others are not."""

    count: int
    errors: Sequence[TortieError]


def short_name(resource: Resource) -> str:
    """`ippool/default-pool`: how output names an object, and `get` and `delete` understand it."""
    kind = {K8sNetworkPolicy: "networkpolicy.networking.k8s.io", K8sNode: "k8snode"}.get(type(resource))
    return f"{kind or resource.KIND.kind.lower()}/{resource.name}"


def calico_kind(kind: type[Resource]) -> str:
    """The kind as documents of projectcalico.org/v3 have it; one has another name where CRDs keep it."""
    return "IPAMConfiguration" if kind is IPAMConfig else kind.KIND.kind


async def snapshot(store: Store, kinds: Iterable[type[Resource]]) -> Objects:
    """What is stored of some kinds, and of those that their admission looks at."""
    wanted = {*kinds, Namespace, ServiceAccount}
    if IPPool in wanted:
        wanted.add(IPAMBlock)
    if BGPPeer in wanted:
        wanted.add(BGPFilter)
    view = Objects(bootstrap("0" * 32))  # there before anything else is, whether written already or not
    for kind in KINDS:
        if kind in wanted:
            for one in (await store.list(kind)).items:
                view.put(one)
    return view


def without_stored(manifests: Iterable[Manifest], view: Objects) -> list[Manifest]:
    """The documents of objects that are not stored."""
    named = ((manifest, manifest.resource) for manifest in manifests)
    return [manifest for manifest, one in named if view.get(type(one), one.name, one.namespace) is None]


def planned(manifests: Iterable[Manifest], view: Objects, verb: Verb) -> list[Write]:
    """The writes in the order in which they are made. Raises an ExceptionGroup that has everything that is wrong."""
    writes, wrong = sifted(manifests, view, verb)
    if wrong:
        raise ExceptionGroup("nothing is written", wrong)
    return writes


def sifted(
    manifests: Iterable[Manifest], view: Objects, verb: Verb, stops: bool = False
) -> tuple[list[Write], list[TortieError]]:
    """The writes in the order in which they are made, and what is wrong with the other documents. `stops`: at the
    first of them."""
    writes: list[Write] = []
    wrong: list[TortieError] = []
    for manifest in sorted(manifests, key=lambda manifest: KINDS.index(type(manifest.resource))):
        if wrong and stops:
            break
        wanted = manifest.resource
        old = view.get(type(wanted), wanted.name, wanted.namespace)
        try:
            _check_verb(wanted, old, verb)
            write = Write(wanted, admit(wanted, old, view), old)
        except ConfigError as error:
            wrong.append(error.within(manifest.source, wanted.title))
        except TortieError as error:
            wrong.append(error)
        else:
            writes.append(write)
            view.put(write.new)
            for one in companions(write.new) if old is None else ():
                view.put(one)
    return writes, wrong


async def carry_out(store: Store, writes: Sequence[Write], view: Objects, verb: Verb, say: Say, warn: Say) -> Done:
    """Write, and say of each object what became of it, and what of it nobody acts on.

    What goes wrong with one object does not keep the others, unless nothing can be written at all, or they replace:
    as with calicoctl.
    """
    count = 0
    errors: list[TortieError] = []
    for write in writes:
        try:
            done = await _written(store, write, view, verb)
        except TortieError as error:
            errors.append(error)
            if verb is Verb.REPLACE or isinstance(error, Unavailable):
                break
            continue
        count += 1
        say(f"{short_name(done.new)} {_outcome(done, verb)}")
        warn_of(done.new, warn)
    return Done(count, errors)


def say_only(writes: Iterable[Write], verb: Verb, say: Say, warn: Say) -> None:
    """Say of each object what would become of it."""
    for write in writes:
        say(f"{short_name(write.new)} {_outcome(write, verb)} (dry run)")
        warn_of(write.new, warn)


def warn_of(new: Resource, warn: Say) -> None:
    """Say what of an object nobody acts on."""
    for line in unserved(new):
        warn(f"warning: {short_name(new)}: {line}")


def _outcome(write: Write, verb: Verb) -> str:
    return "replaced" if verb is Verb.REPLACE else write.outcome


async def _written(store: Store, write: Write, view: Objects, verb: Verb) -> Write:
    """One write as it was made in the end: decided again whenever the stored object is not what it was decided on."""
    lost: TortieError | None = None
    for _ in range(ATTEMPTS):
        try:
            if write.old is None:
                await store.create(changed(write.new, resource_version=""))
                await _create_missing(store, companions(write.new))
            elif write.outcome != "unchanged":
                revision = write.wanted.metadata.resource_version or write.old.metadata.resource_version
                await store.update(changed(write.new, resource_version=revision))
            return write
        except (Conflict, Exists, NotFound) as error:
            lost = error
        old = await _found(store, type(write.wanted), write.wanted.name, write.wanted.namespace)
        _check_verb(write.wanted, old, verb)
        write = Write(write.wanted, admit(write.wanted, old, view), old)
    raise Conflict(f"{lost}: written by others {ATTEMPTS} times meanwhile, try again")


async def _create_missing(store: Store, resources: Iterable[Resource]) -> None:
    for one in resources:
        try:
            await store.create(one)
        except Exists:
            pass


async def _found(store: Store, kind: type[R], name: str, namespace: str) -> R | None:
    try:
        return await store.get(kind, name, namespace)
    except NotFound:
        return None


def _check_verb(wanted: Resource, old: Resource | None, verb: Verb) -> None:
    """Whether the object must be there, must not, or must be of one revision. Raises Exists, NotFound, Conflict,
    NotSupported."""
    check_own(type(wanted), wanted.name, wanted.namespace, "create or apply")
    if verb is Verb.CREATE and old is not None:
        raise Exists(f"resource already exists: {_calico_name(wanted)}")
    if verb is Verb.REPLACE and old is None:
        raise NotFound(f"resource does not exist: {_calico_name(wanted)}")
    asked = wanted.metadata.resource_version
    if old is not None and asked and asked != old.metadata.resource_version:
        stale = f"resource version '{asked}' is out of date (latest: {old.metadata.resource_version})"
        raise Conflict(f"update conflict: {_calico_name(wanted)}: {stale}")


def check_own(kind: type[Resource], name: str, namespace: str, doing: str) -> None:
    """Raises NotSupported for copies of Kubernetes' policies, which are Kubernetes' to change."""
    if kind is NetworkPolicy and name.startswith(COPIED):
        which = _calico_name_of(Target(kind, name, namespace))
        why = "kubernetes network policies must be managed through the kubernetes API"
        raise NotSupported(f"operation {doing} is not supported on {which}: {why}")


@dataclass(frozen=True, slots=True)
class Target:
    """An object that is to be deleted."""

    kind: type[Resource]
    name: str
    namespace: str = ""


async def removed(
    store: Store, targets: Sequence[Target], ignore_not_found: bool, dry_run: bool, say: Say, apart: bool = False
) -> Done:
    """Delete, users before what they use. What is not there is told at the end, or counts as done.

    Nothing is deleted if one of them must stay, which raises an ExceptionGroup; with `apart` the others are.
    """
    kinds = {target.kind for target in targets}
    if Namespace in kinds:
        kinds.update(kind for kind in KINDS if kind.KIND.namespaced)
    if Tier in kinds:
        kinds.update(TIERED)
    view = await snapshot(store, kinds)
    doomed, wrong, missing = _doomed(targets, view)
    if wrong and not apart:
        raise ExceptionGroup("nothing is deleted", wrong)
    errors: list[TortieError] = [*wrong, *(() if ignore_not_found else missing)]
    for resource in doomed:
        try:
            if not dry_run:
                await _delete(store, resource)
        except NotFound:
            continue  # somebody else was faster
        except TortieError as error:
            errors.append(error)
            continue
        say(f"{short_name(resource)} deleted" + (" (dry run)" if dry_run else ""))
    return Done(max(0, len(targets) - len(errors)), errors)


async def _delete(store: Store, resource: Resource) -> None:
    """Raises NotFound."""
    if isinstance(resource, IPPool):
        await retire(store, resource.name, lambda: datetime.now(UTC))
    else:
        await store.delete(type(resource), resource.name, resource.namespace)


def _doomed(targets: Sequence[Target], view: Objects) -> tuple[list[Resource], list[TortieError], list[NotFound]]:
    """The objects that go, in order; what may not go; what is not there."""
    doomed: list[Resource] = []
    wrong: list[TortieError] = []
    missing: list[NotFound] = []
    gone: set[Target] = set()
    for target in sorted(targets, key=lambda target: -KINDS.index(target.kind)):
        resource = view.get(target.kind, target.name, target.namespace)
        if resource is None:
            if target not in gone:
                missing.append(NotFound(f"resource does not exist: {_calico_name_of(target)}"))
            continue
        try:
            check_own(target.kind, target.name, target.namespace, "delete")
            going = deletable(resource, view)
        except NotSupported as error:
            wrong.append(error)
            continue
        except ConfigError as error:
            wrong.append(error.within(title(target.kind.KIND, target.name, target.namespace)))
            continue
        doomed.extend(going)
        for one in going:
            view.drop(one)
            gone.add(Target(type(one), one.name, one.namespace))
    return doomed, wrong, missing


def _calico_name(resource: Resource) -> str:
    return _calico_name_of(Target(type(resource), resource.name, resource.namespace))


def _calico_name_of(target: Target) -> str:
    """`IPPool(default)`, `Pod(red/a)`: as Calico's errors print it."""
    inside = f"{target.namespace}/{target.name}" if target.namespace else target.name
    return f"{target.kind.KIND.kind}({inside})"
