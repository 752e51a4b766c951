"""The first pools of a cluster that kubeadm made are the network that it was told for pods."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kube_store import Server, server

from tortie.agent import startup
from tortie.agent.config import AgentConfig
from tortie.agent.environment import read_environment
from tortie.agent.kubeadm import subnets_in, subnets_of
from tortie.agent.registration import StartUpError
from tortie.base.errors import ConfigError, Exists, NotSupported, Unavailable
from tortie.calc.admission import bootstrap
from tortie.model.apiconfig import ApiConfig
from tortie.model.ipam import IPPool
from tortie.store.cluster import api_of
from tortie.store.kube.access import access
from tortie.store.kube.client import Client
from tortie.store.kubernetes import KubernetesStore

CONFIGURATION = """
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
clusterName: kubernetes
networking:
  dnsDomain: cluster.local
  podSubnet: {}
  serviceSubnet: 10.96.0.0/16
"""


def config_map(subnet: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "kubeadm-config", "namespace": "kube-system"},
        "data": {"ClusterConfiguration": CONFIGURATION.format(subnet)},
    }


class Nowhere:
    """A machine without links."""

    links = ()

    async def start(self) -> None: ...


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("kube")) as running:
        yield running


@pytest.fixture
async def store(running: Server) -> AsyncIterator[KubernetesStore]:
    running.empty()
    store = running.store(node="n1")
    for one in bootstrap("0" * 32):
        with suppress(Exists, NotSupported):  # a cluster has some of them, and makes others
            await store.create(one)
    running.asked()
    yield store
    await store.close()


async def first_pools(store: KubernetesStore, tmp_path: Path, pod_subnet: str = "", **variables: str) -> list[str]:
    config = AgentConfig("n1", "kubernetes:", lib_dir=tmp_path, pod_subnet=pod_subnet)
    environment = read_environment({"CALICO_IPV6POOL_CIDR": "none", **variables})
    looked: Any = Nowhere()
    await asyncio.wait_for(startup.start_up(config, environment, store, looked, api=api_of(store)), 20)
    return [pool.spec.cidr for pool in (await store.list(IPPool)).items]


@pytest.mark.parametrize(
    ("subnet", "option", "variables", "pools"),
    [
        ("10.244.0.0/16", "", {}, ["10.244.0.0/16"]),
        ("10.244.0.0/16,fd00:10:244::/56", "", {"CALICO_IPV6POOL_CIDR": ""}, ["10.244.0.0/16", "fd00:10:244::/56"]),
        ("10.244.0.0/16", "10.50.0.0/16", {}, ["10.50.0.0/16"]),
        ("10.244.0.0/16", "", {"CALICO_IPV4POOL_CIDR": "10.51.0.0/16"}, ["10.51.0.0/16"]),
        ('""', "", {}, ["192.168.0.0/16"]),
        (None, "", {}, ["192.168.0.0/16"]),
    ],
)
async def test_first_pools(
    running: Server,
    store: KubernetesStore,
    tmp_path: Path,
    subnet: str | None,
    option: str,
    variables: dict[str, str],
    pools: list[str],
) -> None:
    if subnet is not None:
        running.do(running.api.create, config_map(subnet))
    assert await first_pools(store, tmp_path, option, **variables) == pools


async def test_nobody_is_asked_for_what_is_there(running: Server, store: KubernetesStore, tmp_path: Path) -> None:
    assert await first_pools(store, tmp_path, CALICO_IPV4POOL_CIDR="10.51.0.0/16") == ["10.51.0.0/16"]
    assert await first_pools(store, tmp_path) == ["10.51.0.0/16"]
    assert not [line for line in running.asked() if "kubeadm-config" in line]


async def test_what_cannot_be_a_network_ends_the_start(running: Server, store: KubernetesStore, tmp_path: Path) -> None:
    running.do(running.api.create, config_map("10.244.0.0/33"))
    where = r"^ConfigMap kube-system/kubeadm-config: ClusterConfiguration: networking.podSubnet: "
    with pytest.raises(StartUpError, match=where):
        await first_pools(store, tmp_path)


async def test_who_may_not_ask_goes_without_and_who_gets_no_answer_does_not(tmp_path: Path) -> None:
    with server(tmp_path, rbac=True) as guarded:
        guarded.do(guarded.api.create, config_map("10.244.0.0/16"))
        token = guarded.api.user("somebody")
        kubeconfig = guarded.api.kubeconfig(tmp_path / "somebody", token=token)
        client = Client(access(ApiConfig(kubeconfig=str(kubeconfig)), {}))
        admin = guarded.client()
        try:
            assert await subnets_of(client) == ()
            assert [str(net) for net in await subnets_of(admin)] == ["10.244.0.0/16"]
            guarded.api.faults.fail(500, None, "kubeadm-config")
            with pytest.raises(Unavailable):
                await subnets_of(admin)
        finally:
            await client.close()
            await admin.close()


@pytest.mark.parametrize("data", [None, {}, {"ClusterConfiguration": ""}, {"ClusterConfiguration": "- 1"},
                                  {"ClusterConfiguration": "networking: none"},
                                  {"ClusterConfiguration": "networking: {podSubnet: 5}"}])  # fmt: skip
def test_what_says_nothing(data: Any) -> None:
    assert subnets_in(json.dumps({"data": data}).encode()) == ()


def test_what_is_no_yaml() -> None:
    with pytest.raises(ConfigError, match=r"^ConfigMap kube-system/kubeadm-config: .*not valid YAML"):
        subnets_in(json.dumps({"data": {"ClusterConfiguration": "a: ["}}).encode())
