"""kube-proxy as kubeadm runs it: the DaemonSet kube-system/kube-proxy, which a nodeSelector keeps off every node.

It is not deleted: the same object, without the selector, is the way back. The selector is that of Calico's
documents, so that a cluster which has been on Calico's eBPF dataplane is understood.
"""

from __future__ import annotations

import json
from typing import Protocol

from tortie.base.errors import NotFound
from tortie.store.kube.api import MERGE_PATCH

NAMESPACE, NAME = "kube-system", "kube-proxy"
PATH = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{NAME}"
LABEL, VALUE = "non-calico", "true"
"""That no node has."""


class Asks(Protocol):
    """What of the Kubernetes client is needed."""

    async def request(self, method: str, path: str, *, body: bytes = b"", content_type: str = ...) -> bytes: ...


def selector(value: str | None) -> str:
    """The patch, as JSON; None takes the selector away."""
    patch = {"spec": {"template": {"spec": {"nodeSelector": {LABEL: value}}}}}
    return json.dumps(patch, separators=(",", ":"))


def command(*, run: bool) -> str:
    """What a person would type to have it run, or not."""
    patch = selector(None if run else VALUE)
    return f"kubectl -n {NAMESPACE} patch daemonset {NAME} --type merge -p '{patch}'"


class DaemonSet:
    """Raises TortieError: NotFound, Unavailable, or what else the server refuses with."""

    def __init__(self, client: Asks) -> None:
        self._client = client

    async def there(self) -> bool:
        try:
            await self._client.request("GET", PATH)
        except NotFound:
            return False
        return True

    async def stop(self) -> None:
        await self._patch(VALUE)

    async def start(self) -> None:
        await self._patch(None)

    async def _patch(self, value: str | None) -> None:
        await self._client.request("PATCH", PATH, body=selector(value).encode(), content_type=MERGE_PATCH)
