"""The API server's double in a network namespace, for tests: in a thread, because a thread has one namespace."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from kube_api import KubeApi
from tortie.kernel import netns


class ApiThread:
    """`api` may be looked at from here; `do` runs something in its loop."""

    def __init__(self, netns_path: str, api: KubeApi) -> None:
        self.api = api
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(netns_path,), name="kube-api", daemon=True)

    def _run(self, netns_path: str) -> None:
        with netns.entered(netns_path):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with self.api:
            self._up.set()
            await self._stop.wait()

    def start(self) -> None:
        self._thread.start()
        assert self._up.wait(20), "the double does not start"

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    def do(self, what: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """A method of the double's, in its loop; its result."""

        async def act() -> Any:
            found = what(*arguments, **more)
            return await found if asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(30)

    def create(self, version: str, kind: str, name: str, namespace: str = "", **body: Any) -> dict[str, Any]:
        metadata = {"name": name, **({"namespace": namespace} if namespace else {}), **body.pop("metadata", {})}
        made: dict[str, Any] = self.do(
            self.api.create, {"apiVersion": version, "kind": kind, "metadata": metadata, **body}
        )
        return made

    def get(self, plural: str, name: str, namespace: str = "") -> dict[str, Any]:
        found: dict[str, Any] = self.do(self.api.get, plural, name, namespace)
        return found
