"""An export into an empty datastore, in a way that can be repeated when it is cut short.

    the text ─► read and checked, all of it ─► locked, and marked ─► empty? ─► written ─► the mark is taken off

The mark is on the ClusterInformation and says which text it is: the same one goes on where it was, another is refused.
The datastore stays locked. Where Kubernetes has the pods, what speaks of them is passed over: they are there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from tortie.base.errors import ConfigError, Conflict, Exists, NotFound, NotSupported
from tortie.calc.admission import bootstrap
from tortie.cli.export import BESIDE, IPAM, OBJECTS, OURS, V3, Progress, counts, parts_of
from tortie.cli.ipam_pairs import objects_of
from tortie.controllers.running_config import defaults
from tortie.model.controllers import KubeControllersConfiguration
from tortie.model.document import parse, read
from tortie.model.kinds import KINDS
from tortie.model.meta import Resource, changed
from tortie.model.node import ClusterInformation, Node
from tortie.model.policy import Profile
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint
from tortie.store.composite import OF_KUBERNETES
from tortie.store.first import make

MARK = "tortie.dev/import"
"""The annotation of a ClusterInformation into whose datastore a text is being imported: the text's SHA-256."""
AT_A_TIME = 16
"""Objects that are written at a time: enough to hide a server's latency."""
ATTEMPTS = 5
NAMED = 3
"""Objects of a kind that are named where there should be none."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Parts:
    """What an export holds."""

    objects: tuple[Resource, ...]
    ipam: tuple[Resource, ...]
    information: ClusterInformation
    mark: str


def parts(text: str, source: str) -> Parts:
    """Everything read and checked. Raises ConfigError: source: part: object: field: what is wrong."""
    lists, second, third = parts_of(text, source)
    information = read(_json(second, source, "ClusterInformation"), source)
    if not isinstance(information, ClusterInformation):
        raise ConfigError("the second part is no ClusterInformation", source)
    ipam = _json(third, source, "IPAM")
    try:
        addresses = objects_of(ipam)
    except ConfigError as error:
        raise error.within(source, "IPAM") from None
    beside = (ipam.get(OURS) or {}).get(OBJECTS) or ()
    objects = [*parse(lists, source), *(read(one, source) for one in beside)]
    for one in objects:
        if type(one) not in (*V3, *BESIDE):
            raise ConfigError("is nothing that an export holds", source, one.title)
    in_order = sorted(objects, key=lambda one: KINDS.index(type(one)))
    return Parts(tuple(in_order), tuple(addresses), information, hashlib.sha256(text.encode()).hexdigest())


def _json(text: str, source: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"not valid JSON: {error}", source, what) from None
    if not isinstance(found, dict):
        raise ConfigError("must be a mapping", source, what)
    return found


def of_pods(kind: type[Resource]) -> bool:
    """Whether a Kubernetes datastore makes objects of a kind of its pods, namespaces and accounts."""
    return kind in OF_KUBERNETES or kind in (WorkloadEndpoint, Profile)


async def imported(store: Store, found: Parts, kubernetes: bool, elsewhere: bool, say: Say) -> None:
    """Everything written; the datastore is locked. `kubernetes`: it is Kubernetes; `elsewhere`: Kubernetes' own kinds
    are a cluster's.

    Raises Exists when the datastore is not empty, NotSupported when another text is being imported.
    """
    skipped = of_pods if kubernetes else OF_KUBERNETES.__contains__ if elsewhere else _none
    if await _begun(store, found, skipped, kubernetes):
        say("an import of this file was cut short: it goes on")
    for one in bootstrap("")[:-1]:
        if not skipped(type(one)):
            await make(store, one)
    objects = [one for one in found.objects if not skipped(type(one))]
    await _write(store, objects, Progress(say, "wrote"), kubernetes)
    say(f"Successfully applied {len(objects)} resource(s)")
    say("Importing IPAM resources")
    await _write(store, found.ipam, Progress(say, "wrote"), kubernetes)
    say(f"Successfully applied {len(found.ipam)} IPAM resource(s)")
    await _inform(store, lambda old: information_of(found, old))


def _none(kind: type[Resource]) -> bool:
    return False


async def _begun(store: Store, found: Parts, skipped: Callable[[type[Resource]], bool], kubernetes: bool) -> bool:
    """The datastore is locked and marked; whether it was before. Whoever is at work there sees the lock before it is
    looked whether there is anything. Raises Exists, NotSupported."""
    try:
        old = await store.get(ClusterInformation, "default")
    except NotFound:
        await _demand_empty(store, skipped, kubernetes)
        try:
            await store.create(information_of(found, None, found.mark))
            return False
        except Exists:  # somebody was faster
            return await _begun(store, found, skipped, kubernetes)
    if _marked(old) == found.mark:
        return True
    _demand_no_mark(old)
    await _inform(store, _locked)
    try:
        await _demand_empty(store, skipped, kubernetes)
    except BaseException:
        await _inform(store, lambda now: now if _marked(now) else replace(now, spec=old.spec))
        raise

    def mark(now: ClusterInformation) -> ClusterInformation:
        _demand_no_mark(now)
        return information_of(found, now, found.mark)

    await _inform(store, mark)
    return False


def _marked(one: ClusterInformation) -> str:
    return one.metadata.annotations.get(MARK, "")


def _demand_no_mark(one: ClusterInformation) -> None:
    if _marked(one):
        raise NotSupported(
            "another file is being imported, or was, and was cut short: finish that, or empty the datastore"
        )


def information_of(found: Parts, old: ClusterInformation | None, mark: str = "") -> ClusterInformation:
    """The cluster's own, over what is there: locked, and marked or not."""
    new = found.information if old is None else replace(old, spec=found.information.spec)
    annotations = {name: text for name, text in new.metadata.annotations.items() if name != MARK}
    return _locked(changed(new, annotations={**annotations, MARK: mark} if mark else annotations))


