"""flannel's subnets in a Kubernetes cluster: kube-flannel's own role is enough, and a server that goes, forgets and
lies takes no route away. The server is the double, whose RBAC evaluates the role that kube-flannel's manifest has."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from flannel_cluster import ACCOUNT, MAC, NET, PREFIX, SPACE, account, flannels, node
from kube_store import Server, server

from flannel_watched import Watched, soon
from tortie.base.errors import ConfigError, Unavailable
from tortie.flannel.config import NetworkConfig
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.manager import LeaseLost, Previous, SubnetManager
from tortie.flannel.managers import opened
from tortie.flannel.managers.kubernetes import KubernetesManager
from tortie.flannel.options import parse
from tortie.model.apiconfig import ApiConfig
from tortie.store.kube.access import access
from tortie.store.kube.api import MERGE_PATCH
from tortie.store.kube.client import Client
from tortie.store.kubernetes import KubernetesStore

OWN = Attrs(IPv4Address("192.0.2.1"), None, "vxlan", MAC)
POD = {"POD_NAME": "kube-flannel-ds-x", "POD_NAMESPACE": SPACE}
NODES = "^/api/v1/nodes$"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("kube"), rbac=True, bookmark_every=0.2) as running:
        yield running


@pytest.fixture
def api(running: Server) -> Server:
    """A cluster with nodes n1, whose flanneld this is, and n2, whose runs already."""
    furnish(running)
    return running


def furnish(running: Server) -> None:
    running.do(running.api.restart, keep=False)
    running.api.faults.clear()
    container = {"name": "kube-flannel", "image": "i"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD["POD_NAME"], "namespace": SPACE},
           "spec": {"nodeName": "n1", "containers": [container]}}  # fmt: skip
    for document in (*account(), pod, node("n1"), flannels("n2")):
        running.do(running.api.create, document)
    running.api.log.clear()


def flags(api: Server, directory: Path, *more: str) -> list[str]:
    net = directory / "net-conf.json"
    net.write_text(NET)
    token = api.do(api.api.service_account_token, SPACE, ACCOUNT)
    kubeconfig = api.do(api.api.kubeconfig, directory / "kubeconfig", token=token)
    return ["-kube-subnet-mgr", f"-kubeconfig-file={kubeconfig}", f"-net-config-path={net}", *more]


def impatient(api: Server, directory: Path, kubeconfig: Path) -> KubernetesManager:
    """As `opened` makes it, but that it gives an absent server up sooner."""
    options = parse(flags(api, directory), {})
    store = KubernetesStore(Client(access(ApiConfig(kubeconfig=str(kubeconfig)), {}), patience=0.5))
    return KubernetesManager(store, "n1", options.net_config_path)


@pytest.fixture
async def manager(api: Server, tmp_path: Path) -> AsyncIterator[SubnetManager]:
    found = impatient(api, tmp_path, tmp_path / "kubeconfig")
    yield found
    await found.close()


@pytest.fixture
async def config(manager: SubnetManager) -> NetworkConfig:
    return await manager.network()


@pytest.fixture
async def own(manager: SubnetManager, config: NetworkConfig) -> Lease:
    return await manager.acquire(config, OWN, Previous())


@pytest.fixture
async def watched(manager: SubnetManager, own: Lease) -> AsyncIterator[Watched]:
    found = Watched(manager, own)
    await found.until("n2")
    yield found
    await found.close()


def refused(api: Server) -> list[str]:
    return [f"{one.user} {one.method} {one.path}" for one in api.api.log if one.status == 403]


async def there(api: Server, name: str = "n1") -> dict[str, Any]:
    found: dict[str, Any] = await asyncio.to_thread(api.do, api.api.get, "nodes", name)
    return found


async def do(api: Server, what: str, *arguments: Any, **options: Any) -> Any:
    return await asyncio.to_thread(api.do, getattr(api.api, what), *arguments, **options)


async def annotate(api: Server, name: str, **annotations: str | None) -> None:
    said = {PREFIX + key.replace("_", "-"): value for key, value in annotations.items()}
    body = json.dumps({"metadata": {"annotations": said}}).encode()
    client = api.client()
    await client.request("PATCH", f"/api/v1/nodes/{name}", body=body, content_type=MERGE_PATCH)
    await client.close()


async def test_kube_flannels_role_is_enough(api: Server, tmp_path: Path) -> None:
    manager = await opened(parse(flags(api, tmp_path), {}), POD)
    config = await manager.network()
    assert api.asked() == [f"GET /api/v1/namespaces/{SPACE}/pods/{POD['POD_NAME']}"]
    own = await manager.acquire(config, OWN, Previous())
    assert api.asked() == ["GET /api/v1/nodes/n1", "PATCH /api/v1/nodes/n1/status"]
    watched = Watched(manager, own)
    await watched.until("n2")
    await manager.tell_ready()
    assert set(await manager.leases()) == {"n1", "n2"}
    assert refused(api) == []
    await watched.close()
    await manager.close()
    found = await there(api)
    assert found["metadata"]["annotations"] == {
        "node.alpha.kubernetes.io/ttl": "0",
        f"{PREFIX}backend-type": "vxlan",
        f"{PREFIX}backend-data": MAC,
        f"{PREFIX}public-ip": "192.0.2.1",
        f"{PREFIX}kube-subnet-manager": "true",
    }
    ready, network = found["status"]["conditions"]
    assert ready["type"] == "Ready"
    assert (network["type"], network["status"], network["reason"], network["message"]) == (
        "NetworkUnavailable",
        "False",
        "FlannelIsUp",
        "Flannel is running on this node",
    )
    assert found["status"]["images"] == [{"names": ["a"]}], "what we do not look at stays"
    assert found["spec"]["podCIDR"] == "10.244.1.0/24"


async def test_112_node_without_a_pod_cidr(api: Server, manager: SubnetManager, config: NetworkConfig) -> None:
    await do(api, "delete", "nodes", "n1")
    bare = node("n1")
    await do(api, "create", {**bare, "spec": {}})
    with pytest.raises(ConfigError, match=r'^node "n1" pod cidr not assigned$'):
        await manager.acquire(config, OWN, Previous())


async def test_113_restart_finds_what_was_published(api: Server, own: Lease, tmp_path: Path) -> None:
    again = await opened(parse(flags(api, tmp_path), {}), {"NODE_NAME": "n1"})
    assert await again.remembered(Attrs()) == OWN
    before = (await there(api))["metadata"]["resourceVersion"]
    assert await again.acquire(await again.network(), OWN, Previous()) == own
    assert (await there(api))["metadata"]["resourceVersion"] == before
    await again.close()


async def test_114_overwritten_address_is_what_others_see(
    api: Server, manager: SubnetManager, config: NetworkConfig, tmp_path: Path
) -> None:
    await annotate(api, "n1", public_ip_overwrite="203.0.113.1")
    own = await manager.acquire(config, OWN, Previous())
    assert own.attrs.public_ip == IPv4Address("203.0.113.1")
    other = await opened(parse(flags(api, tmp_path), {}), {"NODE_NAME": "n2"})
    watched = Watched(
        other, await other.acquire(config, Attrs(IPv4Address("192.0.2.2"), None, "vxlan", MAC), Previous())
    )
    await watched.until("n1")
    assert watched.shown[-1]["n1"].attrs.public_ip == IPv4Address("203.0.113.1")
    await watched.close()
    await other.close()


async def test_writers_at_the_same_time(api: Server, manager: SubnetManager, config: NetworkConfig) -> None:
    """A patch that others were quicker than, and one whose answer is lost."""
    api.api.faults.fail(409, 3, "PATCH .*/nodes/n1/status")
    await manager.acquire(config, OWN, Previous())
    api.api.faults.fail(500, 1, "PATCH .*/nodes/n1/status", taken=True)
    await manager.tell_ready()
    conditions = (await there(api))["status"]["conditions"]
    assert [one["type"] for one in conditions] == ["Ready", "NetworkUnavailable"]


async def test_server_that_is_away(api: Server, manager: SubnetManager, watched: Watched) -> None:
    await do(api, "refuse")
    await soon(lambda: manager.problems)
    with pytest.raises(Unavailable):
        await manager.overrides()
    assert watched.names == {"n2"}
    await do(api, "create", flannels("n3"))
    await do(api, "accept")
    await watched.until("n2", "n3")
    assert manager.problems == ()


async def test_history_that_is_lost(api: Server, watched: Watched) -> None:
    await do(api, "compact")
    await do(api, "cut_watches")
    await do(api, "delete", "nodes", "n2")
    await do(api, "create", flannels("n3"))
    await watched.until("n3")


async def test_server_that_was_emptied(api: Server, tmp_path: Path) -> None:
    """Then the cluster is made again, as it was. The administrator's credentials outlive that."""
    manager = impatient(api, tmp_path, api.do(api.api.kubeconfig, tmp_path / "admin"))
    watched = Watched(manager, await manager.acquire(await manager.network(), OWN, Previous()))
    await watched.until("n2")
    await do(api, "restart", keep=False)
    await soon(lambda: any("is missing from" in line for line in manager.problems), lambda: str(manager.problems))
    await asyncio.sleep(1)
    assert watched.names == {"n2"}
    await asyncio.to_thread(furnish, api)
    await do(api, "create", flannels("n3"))
    await watched.until("n2", "n3")
    assert [set(each) for each in watched.shown] == [{"n2"}, {"n2", "n3"}]
    await watched.close()
    await manager.close()


