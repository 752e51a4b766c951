"""The manifest of `tortie manifest` in an API server that authorises: its accounts can do their work, and no other.

The server is the double, whose RBAC evaluates the very roles that the manifest has.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path

import pytest
from kube_store import Server, server

from tortie.agent.known import ALSO
from tortie.base.addr import Net
from tortie.base.errors import TortieError, Unavailable
from tortie.calc.cluster import INPUTS
from tortie.calc.proxy.election import NAMESPACE as LEASES
from tortie.ipam.assign import Ipam
from tortie.model.bgp import BGPConfiguration
from tortie.model.ipam import IPAMConfig, IPAMHandle, IPPool, IPPoolSpec
from tortie.model.k8s import K8sNode, Pod
from tortie.model.lease import Lease, LeaseSpec
from tortie.model.meta import Metadata
from tortie.model.node import ClusterInformation, Node, NodeBGPSpec, NodeSpec
from tortie.model.policy import GlobalNetworkPolicy, Tier
from tortie.model.secret import Secret
from tortie.model.store import Store
from tortie.proxy.layer2.leases import Leases
from tortie.render.manifest import Options, documents, without_comments
from tortie.store import open_store

AGENT, CONTROLLERS = "tortie-node", "tortie-controllers"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A cluster with a node, a pod, and what the manifest has; then with what its first init container makes."""
    with server(tmp_path_factory.mktemp("kube"), rbac=True) as running:
        for document in documents(Options()):
            running.do(running.api.create, without_comments(document))
        for namespace in ("default", "kube-system", "kube-public", "kube-node-lease"):  # by Kubernetes' own controllers
            metadata = {"name": "default", "namespace": namespace}
            running.do(running.api.create, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
        for name in ("worker-1", "worker-2"):
            running.do(running.api.create, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        yield running


@pytest.fixture(scope="module")
def kubeconfigs(api: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("accounts")
    tokens = {name: api.do(api.api.service_account_token, "kube-system", name) for name in (AGENT, CONTROLLERS)}
    return {name: api.do(api.api.kubeconfig, where / name, token=token) for name, token in tokens.items()}


@pytest.fixture(scope="module")
def first(api: Server, kubeconfigs: dict[str, Path]) -> str:
    """What the init container `first-objects` says, run as it is there, with the agent's account."""
    (daemon_set,) = (one for one in documents(Options()) if one["kind"] == "DaemonSet")
    containers = daemon_set["spec"]["template"]["spec"]["initContainers"]
    (container,) = (one for one in containers if one["name"] == "first-objects")
    shell = container["command"][2].replace("tortie ", f"{sys.executable} -m tortie.cli.main ")
    return told(["/bin/sh", "-c", shell], kubeconfigs[AGENT])


def told(words: list[str], kubeconfig: Path) -> str:
    environment = {"PATH": "/usr/bin:/bin", "TORTIE_DATASTORE": f"kubernetes:{kubeconfig}"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def refused(api: Server) -> list[str]:
    """What was asked and forbidden so far."""
    found = [f"{one.user} {one.method} {one.path}" for one in api.api.log if one.status == 403]
    api.api.log.clear()
    return found


async def as_(kubeconfig: Path) -> Store:
    return open_store(f"kubernetes:{kubeconfig}", environment={})


async def test_the_first_node_makes_the_first_objects(api: Server, kubeconfigs: dict[str, Path], first: str) -> None:
    assert refused(api) == []
    store = await as_(kubeconfigs[AGENT])
    assert (await store.get(ClusterInformation, "default")).spec.datastore_ready is True
    assert {tier.name for tier in (await store.list(Tier)).items} >= {"default"}
    assert await store.get(BGPConfiguration, "default")
    await store.close()


async def test_the_agent_sees_what_its_picture_is_made_of(
    api: Server, kubeconfigs: dict[str, Path], first: str
) -> None:
    store = await as_(kubeconfigs[AGENT])
    for kind in (*INPUTS, *ALSO, IPAMConfig, Pod, K8sNode):
        await store.list(kind)
    await store.close()
    assert refused(api) == []


async def test_the_agent_registers_and_takes_and_gives_back_addresses(
    api: Server, kubeconfigs: dict[str, Path], first: str
) -> None:
    store = await as_(kubeconfigs[AGENT])
    node = await store.get(Node, "worker-1")
    spec = NodeSpec(bgp=NodeBGPSpec(ipv4_address="192.0.2.11/24"))
    await store.update(Node(metadata=node.metadata, spec=spec))
    assert (await store.get(Node, "worker-1")).spec.bgp == spec.bgp
    await store.create(IPPool(metadata=Metadata(name="first"), spec=IPPoolSpec(cidr="10.51.0.0/16")))
    ipam = Ipam(store, "worker-1", lambda: datetime.now(UTC), lambda selector, labels: True)
    got = await ipam.auto_assign(num4=1, handle="h", attrs={})
    assert len(got.ips) == 1
    assert (await store.list(IPAMHandle)).items
    await ipam.release_by_handle("h")
    assert not (await store.list(IPAMHandle)).items
    await store.close()
    assert refused(api) == []


async def test_the_agent_may_do_nothing_else(api: Server, kubeconfigs: dict[str, Path], first: str) -> None:
    store = await as_(kubeconfigs[AGENT])
    for forbidden in (
        lambda: store.list(Secret),
        lambda: store.delete(IPPool, "first"),
        lambda: store.create(GlobalNetworkPolicy(metadata=Metadata(name="open"))),
        lambda: store.delete(Node, "worker-2"),
    ):
        with pytest.raises(TortieError):
            await forbidden()
    await store.close()
    assert refused(api)


def test_the_controllers_make_a_pass(api: Server, kubeconfigs: dict[str, Path], first: str) -> None:
    api.api.log.clear()
    told([sys.executable, "-m", "tortie.cli.main", "controllers", "--once"], kubeconfigs[CONTROLLERS])
    assert [one for one in api.api.log if one.user.endswith(CONTROLLERS)]
    assert refused(api) == []


async def test_the_agent_holds_its_lease_of_layer_2_and_hears_of_others(
    api: Server, kubeconfigs: dict[str, Path], first: str
) -> None:
    refused(api)
    store = await as_(kubeconfigs[AGENT])
    here: list[Net] = [ip_network("192.0.2.0/24")]
    news = asyncio.Event()
    both = [Leases(store, name, news.set, time.monotonic) for name in ("worker-1", "worker-2")]
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one.run()) for one in both]
        for one in both:
            one.follow(True)
            one.hold(tuple(here))
        while any(set(one.roll.live(time.monotonic())) != {"worker-1", "worker-2"} for one in both):
            await news.wait()
            news.clear()
        for task in running:
            task.cancel()
    assert [(one.deaf, one.mute) for one in both] == [("", "")] * 2
    for one in both:
        await one.release()
    assert (await store.list(Lease, LEASES)).items == ()
    await store.close()
    every = "GET /apis/coordination.k8s.io/v1/leases"
    told = [one.partition(" ")[2] for one in refused(api)]
    assert told == [every] * 4, "a watch is of all namespaces: each tries it once, in two requests, and lists then"


async def test_the_controllers_hold_their_lease(api: Server, kubeconfigs: dict[str, Path], first: str) -> None:
    store = await as_(kubeconfigs[CONTROLLERS])
    metadata = Metadata(name=CONTROLLERS, namespace="kube-system")
    held = await store.create(Lease(metadata=metadata, spec=LeaseSpec(holder_identity="a")))
    await store.update(Lease(metadata=held.metadata, spec=LeaseSpec(holder_identity="b")))
    assert (await store.get(Lease, CONTROLLERS, "kube-system")).spec.holder_identity == "b"
    elsewhere = Metadata(name=CONTROLLERS, namespace="default")
    with pytest.raises(TortieError):
        await store.create(Lease(metadata=elsewhere))
    await store.close()


async def test_the_controllers_may_not_read_secrets_nor_write_policy(
    api: Server, kubeconfigs: dict[str, Path], first: str
) -> None:
    store = await as_(kubeconfigs[CONTROLLERS])
    with pytest.raises(Unavailable):
        await store.list(Secret)
    with pytest.raises(TortieError):
        await store.create(GlobalNetworkPolicy(metadata=Metadata(name="open")))
    await store.close()


def test_a_migration_is_planned_of_the_cluster_itself(api: Server, tmp_path: Path, first: str) -> None:
    kubeconfig = api.do(api.api.kubeconfig, tmp_path / "admin")
    words = [sys.executable, "-m", "tortie.cli.main", "migrate", "--from", "calico", "--plan"]
    plan = told([*words, "--kubeconfig", str(kubeconfig)], kubeconfig)
    assert plan.startswith("# From Calico to Tortie: 2 nodes")
    assert "drain worker-2" in plan
