"""The API server's double: what goes wrong when a test says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kube_api import KubeApi
from kube_api.plain import Plain, until
from kube_server import kube_program

MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture
async def api() -> AsyncIterator[KubeApi]:
    async with KubeApi(bookmark_every=0.1) as api:
        yield api


@pytest.fixture
async def plain(api: KubeApi) -> AsyncIterator[Plain]:
    async with Plain(api.url) as plain:
        yield plain


def config(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}


def names(listing: dict[str, Any]) -> list[str]:
    return [one["metadata"]["name"] for one in listing["items"]]


async def test_the_next_requests_fail(api: KubeApi, plain: Plain) -> None:
    api.faults.fail(429, times=2, path="^GET .*/configmaps", retry_after=1)
    refused = await plain.get(MAPS)
    assert (refused.status, refused.headers["Retry-After"], refused.body["reason"]) == (429, "1", "TooManyRequests")
    assert (await plain.post(MAPS, config("a"))).status == 201, "another method"
    assert (await plain.get(MAPS)).status == 429
    assert (await plain.get(MAPS)).status == 200
    lasting = api.faults.fail(503, times=None)
    assert [(await plain.get("/version")).status for _ in range(3)] == [503] * 3
    api.faults.failures.remove(lasting)
    assert (await plain.get("/version")).status == 200


async def test_an_answer_is_lost_although_the_work_was_done(api: KubeApi, plain: Plain) -> None:
    api.faults.fail(500, path="^POST", taken=True)
    assert (await plain.post(MAPS, config("a"))).status == 500
    assert (await plain.get(f"{MAPS}/a")).status == 200


async def test_answers_are_late(api: KubeApi, plain: Plain) -> None:
    api.faults.latency, api.faults.slow = 0.2, "configmaps"
    begun = time.monotonic()
    await plain.get("/version")
    assert time.monotonic() - begun < 0.2
    await plain.get(MAPS)
    assert time.monotonic() - begun >= 0.2


async def test_connections_are_refused_for_a_while(api: KubeApi, plain: Plain) -> None:
    api.create(config("a"))
    async with plain.watch(MAPS, resourceVersion=api.revision) as events:
        await api.refuse()
        with pytest.raises(aiohttp.ClientError):
            await anext(events)
    with pytest.raises(aiohttp.ClientError):
        await plain.get(MAPS)
    await api.accept()
    assert names((await plain.get(MAPS)).body) == ["a"], "on the same port, with its data"
    away = asyncio.create_task(api.away(0.2))
    await asyncio.sleep(0.05)
    with pytest.raises(aiohttp.ClientError):
        await plain.get(MAPS)
    await away
    assert (await plain.get(MAPS)).status == 200


async def test_watches_are_cut(api: KubeApi, plain: Plain) -> None:
    async with plain.watch(MAPS, resourceVersion=api.revision) as events:
        assert api.cut_watches() == 1
        with pytest.raises(aiohttp.ClientError):
            await anext(events)
    await until(lambda: api.watching == 0)


async def test_a_watch_ends_when_its_client_has_gone(api: KubeApi, plain: Plain) -> None:
    async with plain.watch(MAPS, resourceVersion=api.revision):
        assert api.watching == 1
    await until(lambda: api.watching == 0)


async def test_watches_are_silent_and_tell_it_later(api: KubeApi, plain: Plain) -> None:
    async with plain.watch(MAPS, resourceVersion=api.revision, allowWatchBookmarks="true") as events:
        api.faults.silent = True
        await asyncio.sleep(0.15)
        api.create(config("a"))
        following = asyncio.ensure_future(anext(events))
        done, _ = await asyncio.wait([following], timeout=0.4)
        assert not done
        api.faults.silent = False
        async with asyncio.timeout(5):
            kind, obj = await following
        assert (kind, obj["metadata"]["name"]) == ("ADDED", "a")


async def test_lists_are_stale_for_those_who_take_any(api: KubeApi, plain: Plain) -> None:
    api.create(config("a"))
    then = api.revision
    api.create(config("b"))
    lie = api.faults.stale(then)
    old = (await plain.get(MAPS, resourceVersion=0)).body
    assert (names(old), old["metadata"]["resourceVersion"]) == (["a"], str(then))
    assert names((await plain.get(MAPS)).body) == ["a", "b"]
    lie.only_any = False
    assert names((await plain.get(MAPS)).body) == ["a"]


async def test_lists_are_empty_or_partial_and_lie_about_their_revision(api: KubeApi, plain: Plain) -> None:
    for name in ("a", "b", "c"):
        api.create(config(name))
    api.faults.empty("configmaps", revision=2)
    body = (await plain.get(MAPS)).body
    assert (body["items"], body["metadata"]["resourceVersion"]) == ([], "2")
    assert (await plain.get("/api/v1/namespaces")).body["items"]
    api.faults.clear()
    api.faults.partial({"b", "default/c"})
    body = (await plain.get(MAPS)).body
    assert (names(body), body["metadata"]["resourceVersion"]) == (["a"], str(api.revision))


async def test_a_restart_keeps_the_data_and_forgets_the_history(api: KubeApi, plain: Plain) -> None:
    then = api.revision
    api.create(config("a"))
    await api.restart()
    assert names((await plain.get(MAPS)).body) == ["a"]
    async with plain.watch(MAPS, resourceVersion=then) as events:
        assert (await anext(events))[0] == "ERROR"
    async with plain.watch(MAPS, resourceVersion=api.revision) as events:
        api.create(config("b"))
        assert (await anext(events))[1]["metadata"]["name"] == "b"


async def test_a_restart_without_data_is_another_cluster(api: KubeApi, plain: Plain) -> None:
    for number in range(20):
        api.create(config(f"a{number}"))
    then, uid = api.revision, api.get("namespaces", "default")["metadata"]["uid"]
    await api.restart(keep=False)
    body = (await plain.get(MAPS)).body
    assert body["items"] == []
    assert int(body["metadata"]["resourceVersion"]) < then
    assert api.get("namespaces", "default")["metadata"]["uid"] != uid
    async with plain.watch(MAPS, resourceVersion=then, timeoutSeconds=1) as events:
        api.create(config("b"))
        assert [event async for event in events] == [], "a watch from a revision to come says nothing until then"


async def test_a_restored_backup_gives_the_same_revisions_to_other_writes(api: KubeApi, plain: Plain) -> None:
    api.create(config("a"))
    backup, then = api.backup(), api.revision
    api.create(config("b"))
    api.delete("configmaps", "a", "default")
    await api.restart(backup=backup)
    body = (await plain.get(MAPS)).body
    assert (names(body), body["metadata"]["resourceVersion"]) == (["a"], str(then))
    made = await plain.post(MAPS, config("c"))
    assert made.body["metadata"]["resourceVersion"] == str(then + 1)
    async with plain.watch(MAPS, resourceVersion=then) as events:
        assert (await anext(events))[1]["metadata"]["name"] == "c"


async def test_what_was_asked_is_known(api: KubeApi, plain: Plain) -> None:
    await plain.get(MAPS, limit=5)
    await plain.get(f"{MAPS}/nope")
    first, second = api.requests("GET", MAPS)
    assert (first.method, first.query, first.status, first.user) == ("GET", {"limit": "5"}, 200, "system:anonymous")
    assert (second.path, second.status) == (f"{MAPS}/nope", 404)


async def test_as_a_program_it_is_told_by_requests(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    with kube_program(kubeconfig) as url:
        assert kubeconfig.stat().st_mode & 0o777 == 0o600
        assert url in kubeconfig.read_text()
        async with Plain(url) as plain:
            made = await plain.post(MAPS, config("a"))
            assert made.status == 201
            assert (await plain.post("/-/fail", {"status": 503, "path": "configmaps"})).status == 200
            assert (await plain.get(MAPS)).status == 503
            assert (await plain.get(MAPS)).status == 200
            assert (await plain.post("/-/faults", {"nonsense": 1})).status == 400
            assert [one["status"] for one in (await plain.get("/-/log")).body][:2] == [201, 200]
            await plain.post("/-/restart", {"keep": False})
            async with asyncio.timeout(5):
                while True:
                    try:
                        if not (await plain.get(MAPS)).body["items"]:
                            break
                    except aiohttp.ClientError:
                        await asyncio.sleep(0.02)
