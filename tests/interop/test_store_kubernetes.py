"""The Kubernetes datastore keeps the contract of datastores (tests/store_contract.py), through the real client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import msgspec
import pytest
from kube_store import Server, server

from kube_api import KubeApi
from store_contract import *  # noqa: F403
from tortie.model.policy import NetworkSet
from tortie.model.store import Store
from tortie.store.kube import crd

KINDS = ("ippools", "networksets")


class Kubernetes:
    """A `Backend`: one API server, emptied for each test. The double also forgets, and takes objects unchecked."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.double = isinstance(server.api, KubeApi)
        self.many = 20_000 if self.double else 1_000

    async def fresh(self) -> Store:
        if self.double:
            await asyncio.to_thread(self.server.empty, *KINDS)
        else:
            await self.server.clear(*KINDS)
        return self.server.store()

    async def compact(self, store: Store) -> None:
        await asyncio.to_thread(self.server.do, self.server.api.compact)

    async def bulk(self, store: Store, objects: Sequence[NetworkSet]) -> None:
        if not self.double:
            for obj in objects:
                await store.create(obj)
            return
        documents = [msgspec.json.decode(msgspec.json.encode(crd.to_document(obj, crd.V1))) for obj in objects]
        plural = f"networksets.{crd.V1.version.partition('/')[0]}"
        await asyncio.to_thread(self.server.do, self.server.api.bulk, plural, documents)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("kube"), real=True) as running:
        yield running


@pytest.fixture
def backend(api: Server) -> Kubernetes:
    return Kubernetes(api)
