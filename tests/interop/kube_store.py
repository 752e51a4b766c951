"""A Kubernetes API server on a loop of its own, with Calico's custom resources, and stores on it: the double, or where
KUBEBUILDER_ASSETS names one and the test can do with it, a real one.

Tests of stores run in loops of their own, some in several: the server is in a thread, and asked from anywhere.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from kube_api import KubeApi
from kube_server import PATIENCE, RealKubeApi, real_assets
from tortie.base.errors import Exists, NotFound
from tortie.model.apiconfig import ApiConfig
from tortie.render.crds import crds
from tortie.store.kube.access import access
from tortie.store.kube.client import Client
from tortie.store.kube.places import Place
from tortie.store.kubernetes import KubernetesStore

T = TypeVar("T")

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@cache
def definitions() -> list[dict[str, Any]]:
    return crds()


class Server:
    """`api` is the double, or a RealKubeApi; its methods are called in its thread, through `do`."""

    def __init__(self, api: Any, loop: asyncio.AbstractEventLoop, kubeconfig: Path) -> None:
        self.api = api
        self._loop = loop
        self._kubeconfig = kubeconfig

    def do(self, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Call something of the double, and wait for it."""

        async def run() -> Any:
            found = call(*arguments, **options)
            return await found if asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def empty(self, *plurals: str) -> None:
        """A new cluster with Calico's custom resource definitions, or only with those of these plurals."""
        self.do(self.api.restart, keep=False)
        for definition in definitions():
            if not plurals or definition["spec"]["names"]["plural"] in plurals:
                self.do(self.api.create, definition)
        self.api.log.clear()

    async def clear(self, *plurals: str) -> None:
        """The same over HTTP, for a server whose memory is its own: the objects of these plurals go."""
        client = self.client()
        try:
            for definition in definitions():
                spec = definition["spec"]
                if spec["names"]["plural"] not in plurals:
                    continue
                with suppress(Exists):
                    await client.request("POST", DEFINITIONS, body=json.dumps(definition).encode())
                place = Place(
                    f"/apis/{spec['group']}/{spec['versions'][0]['name']}",
                    spec["names"]["plural"],
                    spec["scope"] == "Namespaced",
                )
                for namespace in await _served(client, place):
                    await client.request("DELETE", place.collection(namespace))
        finally:
            await client.close()

    def client(self) -> Client:
        """As the administrator."""
        return Client(access(ApiConfig(kubeconfig=str(self._kubeconfig)), {}))

    def store(self, **options: Any) -> KubernetesStore:
        return KubernetesStore(self.client(), **options)

    def asked(self) -> list[str]:
        """What was asked since the last time, `GET /api/v1/pods`; watches with the word WATCH."""
        found = [f"{'WATCH' if 'watch' in one.query else one.method} {one.path}" for one in self.api.log]
        self.api.log.clear()
        return found


@contextmanager
def server(directory: Path, *, real: bool = False, **options: Any) -> Iterator[Server]:
    """While the block runs. `real`: a real server is fine, too, if there is one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="kube-api")
    thread.start()
    assets = real_assets() if real else None
    api: Any = KubeApi(**options) if assets is None else RealKubeApi(assets)
    try:
        asyncio.run_coroutine_threadsafe(api.__aenter__(), loop).result(PATIENCE + 10)
        try:
            yield Server(api, loop, api.kubeconfig(directory / "kubeconfig"))
        finally:
            asyncio.run_coroutine_threadsafe(api.__aexit__(None, None, None), loop).result(30)
    finally:
        asyncio.run_coroutine_threadsafe(_end_all(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _served(client: Client, place: Place) -> set[str]:
    """Once the server has the kind, the namespaces with objects of it ("" for what is in none)."""
    async with asyncio.timeout(30):
        while True:
            try:
                listed = json.loads(await client.request("GET", place.collection()))
            except NotFound:
                await asyncio.sleep(0.1)
                continue
            return {item["metadata"].get("namespace", "") for item in listed["items"]}


async def _end_all() -> None:
    """What still runs on this loop."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
