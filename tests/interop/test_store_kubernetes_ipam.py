"""IPAM on the Kubernetes datastore: many hosts at once, with the rights that upstream's plugin has, and its price."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kube_store import Server, server

from tortie.base.addr import parse_ip
from tortie.base.errors import Conflict, Unavailable
from tortie.ipam.assign import Ipam
from tortie.ipam.check import check
from tortie.ipam.handover import Transfer
from tortie.ipam.ready import Order
from tortie.model.apiconfig import ApiConfig
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMHandle, IPPool, IPPoolSpec
from tortie.model.meta import Metadata
from tortie.model.node import Node
from tortie.model.store import Store
from tortie.policy.selector import parse
from tortie.store.kube.access import access
from tortie.store.kube.client import Client
from tortie.store.kubernetes import KubernetesStore

HOSTS, PODS = 6, 12
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CNI_ROLE = [
    {"apiGroups": [""], "resources": ["pods", "nodes", "namespaces"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]},
    {
        "apiGroups": ["crd.projectcalico.org"],
        "resources": ["blockaffinities", "ipamblocks", "ipamhandles", "clusterinformations", "ippools",
                      "ipreservations", "ipamconfigs"],
        "verbs": ["get", "list", "create", "update", "delete"],
    },
]  # fmt: skip
"""What upstream's manifest lets its CNI plugin do."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("kube"), rbac=True) as running:
        yield running


@pytest.fixture
def plugin(api: Server, tmp_path: Path) -> Path:
    """A new cluster, and a kubeconfig that is allowed what upstream's CNI plugin is."""
    api.empty()
    for number in range(HOSTS):
        api.do(api.api.create, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"n{number}"}})
    rbac: dict[str, Any] = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "calico-cni-plugin"}}
    api.do(api.api.create, rbac | {"kind": "ClusterRole", "rules": CNI_ROLE})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "calico-cni-plugin"}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "cni"}
    api.do(api.api.create, rbac | {"kind": "ClusterRoleBinding", "roleRef": reference, "subjects": [subject]})
    return api.api.kubeconfig(tmp_path / "cni", token=api.api.user("cni"))


def opened(kubeconfig: Path) -> KubernetesStore:
    return KubernetesStore(Client(access(ApiConfig(kubeconfig=str(kubeconfig)), {})))


def ipam(store: Store, node: str) -> Ipam:
    def matches(selector: str, labels: Mapping[str, str]) -> bool:
        return parse(selector).matches(labels)

    return Ipam(store, node, lambda: NOW, matches)


async def pool(api: Server, cidr: str) -> None:
    admin = api.store()
    await admin.create(IPPool(metadata=Metadata(name="pool"), spec=IPPoolSpec(cidr=cidr, block_size=28)))
    await admin.close()


async def test_hosts_that_assign_at_once_get_addresses_of_their_own(api: Server, plugin: Path) -> None:
    """Each host is a process of its own: nothing but the server keeps them apart."""
    await pool(api, "10.0.0.0/24")
    stores = [opened(plugin) for _ in range(HOSTS)]
    hosts = [ipam(store, f"n{number}") for number, store in enumerate(stores)]

    async def one(number: int, host: Ipam) -> list[str]:
        found = []
        for pod in range(PODS):
            got = await host.auto_assign(num4=1, handle=f"net.c{number}-{pod}", attrs={"node": f"n{number}"})
            found += [str(each.ip) for each in await host.all_or_nothing(got)]
        return found

    try:
        addresses = [ip for found in await asyncio.gather(*map(one, range(HOSTS), hosts)) for ip in found]
        assert len(set(addresses)) == len(addresses) == HOSTS * PODS
        store = stores[0]
        kept = [(await store.list(kind)).items for kind in (IPAMBlock, IPAMHandle, BlockAffinity)]
        assert check(*kept, NOW) == []  # type: ignore[arg-type]
        assert len(kept[1]) == HOSTS * PODS
        released = (host.release_by_handle(f"net.c{n}-{p}") for n, host in enumerate(hosts) for p in range(PODS))
        await asyncio.gather(*released)
        assert (await store.list(IPAMHandle)).items == ()
        blocks = (await store.list(IPAMBlock)).items
        assert all(slot is None for block in blocks for slot in block.spec.allocations)
        with pytest.raises(Unavailable, match=r"^connection is unauthorized"):
            await store.list(Node)
    finally:
        for store in stores:
            await store.close()


async def test_two_hosts_that_want_one_address(api: Server, plugin: Path) -> None:
    await pool(api, "10.0.0.0/24")
    stores = [opened(plugin) for _ in range(4)]
    try:
        tries = (
            ipam(store, f"n{number}").assign_ip(parse_ip("10.0.0.77"), handle=f"h{number}", attrs={})
            for number, store in enumerate(stores)
        )
        found = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(one is None for one in found) == 1, found
        assert not any(isinstance(one, Conflict) for one in found)
    finally:
        for store in stores:
            await store.close()


async def test_what_an_address_costs(api: Server, plugin: Path) -> None:
    """Requests of each operation on a host that has a block: these are the figures of docs/design/kubernetes.md."""
    await pool(api, "10.0.0.0/24")
    store = opened(plugin)
    try:
        host = ipam(store, "n0")
        await host.all_or_nothing(await host.auto_assign(num4=1, handle="net.first", attrs={}))
        api.asked()
        await host.all_or_nothing(await host.auto_assign(num4=1, handle="net.second", attrs={}))
        assign = counted(api)
        await host.release_by_handle("net.second")
        release = counted(api)
        held = await host.lay_in(4, (), Order(4, 0, True), handle="held-ready", attrs={})
        api.asked()
        pods = [Transfer((each,), f"net.p{number}", {}) for number, each in enumerate(held.ips[:3])]
        assert await host.hand_over("held-ready", pods) == ()
        settle = counted(api)
        await asyncio.gather(*(host.release_by_handle(each.handle) for each in pods))
        together = counted(api)
    finally:
        await store.close()
    assert assign == ASSIGN
    assert release == RELEASE
    assert settle == SETTLE, "of three pods"
    assert together == TOGETHER, "of three pods: one alone, two together"


ASSIGN = Counter(
    {"GET ipamconfigs": 1, "GET ippools": 1, "GET ipreservations": 1, "GET nodes": 1, "GET blockaffinities": 1}
    | {"GET ipamblocks": 1, "POST ipamhandles": 1, "PUT ipamblocks": 1}
)
RELEASE = Counter(["GET ipamconfigs", "GET ipamhandles", "GET ipamblocks", "PUT ipamblocks", "DELETE ipamhandles"])

TOGETHER = Counter(
    {"GET ipamconfigs": 2, "GET ipamhandles": 3, "GET ipamblocks": 2, "PUT ipamblocks": 2, "DELETE ipamhandles": 3}
)
SETTLE = Counter(
    {"GET ipamconfigs": 1, "GET ipamblocks": 1, "POST ipamhandles": 3, "PUT ipamblocks": 1, "GET ipamhandles": 1}
    | {"PUT ipamhandles": 1}
)


def counted(api: Server) -> Counter[str]:
    """Requests by verb and kind: `GET ipamblocks`."""
    found: Counter[str] = Counter()
    for line in api.asked():
        verb, path = line.split()
        kind = path.split("/")[4 if path.startswith("/apis/") else 3]
        found[f"{verb} {kind}"] += 1
    return found
