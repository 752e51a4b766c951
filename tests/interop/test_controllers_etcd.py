"""The controllers over a real etcd: what Calico's programs find there, who leads, and that nothing is done blindly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from etcd_server import Etcd, needs_etcd, running
from tortie.controllers import main
from tortie.controllers.configuration import Configured
from tortie.controllers.leader import Election, Times
from tortie.controllers.roster import Orders
from tortie.model.apiconfig import ApiConfig
from tortie.model.document import convert
from tortie.model.k8s import K8sNetworkPolicy, K8sNode, Namespace, Pod, ServiceAccount
from tortie.model.meta import Metadata
from tortie.model.node import Node, NodeSpec, OrchRef
from tortie.model.policy import NetworkPolicy, Profile
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint
from tortie.store.composite import CompositeStore
from tortie.store.etcd.store import EtcdStore
from tortie.store.memory import MemoryStore

pytestmark = needs_etcd

RESOURCES = "/calico/resources/v3/projectcalico.org"


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture
async def store(etcd: Etcd) -> AsyncIterator[CompositeStore]:
    """Calico's kinds in etcd, Kubernetes' beside it."""
    await asyncio.to_thread(etcd.ctl, "del", "--prefix", "")
    found = CompositeStore(EtcdStore(ApiConfig(etcd_endpoints=etcd.url)), MemoryStore())
    yield found
    await found.close()


def read(etcd: Etcd, key: str) -> dict[str, Any] | None:
    """What etcdctl finds under a key of Calico's."""
    text = etcd.ctl("get", f"{RESOURCES}/{key}", "--print-value-only")
    return json.loads(text) if text.strip() else None


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def has(store: Store, kind: Any, name: str) -> bool:
    return name in {each.name for each in (await store.list(kind)).items}


async def fill(store: Store) -> None:
    await store.create(Namespace(metadata=Metadata(name="red", labels={"team": "a"})))
    await store.create(ServiceAccount(metadata=Metadata(name="bot", namespace="red")))
    where = {"name": "web", "namespace": "red"}
    await store.create(convert(K8sNetworkPolicy, {"metadata": where, "spec": {"podSelector": {}, "ingress": [{}]}}))
    await store.create(K8sNode(metadata=Metadata(name="n1", labels={"zone": "z"})))
    await store.create(K8sNode(metadata=Metadata(name="n2")))
    for name in ("n1", "n2"):
        refs = (OrchRef(node_name=name, orchestrator="k8s"),)
        await store.create(Node(metadata=Metadata(name=name), spec=NodeSpec(orch_refs=refs)))
    body = {"containers": [{"name": "c"}], "nodeName": "n1", "serviceAccountName": "bot"}
    await store.create(convert(Pod, {"metadata": {**where, "labels": {"app": "web"}}, "spec": body}))
    spec = {"node": "n1", "orchestrator": "k8s", "pod": "web", "endpoint": "eth0", "ipNetworks": ["10.0.0.1/32"]}
    await store.create(
        convert(WorkloadEndpoint, {"metadata": {"name": "n1-k8s-web-eth0", "namespace": "red"}, "spec": spec})
    )


async def test_what_calicos_programs_find(etcd: Etcd, store: CompositeStore) -> None:
    await fill(store)
    task = asyncio.ensure_future(main.run(store, None, Orders(configured=Configured({}, "etcd"))))

    async def labelled() -> bool:
        node = await store.get(Node, "n1")
        endpoint = await store.get(WorkloadEndpoint, "n1-k8s-web-eth0", "red")
        return node.labels == {"zone": "z"} and endpoint.labels.get("app") == "web"

    async def gone() -> bool:
        return not (await has(store, Profile, "kns.red") or await has(store, Node, "n2"))

    try:
        await until(lambda: has(store, NetworkPolicy, "knp.default.web"))
        await until(lambda: has(store, Profile, "ksa.red.bot"))
        await until(lambda: has(store, Profile, "kns.red"))
        await until(labelled)
        profile, policy = read(etcd, "profiles/kns.red"), read(etcd, "networkpolicies/red/knp.default.web")
        assert profile is not None
        assert policy is not None
        assert (profile["kind"], profile["apiVersion"]) == ("Profile", "projectcalico.org/v3")
        assert profile["spec"]["labelsToApply"] == {"pcns.team": "a", "pcns.projectcalico.org/name": "red"}
        assert [rule["action"] for rule in (*profile["spec"]["ingress"], *profile["spec"]["egress"])] == ["Allow"] * 2
        assert policy["spec"]["order"] == 1000
        assert policy["spec"]["selector"] == "projectcalico.org/orchestrator == 'k8s'"
        await store.create(Namespace(metadata=Metadata(name="default")))
        await store.delete(Namespace, "red")
        await store.delete(K8sNode, "n2")
        await until(gone)
        assert read(etcd, "nodes/n2") is None
        assert read(etcd, "nodes/n1") is not None
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_without_a_cluster_nothing_is_taken_away(etcd: Etcd, caplog: pytest.LogCaptureFixture) -> None:
    """A process that is started without KUBECONFIG sees etcd alone."""
    await asyncio.to_thread(etcd.ctl, "del", "--prefix", "")
    alone = EtcdStore(ApiConfig(etcd_endpoints=etcd.url))
    both = CompositeStore(alone, MemoryStore())
    await fill(both)
    configured = Configured({}, "etcd")
    assert await main.run_once(both, None, Orders(configured=configured)) == 0
    before = await asyncio.to_thread(etcd.ctl, "get", "--prefix", RESOURCES)
    blind = Orders(configured=Configured({}, "etcd", kubernetes=False))
    for orders in (blind, Orders(configured=configured)):
        assert await main.run_once(alone, None, orders) == 0
    assert await asyncio.to_thread(etcd.ctl, "get", "--prefix", RESOURCES) == before
    assert "node: no Pod is known, nothing is done" in caplog.text
    assert "namespace-copies: no Namespace is known" in caplog.text
    await both.close()


async def test_who_leads_when_etcd_stands_still(etcd: Etcd) -> None:
    """No answer is no renewal: the leader stops; somebody leads again when etcd goes on, and never two."""
    times = Times(lease=3.0, renew=1.5, retry=0.3)
    working: set[str] = set()
    begun: list[str] = []
    stores = [EtcdStore(ApiConfig(etcd_endpoints=etcd.url)) for _ in range(2)]

    async def work(name: str) -> None:
        begun.append(name)
        working.add(name)
        assert len(working) == 1
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            working.discard(name)

    tasks = [
        asyncio.ensure_future(Election(store, name, times=times).run(lambda _, name=name: work(name)))
        for name, store in zip("ab", stores, strict=True)
    ]

    async def led(times: int) -> bool:
        return len(begun) >= times and len(working) == 1

    async def idle() -> bool:
        return not working

    try:
        await until(lambda: led(1))
        etcd.members[0].pause()
        try:
            await until(idle)
        finally:
            etcd.members[0].resume()
        await until(lambda: led(2))
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for store in stores:
            await store.close()
