"""Writes to a Kubernetes API server that were taken, and whose answer was lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from kube_store import Server, server
from msgspec.structs import replace

from tortie.base.errors import Conflict
from tortie.model.ipam import IPAMHandle, IPAMHandleSpec
from tortie.model.meta import Metadata
from tortie.store.kubernetes import KubernetesStore

BLOCK = "10.0.0.0/26"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("kube")) as running:
        running.empty("ipamhandles")
        yield running


@pytest.fixture
async def store(api: Server) -> AsyncIterator[KubernetesStore]:
    store = api.store()
    yield store
    await store.close()


def handle(name: str, count: int) -> IPAMHandle:
    return IPAMHandle(metadata=Metadata(name=name), spec=IPAMHandleSpec(handle_id=name, block={BLOCK: count}))


def counting(stored: IPAMHandle, count: int) -> IPAMHandle:
    return replace(stored, spec=replace(stored.spec, block={BLOCK: count}))


async def test_a_count_that_was_taken_down_is_not_taken_down_twice(api: Server, store: KubernetesStore) -> None:
    """The client asks again, and the server refuses what it has done already: that is no Conflict."""
    stored = await store.create(handle("one", 3))
    await asyncio.to_thread(api.do, api.api.faults.fail, 500, 1, "PUT .*/ipamhandles/one", taken=True)
    written = await store.update(counting(stored, 2))
    assert written.spec.block == {BLOCK: 2}
    assert written == await store.get(IPAMHandle, "one")
    assert written.metadata.annotations == {}, "how that is known is nobody's to see"
    assert (await store.update(counting(written, 1))).spec.block == {BLOCK: 1}


async def test_another_writer_of_the_same_is_a_conflict(api: Server, store: KubernetesStore) -> None:
    """Two that take one down from three leave one, not two: what is stored looks the same to both."""
    stored = await store.create(handle("two", 3))
    other = api.store()
    try:
        await other.update(counting(stored, 2))
        with pytest.raises(Conflict):
            await store.update(counting(stored, 2))
    finally:
        await other.close()
