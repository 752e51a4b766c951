"""The controllers let a real etcd forget its history, and who looks on goes on."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from etcd_server import Etcd, needs_etcd, running
from tortie.base.errors import Compacted
from tortie.controllers import main
from tortie.controllers.compaction import Compaction, Noted, decide, forgetful, period_of
from tortie.controllers.configuration import Configured, in_force
from tortie.model.apiconfig import ApiConfig
from tortie.model.controllers import KubeControllersConfiguration, KubeControllersConfigurationSpec
from tortie.model.meta import Metadata
from tortie.model.policy import GlobalNetworkSet
from tortie.store.composite import CompositeStore
from tortie.store.etcd.store import EtcdStore
from tortie.store.memory import MemoryStore

MINUTE = timedelta(minutes=1)
_serial = itertools.count()


def test_what_is_decided() -> None:
    noted = Noted("7", 100.0)
    assert decide(None, 5.0, MINUTE) == (False, True)
    assert decide(noted, 130.0, MINUTE) == (False, False), "woken before it is due"
    assert decide(noted, 159.0, MINUTE) == (True, True)
    assert decide(noted, 1e9, timedelta()) == (False, False), "never"


@pytest.mark.parametrize(
    ("said", "variable", "expected"),
    [("", "", "10m"), ("30m", "", "30m"), ("30m", "90s", "90s"), ("30m", "0", "0s"), ("0", "", "0s")],
)
def test_how_much_is_kept(said: str, variable: str, expected: str) -> None:
    spec = KubeControllersConfigurationSpec(etcd_v3_compaction_period=said or None)
    seconds = {"10m": 600, "30m": 1800, "90s": 90, "0s": 0}[expected]
    assert period_of(in_force(spec, {"COMPACTION_PERIOD": variable}, "etcd")).total_seconds() == seconds


def test_which_datastores_have_a_history_of_their_own() -> None:
    etcd = EtcdStore(ApiConfig(etcd_endpoints="http://127.0.0.1:1"))
    assert forgetful(etcd) is etcd
    assert forgetful(CompositeStore(etcd, MemoryStore())) is etcd
    assert forgetful(MemoryStore()) is None


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture
async def store(etcd: Etcd) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(ApiConfig(etcd_endpoints=etcd.url))
    yield store
    await store.close()


async def written(store: EtcdStore) -> str:
    """The revision of one write more."""
    made = await store.create(GlobalNetworkSet(metadata=Metadata(name=f"s{next(_serial)}")))
    return made.metadata.resource_version


async def is_forgotten(store: EtcdStore, revision: str) -> bool:
    """Whether what came after a revision can be watched no longer; something did come."""
    try:
        async with aclosing(store.watch(GlobalNetworkSet, revision)) as watch, asyncio.timeout(10):
            await anext(watch)
    except Compacted:
        return True
    return False


@asynccontextmanager
async def controllers(etcd: Etcd, environment: Mapping[str, str], directory: Path) -> AsyncIterator[None]:
    program = main.Program(status_file=directory / "status.json")
    task = asyncio.create_task(main.serve(f"etcd:{etcd.url}", None, environment, program))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_forgotten(store: EtcdStore, revision: str) -> None:
    async with asyncio.timeout(15):
        while not await is_forgotten(store, revision):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


@needs_etcd
async def test_the_leader_forgets_and_watchers_go_on(etcd: Etcd, store: EtcdStore, tmp_path: Path) -> None:
    """Which also says that the configuration changes it at once: it is off until then."""
    off = KubeControllersConfiguration(
        metadata=Metadata(name="default"), spec=KubeControllersConfigurationSpec(etcd_v3_compaction_period="0")
    )
    await store.create(off)
    old = await written(store)
    async with (
        aclosing(store.watch(GlobalNetworkSet, await written(store))) as watch,
        controllers(etcd, {"HEALTH_ENABLED": "false"}, tmp_path),
    ):
        first = asyncio.ensure_future(anext(watch))
        newest = await written(store)
        assert [event.object.metadata.resource_version for event in await first] == [newest]
        assert not await is_forgotten(store, old)
        current = await store.get(KubeControllersConfiguration, "default")
        spec = KubeControllersConfigurationSpec(etcd_v3_compaction_period="300ms")
        await store.update(KubeControllersConfiguration(metadata=current.metadata, spec=spec))
        await until_forgotten(store, old)
        last = await written(store)
        assert [event.object.metadata.resource_version for event in await anext(watch)] == [last], "it kept up"


@needs_etcd
async def test_no_more_is_forgotten_than_was_noted(etcd: Etcd, store: EtcdStore) -> None:
    now = 0.0
    one = Compaction(store, store, configured=Configured({"COMPACTION_PERIOD": "60s"}, "etcd"), clock=lambda: now)
    old, before = await written(store), await written(store)
    await one.run_once()
    noted = await written(store)
    await written(store)
    now = 30.0
    await one.run_once()
    assert not await is_forgotten(store, old), "woken too early"
    now = 60.0
    await one.run_once()
    assert await is_forgotten(store, old)
    assert not await is_forgotten(store, noted)
    assert not await is_forgotten(store, before), "all that came after the revision that was noted is there"
    now = 120.0
    await asyncio.to_thread(etcd.compact)
    await one.run_once()  # somebody else was quicker
