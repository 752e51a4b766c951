"""Pods of an agent's tests: made on demand, taken away by DEL afterwards, and nothing of them may be left."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from agent_node import NETWORK, RED, Node, Sandbox, fails_plainly, nothing_left, pod

from namespaces import Ns
from tortie.base.errors import NotFound
from tortie.cni.spec import CniError
from tortie.model.k8s import Pod
from tortie.model.meta import changed
from tortie.model.store import Store

MakeSandbox = Callable[..., Any]


@contextlib.asynccontextmanager
async def sandboxes(node: Node, store: Store, make_ns: Callable[..., Ns]) -> AsyncIterator[MakeSandbox]:
    """Makes pods with a namespace of their own: `await make("name", labels=..., annotations=..., conflist=...)`."""
    made: list[Sandbox] = []
    pods: set[str] = set()

    async def make(
        name: str, labels: Mapping[str, str] | None = None, annotations: Mapping[str, str] | None = None, **fields: Any
    ) -> Sandbox:
        if name not in pods:
            await store.create(changed(pod(name, labels=labels), annotations=dict(annotations or {})))
            pods.add(name)
        one = Sandbox(node, name, fields.pop("ns", None) or make_ns(name), **fields)
        made.append(one)
        return one

    yield make
    for one in made:
        await one.delete()
    for name in pods:
        with contextlib.suppress(NotFound):
            await store.delete(Pod, name, RED)
    await nothing_left(node, store)


def addresses(ns: Ns, dev: str = "eth0") -> set[str]:
    listed = [link for link in ns.json("addr", "show") if link["ifname"] == dev]
    return {one["local"] for link in listed for one in link["addr_info"] if one["scope"] == "global"}


def code(error: pytest.ExceptionInfo[CniError]) -> int:
    fails_plainly(error)
    return error.value.code


def call(one: Sandbox, command: str, version: str, **conf: Any) -> subprocess.CompletedProcess[str]:
    """The stub itself, as it is executed."""
    plugin = dict(one.conflist.plugins[0]) | {"cniVersion": version, "name": NETWORK} | conf
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": one.container_id,
        "CNI_NETNS": one.path(None),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/nowhere",
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={one.namespace};K8S_POD_NAME={one.pod}",
        "TORTIE_AGENT_SOCKET": str(one.node.run_dir / "agent.sock"),
    }
    name = conf.get("type", "calico")
    executable = str(one.node.site.stub.with_name(name))
    return subprocess.run(
        [executable], input=json.dumps(plugin), env=environment, capture_output=True, text=True, check=False
    )


async def refused(one: Sandbox, says: str) -> CniError:
    with pytest.raises(CniError, match=says) as error:
        await one.add()
    fails_plainly(error)
    return error.value
