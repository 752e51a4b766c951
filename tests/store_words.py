"""Words that tests of datastores share: objects, and what a watch has told."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from tortie.base.errors import Exists
from tortie.model.ipam import IPPool, IPPoolSpec
from tortie.model.k8s import Namespace
from tortie.model.meta import Metadata, Resource
from tortie.model.policy import NetworkSet, NetworkSetSpec
from tortie.model.store import Event, Store

PATIENCE = 20
"""Seconds until a watch must have brought what was written."""


def pool(name: str, cidr: str = "10.0.0.0/16", **metadata: Any) -> IPPool:
    return IPPool(metadata=Metadata(name=name, **metadata), spec=IPPoolSpec(cidr=cidr))


def netset(namespace: str, name: str, *nets: str, **metadata: Any) -> NetworkSet:
    return NetworkSet(metadata=Metadata(name=name, namespace=namespace, **metadata), spec=NetworkSetSpec(nets=nets))


async def namespaces(store: Store, *names: str) -> None:
    """A namespaced object needs its namespace, in backends that look."""
    for name in names:
        with suppress(Exists):
            await store.create(Namespace(metadata=Metadata(name=name)))


async def now(store: Store) -> str:
    """The newest revision of the store."""
    return (await store.list(IPPool)).revision


async def take(batches: AsyncIterator[tuple[Event[Any], ...]], count: int) -> list[Event[Any]]:
    """The next `count` events of a watch."""
    found: list[Event[Any]] = []
    async with asyncio.timeout(PATIENCE):
        while len(found) < count:
            found.extend(await anext(batches))
    assert len(found) == count, seen(found)
    return found


async def take_all(batches: AsyncIterator[tuple[Event[Any], ...]]) -> list[Event[Any]]:
    return list(itertools.chain.from_iterable([batch async for batch in batches]))


def seen(events: Sequence[Event[Any]]) -> list[tuple[str, str]]:
    return [(event.type.value, event.object.name) for event in events]


def revisions(*objects: Resource) -> list[int]:
    return [int(obj.metadata.resource_version) for obj in objects]


def increasing(numbers: Sequence[int]) -> bool:
    return all(one < next_ for one, next_ in itertools.pairwise(numbers))