def _locked(one: ClusterInformation) -> ClusterInformation:
    return replace(one, spec=replace(one.spec, datastore_ready=False))


async def _inform(store: Store, change: Callable[[ClusterInformation], ClusterInformation]) -> None:
    for _ in range(ATTEMPTS):
        try:
            await store.update(change(await store.get(ClusterInformation, "default")))
        except Conflict:
            continue
        return
    raise Conflict(f"the ClusterInformation was written by others {ATTEMPTS} times in a row; try again")


async def _demand_empty(store: Store, skipped: Callable[[type[Resource]], bool], kubernetes: bool) -> None:
    """Raises Exists naming what is there, beside what every cluster has, Kubernetes' nodes, and the configuration that
    controllers make for themselves."""
    always = {(type(one), one.namespace, one.name) for one in bootstrap("")}
    there: list[str] = []
    for kind in (*V3, *IPAM, *BESIDE):
        if skipped(kind) or (kubernetes and kind is Node):
            continue
        items = (await store.list(kind)).items
        others = (one for one in items if counts(one) and (kind, one.namespace, one.name) not in always)
        names = [one.name for one in others if not _is_default(one)]
        if names:
            more = ", ..." if len(names) > NAMED else ""
            there.append(f"{len(names)} {kind.KIND.kind} ({', '.join(names[:NAMED])}{more})")
    if there:
        raise Exists(f"the datastore is not empty: it has {', '.join(there)}; import into an empty one")


def _is_default(one: Resource) -> bool:
    return isinstance(one, KubeControllersConfiguration) and one.name == "default" and one.spec == defaults()


async def _write(store: Store, objects: Sequence[Resource], progress: Progress, kubernetes: bool) -> None:
    """One kind after the other, some objects of a kind at a time."""
    for kind in sorted({type(one) for one in objects}, key=KINDS.index):
        same = [one for one in objects if type(one) is kind]
        for start in range(0, len(same), AT_A_TIME):
            batch = same[start : start + AT_A_TIME]
            await asyncio.gather(*(_put(store, one, kubernetes, progress.say) for one in batch))
            progress.more(len(batch), f" of {len(objects)}")


async def _put(store: Store, one: Resource, kubernetes: bool, say: Say) -> None:
    """Also over what an import that was cut short has written, or what every cluster has."""
    try:
        await store.create(one)
        return
    except Exists:
        pass
    except (NotFound, NotSupported):
        if not (kubernetes and isinstance(one, Node)):
            raise
        say(f"warning: there is no Kubernetes node {one.name}: it is passed over")
        return
    for _ in range(ATTEMPTS):
        old = await store.get(type(one), one.name, one.namespace)
        try:
            await store.update(changed(one, resource_version=old.metadata.resource_version))
        except Conflict:
            continue
        return
    raise Conflict(f"{one.title} was written by others {ATTEMPTS} times in a row; try again")
