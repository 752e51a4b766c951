"""The API server's double: lists page by page, watches, selectors, and history that is forgotten."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kube_api import KubeApi
from kube_api.plain import Plain

PODS = "/api/v1/namespaces/default/pods"
ALL = "/api/v1/pods"


@pytest.fixture
async def api() -> AsyncIterator[KubeApi]:
    async with KubeApi(bookmark_every=0.2) as api:
        yield api


@pytest.fixture
async def plain(api: KubeApi) -> AsyncIterator[Plain]:
    async with Plain(api.url) as plain:
        yield plain


def pod(name: str, node: str = "", namespace: str = "default", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [{"name": "c", "image": "i:1"}], **({"nodeName": node} if node else {})},
    }


def names(listing: dict[str, Any]) -> list[str]:
    return [one["metadata"]["name"] for one in listing["items"]]


async def take(events: AsyncIterator[tuple[str, dict[str, Any]]], count: int) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    async with asyncio.timeout(5):
        async for kind, obj in events:
            found.append((kind, obj["metadata"].get("name", "")))
            if len(found) == count:
                break
    return found


class TestLists:
    async def test_items_of_built_in_kinds_do_not_name_their_kind(self, api: KubeApi, plain: Plain) -> None:
        api.create(pod("a"))
        body = (await plain.get(PODS)).body
        assert (body["kind"], body["apiVersion"]) == ("PodList", "v1")
        assert "kind" not in body["items"][0]
        assert "apiVersion" not in body["items"][0]

    async def test_the_order_is_that_of_the_keys(self, api: KubeApi, plain: Plain) -> None:
        """`-` and `.` come before `/`: a namespace `a-b` is listed before `a`."""
        for namespace in ("a", "a-b"):
            api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
            api.create(pod("p", namespace=namespace))
        items = (await plain.get(ALL)).body["items"]
        assert [one["metadata"]["namespace"] for one in items] == ["a-b", "a"]

    async def test_pages_show_one_revision(self, api: KubeApi, plain: Plain) -> None:
        for number in range(5):
            api.create(pod(f"p{number}"))
        first = (await plain.get(PODS, limit=2)).body
        assert (names(first), first["metadata"]["remainingItemCount"]) == (["p0", "p1"], 3)
        api.delete("pods", "p3", "default")
        api.create(pod("p25"))
        second = (await plain.get(PODS, limit=2, **{"continue": first["metadata"]["continue"]})).body
        third = (await plain.get(PODS, limit=2, **{"continue": second["metadata"]["continue"]})).body
        assert names(second) + names(third) == ["p2", "p3", "p4"]
        revisions = {one["metadata"]["resourceVersion"] for one in (first, second, third)}
        assert len(revisions) == 1
        assert "continue" not in third["metadata"]
        assert names((await plain.get(PODS)).body) == ["p0", "p1", "p2", "p25", "p4"]

    async def test_a_page_is_full_although_a_selector_chooses(self, api: KubeApi, plain: Plain) -> None:
        for number in range(6):
            api.create(pod(f"p{number}", colour="red" if number % 2 else "blue"))
        page = (await plain.get(PODS, limit=2, labelSelector="colour=red")).body
        assert names(page) == ["p1", "p3"]
        assert "remainingItemCount" not in page["metadata"]
        rest = (
            await plain.get(PODS, limit=2, labelSelector="colour=red", **{"continue": page["metadata"]["continue"]})
        ).body
        assert names(rest) == ["p5"]

    async def test_a_token_ends_with_the_history(self, api: KubeApi, plain: Plain) -> None:
        for number in range(4):
            api.create(pod(f"p{number}"))
        token = (await plain.get(PODS, limit=2)).body["metadata"]["continue"]
        api.create(pod("p9"))
        api.compact()
        gone = await plain.get(PODS, limit=2, **{"continue": token})
        assert (gone.status, gone.body["reason"]) == (410, "Expired")
        assert gone.message.startswith("The provided continue parameter is too old")
        rest = await plain.get(PODS, **{"continue": gone.body["metadata"]["continue"]})
        assert names(rest.body) == ["p2", "p3", "p9"], "the way to go on with an inconsistent list"
        assert (await plain.get(PODS, **{"continue": "nonsense"})).status == 400

    async def test_revisions_any_exact_and_to_come(self, api: KubeApi, plain: Plain) -> None:
        api.create(pod("a"))
        then = api.revision
        api.create(pod("b"))
        exact = await plain.get(PODS, resourceVersion=then, resourceVersionMatch="Exact")
        assert (names(exact.body), exact.body["metadata"]["resourceVersion"]) == (["a"], str(then))
        newer = await plain.get(PODS, resourceVersion=then, resourceVersionMatch="NotOlderThan")
        assert names(newer.body) == ["a", "b"]
        assert names((await plain.get(PODS, resourceVersion=0, limit=1)).body) == ["a", "b"], "limit is ignored"
        future = await plain.get(PODS, resourceVersion=then + 1000)
        assert (future.status, future.body["reason"]) == (504, "Timeout")
        assert future.message == f"Timeout: Too large resource version: {then + 1000}, current: {api.revision}"
        assert (await plain.get(PODS, resourceVersionMatch="Exact")).status == 422
        assert (await plain.get(PODS, resourceVersion="x")).status == 400
        api.compact()
        assert (await plain.get(PODS, resourceVersion=then, resourceVersionMatch="Exact")).status == 410

    @pytest.mark.parametrize(
        ("selector", "chosen"),
        [
            ("colour=red", "a"),
            ("colour==red,size", "a"),
            ("colour!=red", "bcd"),
            ("colour in (red, blue)", "ab"),
            ("colour notin (red,blue)", "cd"),
            ("!colour", "d"),
            ("size", "ac"),
            ("size>3", "c"),
            ("size<3", "a"),
        ],
    )
    async def test_labels(self, api: KubeApi, plain: Plain, selector: str, chosen: str) -> None:
        api.create(pod("a", colour="red", size="2"))
        api.create(pod("b", colour="blue"))
        api.create(pod("c", colour="green", size="5"))
        api.create(pod("d"))
        assert names((await plain.get(PODS, labelSelector=selector)).body) == list(chosen)

    async def test_fields(self, api: KubeApi, plain: Plain) -> None:
        api.create(pod("a", "n1"))
        api.create(pod("b", "n2"))
        assert names((await plain.get(ALL, fieldSelector="spec.nodeName=n2")).body) == ["b"]
        assert names((await plain.get(ALL, fieldSelector="spec.nodeName!=n2,status.phase=Pending")).body) == ["a"]
        assert names((await plain.get(ALL, fieldSelector="metadata.name=a,metadata.namespace=default")).body) == ["a"]
        refused = await plain.get(ALL, fieldSelector="spec.other=x")
        assert refused.status == 400
        assert refused.message.endswith("field label not supported: spec.other")
        assert (await plain.get(ALL, labelSelector="a b c")).status == 400

    async def test_large_answers_are_compressed_for_those_who_ask(self, api: KubeApi, plain: Plain) -> None:
        api.bulk("pods", [pod(f"p{number}") for number in range(2000)])
        session = plain.session
        async with session.get(PODS, headers={"Accept-Encoding": "gzip"}) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            assert len((await answer.json())["items"]) == 2000
        async with session.get(PODS, headers={"Accept-Encoding": "identity"}) as answer:
            assert "Content-Encoding" not in answer.headers
            assert int(answer.headers["Content-Length"]) > len(gzip.compress(await answer.read()))


class TestWatches:
    async def test_from_a_revision_every_write_once(self, api: KubeApi, plain: Plain) -> None:
        api.create(pod("a"))
        then = api.revision
        api.create(pod("b"))
        async with plain.watch(PODS, resourceVersion=then) as events:
            assert await take(events, 1) == [("ADDED", "b")]
            await plain.patch(f"{PODS}/b", {"metadata": {"labels": {"x": "y"}}})
            await plain.delete(f"{PODS}/a")
            found = []
            async for kind, obj in events:
                found.append((kind, obj["metadata"]["name"], obj["metadata"]["resourceVersion"], obj["kind"]))
                if len(found) == 2:
                    break
        assert found == [
            ("MODIFIED", "b", str(api.revision - 1), "Pod"),
            ("DELETED", "a", str(api.revision), "Pod"),
        ], "a deletion has a revision of its own"

    @pytest.mark.parametrize("query", [{}, {"resourceVersion": "0"}])
    async def test_without_a_revision_it_begins_with_what_is_there(
        self, api: KubeApi, plain: Plain, query: dict[str, str]
    ) -> None:
        api.create(pod("a"))
        api.create(pod("b", namespace="kube-system"))
        async with plain.watch(ALL, **query) as events:
            assert await take(events, 2) == [("ADDED", "a"), ("ADDED", "b")]

    async def test_what_leaves_the_selection_is_deleted_for_it(self, api: KubeApi, plain: Plain) -> None:
        api.create(pod("a", colour="red"))
        then = api.revision
        async with plain.watch(PODS, resourceVersion=then, labelSelector="colour=red") as events:
            for colour in ("blue", "blue2", "red"):
                await plain.patch(f"{PODS}/a", {"metadata": {"labels": {"colour": colour}}})
            found = []
            async for kind, obj in events:
                found.append((kind, obj["metadata"]["labels"]["colour"], int(obj["metadata"]["resourceVersion"])))
                if len(found) == 2:
                    break
        assert found == [("DELETED", "red", then + 1), ("ADDED", "red", then + 3)]

    async def test_pods_of_a_node(self, api: KubeApi, plain: Plain) -> None:
        async with plain.watch(ALL, resourceVersion=api.revision, fieldSelector="spec.nodeName=n1") as events:
            api.create(pod("other", "n2"))
            api.create(pod("late"))
            api.create(pod("own", "n1"))
            await plain.post(f"{PODS}/late/binding", {"target": {"name": "n1"}})
            assert await take(events, 2) == [("ADDED", "own"), ("ADDED", "late")]

    async def test_bookmarks_move_on_though_nothing_happens_here(self, api: KubeApi, plain: Plain) -> None:
        then = api.revision
        async with plain.watch(PODS, resourceVersion=then, allowWatchBookmarks="true") as events:
            api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "elsewhere"}})
            async with asyncio.timeout(5):
                kind, obj = await anext(events)
        assert (kind, obj["kind"]) == ("BOOKMARK", "Pod")
        assert obj["metadata"]["resourceVersion"] == str(then + 1)

    async def test_nobody_gets_bookmarks_unasked_and_the_time_is_kept(self, api: KubeApi, plain: Plain) -> None:
        begun = time.monotonic()
        async with plain.watch(PODS, resourceVersion=api.revision, timeoutSeconds=1) as events:
            assert [event async for event in events] == []
        assert 0.9 < time.monotonic() - begun < 5

    async def test_a_forgotten_revision_is_an_error_in_the_stream(self, api: KubeApi, plain: Plain) -> None:
        then = api.revision
        api.create(pod("a"))
        async with plain.watch(PODS, resourceVersion=then) as running:
            api.compact()
            async with plain.watch(PODS, resourceVersion=then) as events:
                (error,) = [event async for event in events]
            assert error[0] == "ERROR"
            assert (error[1]["code"], error[1]["reason"], error[1]["kind"]) == (410, "Expired", "Status")
            assert error[1]["message"].startswith(f"too old resource version: {then} (")
            assert await take(running, 1) == [("ADDED", "a")], "a watch that runs is not disturbed"
            async with plain.watch(PODS, resourceVersion=api.revision, timeoutSeconds=1) as events:
                assert [event async for event in events] == [], "the newest revision is always known"

    async def test_initial_events_on_demand(self, api: KubeApi, plain: Plain) -> None:
        api.create(pod("a"))
        query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
        async with plain.watch(PODS, **query) as events:
            kind, obj = await anext(events)
            assert (kind, obj["metadata"]["name"]) == ("ADDED", "a")
            kind, obj = await anext(events)
            assert (kind, obj["metadata"]["annotations"]) == ("BOOKMARK", {"k8s.io/initial-events-end": "true"})

    async def test_history_has_an_end_of_its_own(self) -> None:
        async with KubeApi(keep=20) as api, Plain(api.url) as plain:
            then = api.revision
            for number in range(40):
                api.create(pod(f"p{number}"))
            async with plain.watch(PODS, resourceVersion=then) as events:
                assert (await anext(events))[0] == "ERROR"
            async with plain.watch(PODS, resourceVersion=api.revision - 10) as events:
                assert len(await take(events, 10)) == 10


class TestSize:
    async def test_many_objects_and_many_watchers(self) -> None:
        """20,000 pods are there and listed within seconds; 50 watchers see 100 writes each, in order."""
        async with KubeApi() as api, Plain(api.url) as plain:
            begun = time.monotonic()
            api.bulk("pods", (pod(f"p{number:05}", f"n{number % 50}") for number in range(20_000)))
            assert len((await plain.get(ALL)).body["items"]) == 20_000
            assert len((await plain.get(ALL, fieldSelector="spec.nodeName=n7")).body["items"]) == 400
            assert time.monotonic() - begun < 10
            then = api.revision

            async def watcher() -> list[str]:
                async with plain.watch(ALL, resourceVersion=then) as events:
                    return [name for _, name in await take(events, 100)]

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(watcher()) for _ in range(50)]
                for number in range(100):
                    api.create(pod(f"new{number:03}"))
                    await asyncio.sleep(0)
            assert all(task.result() == [f"new{number:03}" for number in range(100)] for task in tasks)
