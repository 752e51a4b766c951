"""The controllers over a Kubernetes API server: the lease, the addresses of services, the configuration's status."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from kube_store import Server, server

from tortie.controllers import main
from tortie.controllers.configuration import Configured
from tortie.controllers.leader import NAME, NAMESPACE, Election, Times
from tortie.controllers.load_balancer import ASSIGNED
from tortie.controllers.roster import Orders
from tortie.model.controllers import KubeControllersConfiguration
from tortie.model.document import convert
from tortie.model.hostendpoint import HostEndpoint
from tortie.model.ipam import IPPool, IPPoolSpec
from tortie.model.lease import Lease
from tortie.model.meta import Metadata
from tortie.model.service import Service, ServicePort, ServiceSpec
from tortie.model.store import Store

SPEC = {"controllers": {"node": {"hostEndpoint": {"autoCreate": "Enabled"}}}}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("kube")) as running:
        yield running


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await true():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def service(name: str) -> Service:
    spec = ServiceSpec(type="LoadBalancer", ports=(ServicePort(port=80),))
    return Service(metadata=Metadata(name=name, namespace="default"), spec=spec)


async def test_two_programs_over_one_cluster(api: Server) -> None:
    await asyncio.to_thread(api.empty)
    await asyncio.to_thread(api.do, api.api.create, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})
    stores = [api.store(), api.store()]
    store = stores[0]
    pool = IPPoolSpec(cidr="203.0.113.0/32", block_size=32, allowed_uses=("LoadBalancer",))
    await store.create(IPPool(metadata=Metadata(name="lb"), spec=pool))
    await store.create(
        convert(KubeControllersConfiguration, {"metadata": {"name": "default"}, "spec": SPEC}),
    )
    for name in ("a", "b"):
        await store.create(service(name))
    orders = Orders(configured=Configured({"NODE_WORKERS": "2"}, "kubernetes"))

    async def work(fenced: Store) -> None:
        await main.run(fenced, None, orders)

    times = Times(lease=3.0, renew=2.0, retry=0.3)
    elections = [Election(each, f"p{i}", times=times) for i, each in enumerate(stores)]
    tasks = [asyncio.ensure_future(each.run(work)) for each in elections]

    async def served() -> bool:
        said = [(each.status or {}) for each in (await store.list(Service)).items if each.name in "ab"]
        addresses = [one["ip"] for each in said for one in each.get("loadBalancer", {}).get("ingress", ())]
        full = [one["reason"] for each in said for one in each.get("conditions", ()) if one["type"] == ASSIGNED]
        return (addresses, full) == (["203.0.113.0"], ["NoFreeAddress"])

    async def told() -> bool:
        status = (await store.get(KubeControllersConfiguration, "default")).status or {}
        return bool(status.get("environmentVars") == {"NODE_WORKERS": "2"} and status.get("runningConfig"))

    async def made() -> bool:
        return "n1-auto-hep" in {each.name for each in (await store.list(HostEndpoint)).items}

    async def helped() -> bool:
        said = [(each.status or {}) for each in (await store.list(Service)).items if each.name in "ab"]
        return all(each.get("loadBalancer", {}).get("ingress") and not each.get("conditions") for each in said)

    async def moved() -> bool:
        return [each.leads for each in elections] == [first != 0, first != 1]

    try:
        for condition in (served, told, made):
            await until(condition)
        assert sum(each.leads for each in elections) == 1
        first = 0 if elections[0].leads else 1
        tasks[first].cancel()
        await asyncio.gather(tasks[first], return_exceptions=True)
        await until(moved)
        lease = await store.get(Lease, NAME, NAMESPACE)
        assert (lease.spec.holder_identity, lease.spec.lease_transitions) == (f"p{1 - first}", 1)
        more = IPPoolSpec(cidr="203.0.113.8/32", block_size=32, allowed_uses=("LoadBalancer",))
        await store.create(IPPool(metadata=Metadata(name="more"), spec=more))
        await until(helped)
        await store.delete(IPPool, "more")
        await until(served)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in stores:
            await each.close()
