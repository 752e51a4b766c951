"""The client against the API server's double: pages, watches with bookmarks, history that is gone, outages, roles."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kube_peers import until

from kube_api import KubeApi
from tortie.base.errors import Compacted, ConfigError, Conflict, Exists, NotFound, Unavailable
from tortie.model.apiconfig import ApiConfig
from tortie.store.kube.access import access
from tortie.store.kube.api import MERGE_PATCH
from tortie.store.kube.client import Client
from tortie.store.kube.review import may

MAPS = "/api/v1/namespaces/default/configmaps"


@contextlib.asynccontextmanager
async def connected(double: KubeApi, folder: Path, token: str = "", patience: float = 10.0) -> AsyncIterator[Client]:
    config = double.kubeconfig(folder / f"config-{token[-6:]}", token=token)
    client = Client(access(ApiConfig(kubeconfig=str(config)), {}), patience=patience)
    try:
        yield client
    finally:
        await client.close()


def config_map(name: str, **data: str) -> bytes:
    return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}).encode()


async def asked(client: Client, method: str, path: str, body: bytes = b"", **query: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await client.request(method, path, query=query, body=body))
    return found


class Watching:
    """A watch in a task; `seen` is its events so far."""

    def __init__(self, client: Client, **query: str) -> None:
        self.seen: list[dict[str, Any]] = []
        self.task = asyncio.create_task(self._run(client, query))

    async def _run(self, client: Client, query: dict[str, str]) -> None:
        async for line in client.watch(MAPS, query):
            self.seen.append(json.loads(line))

    def names(self, kind: str) -> list[str]:
        """Of the events of a kind. Raises what the watch has raised."""
        if self.task.done():
            self.task.result()
        return [one["object"]["metadata"].get("name", "") for one in self.seen if one["type"] == kind]


async def test_writing_and_what_is_refused(tmp_path: Path) -> None:
    async with KubeApi(tls=True) as double, connected(double, tmp_path) as client:
        made = await asked(client, "POST", MAPS, config_map("a"))
        with pytest.raises(Exists, match='configmaps "a" already exists'):
            await asked(client, "POST", MAPS, config_map("a"))
        changed = json.loads(
            await client.request("PATCH", f"{MAPS}/a", body=b'{"data": {"k": "v"}}', content_type=MERGE_PATCH)
        )
        assert changed["data"] == {"k": "v"}
        with pytest.raises(Conflict, match="the object has been modified"):
            await asked(client, "PUT", f"{MAPS}/a", json.dumps(made).encode())
        with pytest.raises(ConfigError, match="A_"):
            await asked(client, "POST", MAPS, config_map("A_"))
        with pytest.raises(NotFound, match='configmaps "b" not found'):
            await asked(client, "GET", f"{MAPS}/b")
        with pytest.raises(NotFound, match=r"the server does not know /apis/crd.projectcalico.org/v1/ippools"):
            await asked(client, "GET", "/apis/crd.projectcalico.org/v1/ippools")
        stale = {"preconditions": {"resourceVersion": made["metadata"]["resourceVersion"]}}
        with pytest.raises(Conflict):
            await asked(client, "DELETE", f"{MAPS}/a", json.dumps(stale).encode())
        await asked(client, "DELETE", f"{MAPS}/a")


async def test_pages_and_a_page_that_comes_too_late(tmp_path: Path) -> None:
    async with KubeApi() as double, connected(double, tmp_path) as client:
        double.bulk("configmaps", (json.loads(config_map(f"m{n:04}")) | _in_default(f"m{n:04}") for n in range(1200)))
        first = await asked(client, "GET", MAPS, limit="500")
        names, following = [one["metadata"]["name"] for one in first["items"]], first["metadata"]["continue"]
        while following:
            page = await asked(client, "GET", MAPS, **{"limit": "500", "continue": following})
            assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
            names += [one["metadata"]["name"] for one in page["items"]]
            following = page["metadata"].get("continue", "")
        assert names == [f"m{n:04}" for n in range(1200)]
        await asked(client, "POST", MAPS, config_map("another"))
        double.compact()
        with pytest.raises(Compacted):
            await asked(client, "GET", MAPS, **{"limit": "500", "continue": first["metadata"]["continue"]})


def _in_default(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default"}}


async def test_a_watch_goes_on_where_it_was_broken(tmp_path: Path) -> None:
    async with KubeApi(bookmark_every=0.1) as double, connected(double, tmp_path) as client:
        begin = (await asked(client, "GET", MAPS))["metadata"]["resourceVersion"]
        first = Watching(client, resourceVersion=begin, allowWatchBookmarks="true")
        await asked(client, "POST", MAPS, config_map("a", long="x" * 900_000))
        await until(lambda: first.names("ADDED") == ["a"])
        bookmarks = len(first.names("BOOKMARK"))
        await until(lambda: len(first.names("BOOKMARK")) > bookmarks)
        newest = first.seen[-1]["object"]["metadata"]["resourceVersion"]
        double.cut_watches()
        with pytest.raises(Unavailable, match="the watch of"):
            await first.task
        await asked(client, "DELETE", f"{MAPS}/a")
        second = Watching(client, resourceVersion=newest, timeoutSeconds="1")
        await second.task  # the server ends it
        assert [one["type"] for one in second.seen] == ["DELETED"]
        await asked(client, "POST", MAPS, config_map("b"))
        double.compact()
        gone = Watching(client, resourceVersion=newest)
        with contextlib.suppress(Compacted):
            await asyncio.wait_for(gone.task, 5)
            assert gone.seen[-1]["object"]["code"] == 410  # as an event: it has begun


async def test_an_outage_shorter_than_patience_is_not_noticed(tmp_path: Path) -> None:
    async with KubeApi() as double, connected(double, tmp_path) as client:
        await asked(client, "GET", MAPS)
        await double.refuse()
        double.later(0.5, double.accept())
        await asked(client, "POST", MAPS, config_map("a"))
        double.faults.fail(429, times=1, retry_after=1)
        double.faults.fail(503, times=1)
        await asked(client, "GET", f"{MAPS}/a")
        assert [one.status for one in double.requests("GET", f"{MAPS}/a")][-3:] in ([429, 503, 200], [503, 429, 200])


async def test_roles_and_tokens(tmp_path: Path) -> None:
    async with KubeApi(rbac=True) as double:
        double.create(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRole",
                "metadata": {"name": "reader"},
                "rules": [{"apiGroups": [""], "resources": ["configmaps", "nodes/status"], "verbs": ["list", "patch"]}],
            }
        )
        double.create(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": "reader"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice"}],
            }
        )
        token = double.user("alice", ["system:authenticated"])
        async with connected(double, tmp_path, token) as client:
            await asked(client, "GET", MAPS)
            assert await may(client, "patch", "", "nodes/status")
            assert not await may(client, "patch", "", "nodes")
            with pytest.raises(Unavailable, match=r'connection is unauthorized: .*User "alice" cannot create resource'):
                await asked(client, "POST", MAPS, config_map("a"))
            double.revoke(token)
            with pytest.raises(Unavailable, match="connection is unauthorized: Unauthorized"):
                await asked(client, "GET", MAPS)
            assert token not in "".join(map(repr, (client, client.access)))
