"""A real etcd keeps the contract of datastores (tests/store_contract.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest
from aetcd import rpc

from etcd_server import Etcd, needs_etcd, running
from store_contract import *  # noqa: F403
from tortie.model.apiconfig import ApiConfig
from tortie.model.policy import NetworkSet
from tortie.model.store import Store
from tortie.store import rules
from tortie.store.etcd import layout
from tortie.store.etcd.store import EtcdStore

pytestmark = needs_etcd

PUTS = 100
"""Keys in a transaction: etcd takes 128."""


class RealEtcd:
    """A `Backend`: one etcd, emptied for each test."""

    many = 10_000

    def __init__(self, etcd: Etcd) -> None:
        self.etcd = etcd

    async def fresh(self) -> Store:
        await asyncio.to_thread(self.etcd.ctl, "del", "--prefix", "")
        return EtcdStore(ApiConfig(etcd_endpoints=self.etcd.url))

    async def compact(self, store: Store) -> None:
        await asyncio.to_thread(self.etcd.compact)

    async def bulk(self, store: Store, objects: Sequence[NetworkSet]) -> None:
        assert isinstance(store, EtcdStore)
        made = [rules.created(obj, None, 0) for obj in objects]
        puts = [rpc.RequestOp(request_put=rpc.PutRequest(key=layout.key(obj), value=layout.value(obj))) for obj in made]
        for start in range(0, len(puts), PUTS):
            await store._wire.ask("Txn", rpc.TxnRequest(success=puts[start : start + PUTS]))


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture
def backend(etcd: Etcd) -> RealEtcd:
    return RealEtcd(etcd)
