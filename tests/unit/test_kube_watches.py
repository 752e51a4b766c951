"""Watches of a Kubernetes API server that is in trouble, and lists on which they stand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import pytest

from tortie.base.errors import Compacted, NotFound, Unavailable
from tortie.model.k8s import Namespace, Pod, VirtualMachineInstance
from tortie.model.staged import StagedGlobalNetworkPolicy
from tortie.model.workload import WorkloadEndpoint
from tortie.store.kube.changes import Uncounted
from tortie.store.kube.kinds import Kinds
from tortie.store.kubernetes import KubernetesStore

PATIENCE = 20


class Server:
    """Answers in the order in which they were laid out, the last one again and again; an error is raised."""

    def __init__(self, lists: list[Any], watches: list[list[Any]]) -> None:
        self.lists, self.watches = lists, watches
        self.asked: list[tuple[str, dict[str, str]]] = []

    async def request(self, method: str, path: str, *, query: Mapping[str, str] | None = None, **_: Any) -> bytes:
        self.asked.append((path, dict(query or {})))
        answer = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        if isinstance(answer, Exception):
            raise answer
        return json.dumps(answer).encode()

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[bytes]:
        self.asked.append((f"WATCH {path}", dict(query)))
        for event in self.watches.pop(0) if len(self.watches) > 1 else self.watches[0]:
            if isinstance(event, Exception):
                raise event
            yield event if isinstance(event, bytes) else json.dumps(event).encode()
        if len(self.watches) == 1:
            await asyncio.Event().wait()

    async def close(self) -> None:
        pass


def pod(name: str, revision: str, phase: str = "Running", **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "red", "resourceVersion": revision, **metadata},
            "spec": {"nodeName": "n1"}, "status": {"phase": phase, "podIP": "10.0.0.5"}}  # fmt: skip


def page(revision: str, *items: Any, more: str = "") -> dict[str, Any]:
    return {"metadata": {"resourceVersion": revision, "continue": more}, "items": list(items)}


def event(type_: str, one: Any) -> dict[str, Any]:
    return {"type": type_, "object": one}


async def told(store: KubernetesStore, kind: type[Any], revision: str, count: int) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    async with asyncio.timeout(PATIENCE), aclosing(store.watch(kind, revision)) as watch:  # type: ignore[type-var]
        async for batch in watch:
            found += [(one.type.value, one.object.name) for one in batch]
            if len(found) >= count:
                break
    return found


async def test_a_list_that_expired_leaves_nothing_behind() -> None:
    """What did not count in the half that is thrown away may count in the list: its end is news."""
    lists = [page("7", pod("a", "3", "Succeeded"), more="x"), Compacted("expired"), page("9", pod("a", "8"))]
    store = KubernetesStore(Server(lists, [[event("DELETED", pod("a", "10"))], []]))
    listing = await store.list(WorkloadEndpoint)
    assert [one.spec.pod for one in listing.items] == ["a"]
    assert await told(store, WorkloadEndpoint, listing.revision, 1) == [("DELETED", "n1-k8s-a-eth0")]


def test_two_lists_of_one_revision_know_together_who_did_not_count() -> None:
    uncounted = Uncounted()
    uncounted.note(Pod.KIND, "7", [("blue", "x")])
    uncounted.note(Pod.KIND, "7", [("red", "y")])
    assert uncounted.at(Pod.KIND, "7") == {("blue", "x"), ("red", "y")}
    assert uncounted.at(Pod.KIND, "8") == frozenset()


@pytest.mark.parametrize("trouble", [
    event("ERROR", {"kind": "Status", "code": 500, "message": "etcd is on fire"}), b"<html>",
    event("ADDED", pod("a", "x9")), Unavailable("broke"),
])  # fmt: skip
async def test_a_watch_that_only_ever_fails_is_not_begun_for_ever(trouble: Any) -> None:
    server = Server([page("7")], [[trouble]])
    store = KubernetesStore(server)
    revision = (await store.list(WorkloadEndpoint)).revision
    with pytest.raises(Unavailable):
        await told(store, WorkloadEndpoint, revision, 1)
    assert 1 < sum(path.startswith("WATCH") for path, _ in server.asked) < 10


async def test_a_watch_goes_on_after_the_last_event_and_the_last_bookmark() -> None:
    bookmark = event("BOOKMARK", {"metadata": {"resourceVersion": "20"}})
    watches = [[event("ADDED", pod("a", "8"))], [bookmark, Unavailable("broke")], [event("ADDED", pod("b", "21"))], []]
    server = Server([page("7"), page("22")], watches)
    store = KubernetesStore(server)
    assert await told(store, WorkloadEndpoint, (await store.list(WorkloadEndpoint)).revision, 2) == [
        ("ADDED", "n1-k8s-a-eth0"), ("ADDED", "n1-k8s-b-eth0")]  # fmt: skip
    assert [query["resourceVersion"] for path, query in server.asked if path.startswith("WATCH")] == ["7", "8", "20"]


async def test_an_object_that_does_not_fit_neither_stops_a_watch_nor_spoils_a_page(
    caplog: pytest.LogCaptureFixture,
) -> None:
    odd = pod("odd", "5") | {"spec": {"nodeName": 7}}
    strange = pod("odd", "9", ownerReferences="none")
    server = Server(
        [page("7", pod("a", "3"), odd)], [[event("MODIFIED", odd | strange), event("ADDED", pod("b", "10"))]]
    )
    store = KubernetesStore(server)
    listing = await store.list(WorkloadEndpoint)
    assert [one.spec.pod for one in listing.items] == ["a"]
    assert (await told(store, WorkloadEndpoint, listing.revision, 2))[-1] == ("ADDED", "n1-k8s-b-eth0")
    assert "WorkloadEndpoint(red/odd) is ignored" in caplog.text


@pytest.mark.parametrize("revision", ["", "abc", "\u0661", "-1"])
async def test_revisions_that_are_no_numbers_are_told(revision: str) -> None:
    store = KubernetesStore(Server([page(revision)], [[]]))
    for kind in (Namespace, WorkloadEndpoint):
        with pytest.raises(Unavailable, match="which is no number"):
            await store.list(kind)


async def test_the_pods_of_a_node_may_come_from_a_servers_memory_and_are_not_old() -> None:
    """Else each of a thousand agents would have the server look through all pods of the cluster."""
    server = Server([page("41"), page("42", pod("a", "3"))], [[]])
    listing = await KubernetesStore(server, node="n1").list(Pod)
    assert ([one.name for one in listing.items], listing.revision) == (["a"], "42")
    assert server.asked == [
        ("/api/v1/namespaces", {"limit": "1"}),
        ("/api/v1/pods", {"fieldSelector": "spec.nodeName=n1", "resourceVersion": "41",
                          "resourceVersionMatch": "NotOlderThan"}),
    ]  # fmt: skip


async def test_where_the_servers_memory_lags_behind_its_etcd_is_asked() -> None:
    late = Unavailable("504: Timeout: Too large resource version: 41, current: 40")
    server = Server([page("41"), late, page("42", pod("a", "3"))], [[]])
    assert [one.name for one in (await KubernetesStore(server, node="n1").list(Pod)).items] == ["a"]
    assert server.asked[-1] == ("/api/v1/pods", {"fieldSelector": "spec.nodeName=n1", "limit": "500"})
    with pytest.raises(Unavailable, match="on fire"):
        await KubernetesStore(Server([page("41"), Unavailable("on fire")], [[]]), node="n1").list(Pod)


async def test_a_watch_of_a_kind_that_is_not_there_ends_with_the_store() -> None:
    store = KubernetesStore(Server([NotFound("the server does not know it")], [[]]))
    waiting = asyncio.create_task(told(store, VirtualMachineInstance, "0", 1))
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.wait_for(waiting, PATIENCE) == []


async def test_a_kind_that_comes_later_is_found_in_either_group() -> None:
    """The watch began when the cluster had nothing of Calico's; what it has in the end is the other layout."""
    missing = NotFound("the server does not know it")
    there: Any = {"kind": "APIResourceList"}
    server = Server([*[missing] * 6, there, page("9")], [[]])
    kinds = Kinds(server, pause=0.01)
    assert (await kinds.form(StagedGlobalNetworkPolicy)).place.group == "crd.projectcalico.org"
    with pytest.raises(Compacted, match="the cluster has them now"):
        await kinds.until_there(StagedGlobalNetworkPolicy, asyncio.Event())
    assert server.asked[-1][0].startswith("/apis/projectcalico.org/v3/")