@pytest.mark.parametrize("lie", ["empty", "partial"])
async def test_lists_that_lie(api: Server, manager: SubnetManager, watched: Watched, lie: str) -> None:
    await do(api, "refuse")
    await soon(lambda: manager.problems)
    if lie == "empty":
        api.api.faults.empty(NODES)
    else:
        api.api.faults.partial({"n2"}, NODES)
    await do(api, "accept")
    await soon(lambda: any("missing from" in line for line in manager.problems), lambda: str(manager.problems))
    await asyncio.sleep(0.5)
    assert watched.names == {"n2"}
    api.api.faults.clear()
    await soon(lambda: not manager.problems)
    assert watched.shown == watched.shown[:1]


async def test_nodes_change(api: Server, manager: SubnetManager, watched: Watched) -> None:
    await annotate(api, "n2", public_ip="192.0.2.99")
    await soon(lambda: watched.shown[-1]["n2"].attrs.public_ip == IPv4Address("192.0.2.99"))
    await annotate(api, "n2", public_ip="192.0.2.1")
    await soon(lambda: manager.problems)
    assert manager.problems[0].startswith('nodes "n1", "n2" publish the same public IP 192.0.2.1')
    await annotate(api, "n2", kube_subnet_manager=None)
    await watched.until()


async def test_own_node_is_looked_after(api: Server, manager: SubnetManager, own: Lease, watched: Watched) -> None:
    kept = asyncio.ensure_future(manager.keep(own))
    await manager.tell_ready()
    await annotate(api, "n1", backend_data=None, kube_subnet_manager=None)

    async def said() -> dict[str, str]:
        return dict((await there(api))["metadata"].get("annotations") or {})

    for _ in range(500):
        if (await said()).get(f"{PREFIX}backend-data") == MAC:
            break
        await asyncio.sleep(0.02)
    assert (await said())[f"{PREFIX}kube-subnet-manager"] == "true"
    await do(api, "delete", "nodes", "n1")
    await soon(lambda: manager.problems)
    await do(api, "create", node("n1", "10.244.9.0/24"))
    with pytest.raises(LeaseLost, match=r'^node "n1" has got another pod CIDR: 10.244.9.0/24, it was 10.244.1.0/24$'):
        await asyncio.wait_for(kept, 20)
    config = await manager.network()
    assert (await manager.acquire(config, OWN, Previous())).subnet == IPv4Network("10.244.9.0/24")
    assert refused(api) == []
