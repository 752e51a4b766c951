"""Subnets in Kubernetes: the pod CIDRs of its Nodes, with annotations that say how each is reached.

    net-conf.json ─► network          own Node: annotations, NetworkUnavailable ◄─ acquire, tell_ready
    Nodes ──list, watch──► KnownNodes ─► neighbours: other nodes' leases
               └── away, history lost, a list that is doubted: what is known stays

Over any `Store` that has Kubernetes' Nodes: an API server, or the embedded file of a lab. Of an API server it takes
what flannel's role has: get, list and watch nodes, patch nodes/status, get pods. Leases do not end. What is published
of this node is looked after: annotations that somebody takes away come again, and so do those of a Node that was made
anew; one that has got another pod CIDR ends the daemon, for the next one to begin with it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import msgspec

from tortie.base.addr import Net
from tortie.base.errors import Compacted, ConfigError, Conflict, NotFound, NotSupported, Unavailable
from tortie.base.logs import Seldom
from tortie.flannel.annotations import (
    DEFAULT_PREFIX,
    Names,
    annotated,
    as_published,
    is_managed,
    lease_of,
    overrides,
    remembered,
    shared_addresses,
    subnets,
)
from tortie.flannel.config import NetworkConfig, parse
from tortie.flannel.known_nodes import KnownNodes
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.manager import LeaseLost, Leases, Overrides, Previous
from tortie.model.belief import FEW, FIRST_LOOK_AGAIN, LONGEST_LOOK_AGAIN, PATIENCE, SECOND_LOOK, Key, Verdict, sample
from tortie.model.conditions import NetworkCondition, with_network
from tortie.model.k8s import K8sNode, Pod
from tortie.model.meta import changed
from tortie.model.store import Event, Listing, Store
from tortie.store.relisting import Relisting

log = logging.getLogger(__name__)

UP = NetworkCondition("False", "FlannelIsUp", "Flannel is running on this node")
ATTEMPTS = 8
"""The kubelet writes the same Node."""
LOOK = 60.0
"""Seconds between two looks at the own Node where no watch tells of it, less up to a half at random."""
AGAIN, QUIET = 1.0, 600.0
"""Seconds until annotations are looked after again that had to be published again: twice as many each time, up to LOOK,
and as few as at first when nothing happened for so long. Somebody else may publish the same Node, and do the same."""


async def node_name(environment: Mapping[str, str], store: Store) -> str:
    """This node's name in Kubernetes: NODE_NAME, or where the pod runs that this is, by POD_NAME and POD_NAMESPACE.

    Raises ConfigError, Unavailable.
    """
    if name := environment.get("NODE_NAME", ""):
        return name
    pod, namespace = environment.get("POD_NAME", ""), environment.get("POD_NAMESPACE", "")
    if not pod or not namespace:
        raise ConfigError("env variables POD_NAME and POD_NAMESPACE must be set, or NODE_NAME")
    try:
        found = await store.get(Pod, pod, namespace)
    except (NotFound, NotSupported) as error:
        raise ConfigError(f"error retrieving pod spec for '{namespace}/{pod}': {error}") from None
    if not found.spec.node_name:
        raise ConfigError(f"node name not present in pod spec '{namespace}/{pod}'")
    return found.spec.node_name


class KubernetesManager:
    """Implements `tortie.flannel.manager.SubnetManager`, and closes the store. `node` is this node's name, `net_config`
    the file with the network's configuration. `where` names the datastore for people. Without `tells_ready` the Node's
    condition is somebody else's. Raises ConfigError for a prefix that is none."""

    def __init__(
        self,
        store: Store,
        node: str,
        net_config: Path,
        *,
        prefix: str = DEFAULT_PREFIX,
        where: str = "Kubernetes",
        tells_ready: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.where = where
        self._store = store
        self._node = node
        self._net_config = net_config
        self._names = Names.of(prefix)
        self._tells_ready = tells_ready
        self._clock = clock
        self._known: KnownNodes | None = None
        self._attrs: Attrs | None = None
        self._told = ""
        """The uid of the Node that was told to be ready."""
        self._news = asyncio.Event()
        """There may be something new about the own Node."""
        self._following = False
        self._said: Mapping[str, str] = {}
        """The annotations as they were written last."""
        self._away = self._doubt = self._own_problem = self._rival = ""
        self._complain = Seldom(log)

    @property
    def problems(self) -> tuple[str, ...]:
        lines = [each for each in (self._away, self._doubt, self._own_problem, self._rival) if each]
        if self._known is not None:
            lines += [*self._known.problems, *shared_addresses(self._known.leases | self._own_lease(self._known))]
        return tuple(lines)

    def _own_lease(self, known: KnownNodes) -> dict[str, Lease]:
        if self._attrs is None:
            return {}
        attrs = self._attrs if known.own is None else self._published(known.own, self._attrs)
        return {self._node: Lease(None, None, attrs)}

    # --- beginning --------------------------------------------------------------------------------------------------

    async def network(self) -> NetworkConfig:
        try:
            text = self._net_config.read_text(encoding="utf-8")
        except FileNotFoundError:
            why = "no such file: it is the key net-conf.json of the ConfigMap; --net-config-path says where"
            raise NotFound(f"{self._net_config}: {why}") from None
        except (OSError, UnicodeError) as error:
            raise ConfigError(getattr(error, "strerror", None) or str(error), str(self._net_config)) from None
        return parse(text, str(self._net_config))

    async def overrides(self) -> Overrides:
        return overrides(await self._own_node(), self._names)

    async def remembered(self, attrs: Attrs) -> Attrs | None:
        return remembered(await self._own_node(), self._names)

    async def acquire(self, config: NetworkConfig, attrs: Attrs, previous: Previous) -> Lease:
        node = await self._own_node()
        four, six = subnets(node, config)
        for net, family, version in ((four, config.v4, 4), (six, config.v6, 6)):
            if net is None and family is not None:
                self._complain.warning(f'node "{node.name}" has no IPv{version} pod CIDR, and IPv{version} is enabled')
        if four is None:
            attrs = replace(attrs, public_ip=None, data=None)
        if six is None:
            attrs = replace(attrs, public_ipv6=None, data6=None)
        node = await self._publish(attrs, node)
        self._attrs = attrs
        if self._known is None:
            self._known = KnownNodes(self._node, config, self._names)
        return Lease(four, six, self._published(node, attrs), node=self._node)

    async def tell_ready(self) -> None:
        if self._tells_ready:
            node = await self._write(lambda node: msgspec.structs.replace(node, status=_networked(node.status)))
            self._told = node.metadata.uid

    async def leases(self) -> Leases:
        config = await self.network()
        found = {node.name: lease_of(node, config, self._names)[0] for node in (await self._store.list(K8sNode)).items}
        return {name: lease for name, lease in found.items() if lease is not None}

    async def close(self) -> None:
        await self._store.close()

    # --- the own Node -----------------------------------------------------------------------------------------------

    async def keep(self, own: Lease) -> None:
        pause, last = AGAIN, self._clock() - QUIET
        while True:
            try:
                if await self._look_after(own):
                    pause = min(2 * pause, LOOK) if self._clock() - last < QUIET else AGAIN
                    last = self._clock()
                    await asyncio.sleep(pause)
                elif self._clock() - last >= QUIET:
                    self._rival = ""
            except Unavailable as error:
                self._own_problem = str(error)
                self._complain.warning(f"{error}; trying again")
                await asyncio.sleep(LONGEST_LOOK_AGAIN * random.uniform(0.5, 1))
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK * random.uniform(0.5, 1)):
                    await self._news.wait()
            self._news.clear()

    async def _look_after(self, own: Lease) -> bool:
        """Publishes again what is not there any more; whether that had to be. Raises LeaseLost, Unavailable."""
        node = self._known.own if self._following and self._known is not None else await self._own_node()
        if node is None or self._attrs is None:
            self._own_problem = f"{self._lacking}: other nodes do not know the way to this one"
            return False
        try:
            four, six = subnets(node, self._enabled)
            self._own_problem = ""
        except ConfigError as error:
            self._own_problem = str(error)
            return False
        if (four, six) != (own.subnet, own.subnet6):
            was, now = _listed(own.subnet, own.subnet6), _listed(four, six)
            self._own_problem = f'node "{self._node}" has got another pod CIDR: {now}, it was {was}'
            raise LeaseLost(self._own_problem)
        lacking = self._with_annotations(node, self._attrs) != node
        if lacking:
            if is_managed(node, self._names) and self._said.items() - node.metadata.annotations.items():
                self._rival = f'node "{self._node}" is published by somebody else, too: another machine of that name?'
                self._complain.warning(self._rival)
            await self._publish(self._attrs, node)
            log.info('node "%s": published again what was not there any more', self._node)
        if self._told and node.metadata.uid != self._told:
            await self.tell_ready()
        return lacking

    @property
    def _enabled(self) -> NetworkConfig:
        assert self._known is not None  # there is a lease
        return self._known.config

    @property
    def _lacking(self) -> str:
        return f'there is no node "{self._node}" in {self.where}'

    async def _own_node(self) -> K8sNode:
        """Raises Unavailable also where there is none: it may come yet."""
        try:
            return await self._store.get(K8sNode, self._node)
        except NotFound:
            raise Unavailable(f"{self._lacking}; NODE_NAME says which one is this") from None
        except NotSupported as error:
            raise Unavailable(str(error)) from None

    async def _publish(self, attrs: Attrs, node: K8sNode) -> K8sNode:
        found = await self._write(lambda node: self._with_annotations(node, attrs), node)
        self._said = annotated({}, self._published(found, attrs), self._names)
        return found

    def _with_annotations(self, node: K8sNode, attrs: Attrs) -> K8sNode:
        have = node.metadata.annotations
        wanted = annotated(have, self._published(node, attrs), self._names)
        return node if wanted == have else changed(node, annotations=wanted)

    def _published(self, node: K8sNode, attrs: Attrs) -> Attrs:
        """Where an override cannot be read, as if there were none: it is refused when the daemon begins."""
        try:
            return as_published(attrs, overrides(node, self._names))
        except ConfigError as error:
            self._complain.warning(str(error))
            return attrs

    async def _write(self, change: Callable[[K8sNode], K8sNode], node: K8sNode | None = None) -> K8sNode:
        """The own Node, which may be at hand, changed; others may write it meanwhile. Raises Unavailable."""
        for attempt in range(ATTEMPTS):
            node = node if node is not None and attempt == 0 else await self._own_node()
            wanted = change(node)
            if wanted == node:
                return node
            try:
                return await self._store.update(wanted)
            except Conflict:
                await asyncio.sleep(random.uniform(0, min(0.5, 0.05 * 2**attempt)))
            except NotFound:
                raise Unavailable(self._lacking) from None
        why = f"others have written it at the same time, {ATTEMPTS} times"
        raise Unavailable(f'timeout contacting kube-api, failed to patch node "{self._node}". Error: {why}')

    # --- the other Nodes --------------------------------------------------------------------------------------------

    async def neighbours(self, own: Lease) -> AsyncIterator[Leases]:
        known = self._known
        assert known is not None  # there is a lease
        shown: Leases | None = None
        try:
            async with aclosing(cast(Any, self._follow(known))) as news:
                async for _ in news:
                    if known.complete and (now := known.leases) != shown:
                        for line in self.problems:
                            self._complain.warning(line)
                        shown = now
                        yield now
        finally:
            self._following = False

    async def _follow(self, known: KnownNodes) -> AsyncIterator[None]:
        """For ever: something may be new."""
        pause, again = FIRST_LOOK_AGAIN, Relisting()
        while True:
            try:
                async with aclosing(cast(Any, self._lists(known))) as lists:
                    async for each in lists:
                        revision, pause = each, FIRST_LOOK_AGAIN
                        yield
                async with aclosing(cast(Any, self._store.watch(K8sNode, revision))) as watch:
                    self._following = True
                    self._news.set()
                    until = asyncio.get_running_loop().time() + LOOK if self._doubt else None
                    while batch := await _next(watch, until):
                        self._hear(known, batch)
                        yield
            except Compacted:
                log.info("nodes: history is gone, listing again")
                await asyncio.sleep(again.lost())
            except (Unavailable, NotSupported) as error:
                self._away = f"{self.where} is away, other nodes count as they were: {error}"
                self._complain.warning(self._away)
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, LONGEST_LOOK_AGAIN)
            finally:
                self._following = False

    def _hear(self, known: KnownNodes, batch: Sequence[Event[K8sNode]]) -> None:
        for event in batch:
            known.hear(event)
            if event.object.name == self._node:
                self._news.set()

    async def _lists(self, known: KnownNodes) -> AsyncIterator[str]:
        """Lists until one is believed, or nothing is to be gained by looking again; the revision of each."""
        pause, since = SECOND_LOOK, self._clock()
        before: tuple[Key, ...] = ()
        while True:
            patient = self._clock() - since < PATIENCE
            listing = await self._store.list(K8sNode)
            self._away = ""
            self._doubt, before = await self._take(known, listing, before, patient=patient)
            believed = not self._doubt
            known.complete = known.complete or believed or not patient
            yield listing.revision
            if believed or not patient:
                return
            self._complain.warning(self._doubt)
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_LOOK_AGAIN)

    async def _take(
        self, known: KnownNodes, listing: Listing[K8sNode], before: Collection[Key], *, patient: bool
    ) -> tuple[str, tuple[Key, ...]]:
        """What a list has is taken, and what it lacks where nothing speaks against that. Why something does, and what
        it lacks; `before` is what the list before it lacked. Raises Unavailable."""
        judgement = known.judge(listing, patient=patient)
        if judgement.verdict in (Verdict.STALE, Verdict.REWRITTEN):
            return judgement.why, ()
        known.add(listing)
        missing, stranger = judgement.missing, known.stranger(listing)
        kept = f"{judgement.why}; they count as they were" if missing else "nothing of it is known yet"
        if stranger and (missing or known.own is None):
            return f"{stranger}: {kept}", missing
        if len(missing) > FEW:
            if not before:
                return kept, missing
            missing = tuple(key for key in missing if key in before)
        for _, name in sample(missing):
            if await self._is_there(name):
                return f'node "{name}" is missing from the list of nodes, and is there: {kept}', judgement.missing
        known.remove(name for _, name in missing)
        return "", ()

    async def _is_there(self, name: str) -> bool:
        """One that cannot be read is."""
        try:
            await self._store.get(K8sNode, name)
        except NotFound:
            return False
        except NotSupported:
            return True
        return True


def _networked(status: Any) -> Any:
    return with_network(status, UP, datetime.now(UTC))


async def _next(watch: AsyncIterator[Sequence[Event[K8sNode]]], until: float | None) -> Sequence[Event[K8sNode]]:
    """The next events of a watch; none at its end, or at a time of the loop's clock."""
    with suppress(StopAsyncIteration, TimeoutError):
        async with asyncio.timeout_at(until):
            return await anext(watch)
    return ()


def _listed(*nets: Net | None) -> str:
    return " and ".join(str(net) for net in nets if net is not None)
