"""The condition of a Kubernetes Node, and `tortie status`' page."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tortie.agent import kubernetes
from tortie.agent.kubernetes import DOWN, UP, KubernetesNode
from tortie.agent.registration import StartUpError, ready
from tortie.agent.standing import graph_report
from tortie.agent.view import View
from tortie.base.errors import Conflict, Unavailable
from tortie.cli.status import page
from tortie.model.conditions import with_network
from tortie.model.k8s import K8sNode
from tortie.model.meta import Metadata
from tortie.store.memory import MemoryStore

NODE = "node1"
NOW, LATER = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2026, 1, 2, 3, 5, tzinfo=UTC)
READY = {"type": "Ready", "status": "True", "lastHeartbeatTime": "x"}


def test_condition_is_put_beside_the_others() -> None:
    up = with_network({"conditions": [READY], "nodeInfo": {"arch": "a"}}, UP, NOW)
    assert up["nodeInfo"] == {"arch": "a"}
    ready, network = up["conditions"]
    assert ready == READY
    assert network == {
        "type": "NetworkUnavailable",
        "status": "False",
        "reason": "CalicoIsUp",
        "message": "Calico is running on this node",
        "lastHeartbeatTime": "2026-01-02T03:04:05Z",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
    }
    assert with_network(up, UP, LATER) is up, "nothing to write"
    down = with_network(up, DOWN, LATER)["conditions"][1]
    assert (down["status"], down["reason"], down["lastTransitionTime"]) == (
        "True",
        "CalicoIsDown",
        "2026-01-02T03:05:00Z",
    )
    assert with_network(None, UP, NOW)["conditions"] == [network]


def test_route_that_a_cloud_has_made_is_no_transition() -> None:
    """The same status for another reason keeps its time."""
    old = {"type": "NetworkUnavailable", "status": "False", "reason": "RouteCreated", "lastTransitionTime": "then"}
    (new,) = with_network({"conditions": [old]}, UP, NOW)["conditions"]
    assert (new["reason"], new["lastTransitionTime"]) == ("CalicoIsUp", "then")


class Contended(MemoryStore):
    """Somebody else always writes first, so many times."""

    others = 0

    async def update(self, obj: Any) -> Any:
        if self.others:
            self.others -= 1
            raise Conflict("the kubelet was there first")
        return await super().update(obj)


async def node_of(store: MemoryStore, note: Path, networked: bool = True, **more: Any) -> KubernetesNode:
    async def answer() -> bool:
        return networked

    return KubernetesNode(NODE, store, note, answer, demanded=more.pop("demanded", True), **more)


async def network(store: MemoryStore) -> str:
    status = (await store.get(K8sNode, NODE)).status or {}
    return next((one["reason"] for one in status.get("conditions", ())), "")


async def test_up_and_down(tmp_path: Path) -> None:
    store, note = Contended(), tmp_path / "shutdownTS"
    await store.create(K8sNode(metadata=Metadata(name=NODE)))
    one = await node_of(store, note)
    await one.demand()
    store.others = 3
    await asyncio.wait_for(one.run(), 10)
    assert await network(store) == "CalicoIsUp"
    await one.shut_down()
    assert (await network(store), note.exists()) == ("CalicoIsDown", True)
    await asyncio.wait_for((await node_of(store, note)).run(), 10)
    assert (await network(store), note.exists()) == ("CalicoIsUp", False)


async def test_without_bgp_nobody_is_told_that_it_goes(tmp_path: Path) -> None:
    store = MemoryStore()
    await store.create(K8sNode(metadata=Metadata(name=NODE)))
    one = await node_of(store, tmp_path / "ts", conditioned=False)
    await one.shut_down()
    assert (await network(store), (tmp_path / "ts").exists()) == ("", True)


async def test_it_is_not_waited_for_ever(tmp_path: Path) -> None:
    store = MemoryStore()
    await store.create(K8sNode(metadata=Metadata(name=NODE)))
    one = await node_of(store, tmp_path / "ts", networked=False)
    before = kubernetes.PATIENCE, kubernetes.LOOK
    kubernetes.PATIENCE, kubernetes.LOOK = 0.05, 0.01
    try:
        await asyncio.wait_for(one.run(), 10)
    finally:
        kubernetes.PATIENCE, kubernetes.LOOK = before
    assert await network(store) == "CalicoIsUp"


async def test_node_that_must_be_there(tmp_path: Path) -> None:
    await (await node_of(MemoryStore(), tmp_path / "ts", demanded=False)).demand()
    with pytest.raises(StartUpError, match="there is no Kubernetes Node node1: name it by CALICO_K8S_NODE_REF"):
        await (await node_of(MemoryStore(), tmp_path / "ts")).demand()


class Refusing(MemoryStore):
    async def get(self, kind: Any, name: str, namespace: str = "") -> Any:
        raise Unavailable("connection is unauthorized: Unauthorized")


async def test_datastore_that_nobody_waits_for() -> None:
    with pytest.raises(StartUpError, match="the datastore cannot be used: connection is unauthorized"):
        await ready(Refusing(), lambda error: True)


# --- the page -----------------------------------------------------------------------------------------------------


WELL: dict[str, Any] = {
    "node": NODE,
    "wrong": {},
    "agent": {"version": "0.1.0", "seconds": 9},
    "dataplane": {"generation": 8, "enforced": 8, "failures": [], "endpoints": 2},
    "cni": {"serves": True, "pods": 2, "ready": 62, "pending": 0, "leaving": 0},
    "bgp": {"state": "ready", "peers": 2, "established": 2},
    "datastore": {
        "datastore": "/x.db",
        "cluster": "a",
        "connected": True,
        "why": "",
        "believed": True,
        "disbelief": "",
        "source": "datastore",
        "age": 0.0,
        "kinds": {
            "pods": {"objects": 2, "listed": True, "heard": 9.2, "why": ""},
            "nodes": {"objects": 1, "listed": True, "heard": 1.9, "why": ""},
        },
    },
}


def test_page_of_a_node_that_is_well() -> None:
    assert page(WELL) == (
        "node1  well\n"
        "  agent      tortie 0.1.0, runs for 9 s\n"
        "  dataplane  state 8 is in the kernel, 2 endpoints\n"
        "  cni        serves pods, 2 pods known, 62 addresses ready\n"
        "  bgp        ready, 2 of 2 sessions up\n"
        "  datastore  /x.db, connected; known\n"
        "             2 of 2 kinds followed, 3 objects, heard of 2 s ago, the quietest 9 s\n"
    )


def test_page_of_one_that_is_not() -> None:
    store = WELL["datastore"] | {
        "connected": False,
        "believed": False,
        "source": "snapshot",
        "age": 300,
        "kinds": {"pods": {"objects": 2, "listed": False, "heard": None, "why": "pods are older than they were"}},
    }
    sick = WELL | {
        "wrong": {"CalculationGraph": "the datastore is away"},
        "datastore": store,
        "dataplane": WELL["dataplane"] | {"generation": 9, "failures": ["x"]},
        "cni": WELL["cni"] | {"pending": 2, "leaving": 1},
    }
    text = page(sick)
    assert text.startswith("node1  not well\n")
    assert "state 8 is in the kernel, 9 is on its way, 2 endpoints, 1 failures" in text
    assert "2 pods to tell of, 1 pods went" in text
    assert "/x.db, away, not believed; known from a snapshot as of 5 min ago" in text
    assert "pods: pods are older than they were" in text
    assert text.endswith("✘ CalculationGraph: the datastore is away\n")
    assert page({"node": NODE, "wrong": {"Agent": "gone"}}) == "node1  not well\n✘ Agent: gone\n"


async def test_report_of_the_picture() -> None:
    view = View(NODE, MemoryStore(), lambda state: None)
    assert graph_report(view, 10.0)["reason"] == "not in sync"
    view.publish_restored(4.0)
    found = graph_report(view, 10.0)
    assert (found["live"], found["ready"]) == (True, False)
    assert found["reason"] == "the datastore is away: this is as it was 6 s ago"
    view.datastore.guid = "a"
    view.datastore.see(None)
    assert "not believed: its ClusterInformation is gone" in graph_report(view, 10.0)["reason"]
