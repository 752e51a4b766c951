"""A node as a cluster has it that `tortie manifest` was applied to: the agent with the DaemonSet's variables and
capabilities, as its account, at an API server that allows what the manifest's roles allow and no more."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest
from agent_node import Node, soon, until
from conftest import Ns
from kube_town import NODE, RED, Town, reaches, town
from test_manifest_node import confined

from kube_api import access
from tortie.agent.client import tell
from tortie.render.manifest import Options, documents, without_comments
from tortie.render.manifest.node import CAPABILITIES, WRITABLE_PROC

pytestmark = pytest.mark.root

MakePod = Callable[..., Any]
OPTIONS = Options(pools=("10.65.0.0/16",), encapsulation="VXLAN")
ACCOUNT = "system:serviceaccount:kube-system:tortie-node"


def manifest(kind: str) -> list[dict[str, Any]]:
    return [without_comments(one) for one in documents(OPTIONS) if one["kind"] == kind]


def variables() -> dict[str, str]:
    """Of the DaemonSet, as a kubelet fills them in. Which datastore is said on the command line here."""
    (workload,), (config,) = manifest("DaemonSet"), manifest("ConfigMap")
    found: dict[str, str] = {}
    for one in workload["spec"]["template"]["spec"]["containers"][0]["env"]:
        source = one.get("valueFrom", {})
        if "configMapKeyRef" in source:
            found[one["name"]] = config["data"][source["configMapKeyRef"]["key"]]
        else:
            found[one["name"]] = NODE if "fieldRef" in source else one["value"]
    return {name: value for name, value in found.items() if name not in ("TORTIE_DATASTORE", "IP")}


class Contained(Node):
    """As the DaemonSet's container."""

    def command(self, *more: str) -> list[str]:
        nsenter, network, *agent = super().command(*more)
        inner = f"{WRITABLE_PROC} && exec {shlex.join(agent)}"
        told = [f"{name}={value}" for name, value in variables().items()]
        return [nsenter, network, *confined(CAPABILITIES), "env", *told, "sh", "-c", inner]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    directory = tmp_path_factory.mktemp("kube")
    with town(directory, "--defaults") as place:
        cluster, api, ip = place.cluster, place.cluster.api, place.node.ns.ip
        ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0p")
        for name in ("eth0", "eth0p"):
            ip("link", "set", name, "up")
        ip("address", "add", "192.0.2.1/24", "dev", "eth0")
        for one in access.BOOTSTRAP:  # what an API server that authorises begins with
            document = {"apiVersion": f"{access.RBAC}/v1"} | one
            cluster.do(api.create, msgspec.json.decode(msgspec.json.encode(document)))
        for kind in ("Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"):
            for document in manifest(kind):
                cluster.do(api.create, document)
        cluster.do(api.delete, "ippools", "pool4")  # the agent makes the first
        token = cluster.do(api.service_account_token, "kube-system", "tortie-node")
        kubeconfig = cluster.do(api.kubeconfig, directory / "account", token=token)
        api.rbac = True
        place.site.datastore = f"kubernetes:{kubeconfig}"  # type: ignore[assignment]
        place.site.nodes.remove(place.node)
        place.node = Contained(place.site, place.node.name, place.node.ns, place.node.words)
        place.site.nodes.append(place.node)
        try:
            place.node.start()
        except AssertionError as error:
            error.add_note(f"{place.node.log}\n{refused(place)}\n{place.node.ask('/readiness')}")
            raise
        yield place


@pytest.fixture
async def make_pod(place: Town, make_ns: Callable[..., Ns]) -> AsyncIterator[MakePod]:
    async with place.pods(make_ns) as make:
        yield make


def refused(place: Town) -> list[str]:
    log = list(place.cluster.api.log)
    assert any(one.user == ACCOUNT for one in log), log
    return [f"{one.method} {one.path}" for one in log if one.status == 403]


def condition(place: Town) -> tuple[str, str]:
    found = place.cluster.get("nodes", NODE).get("status", {}).get("conditions", [])
    return next(((one["status"], one["reason"]) for one in found if one["type"] == "NetworkUnavailable"), ("", ""))


async def test_the_first_pool_is_made_as_the_manifest_says(place: Town) -> None:
    pool = until(lambda: place.cluster.get("ippools", "default-ipv4-ippool"), what="the pool")
    assert pool["spec"]["cidr"] == "10.65.0.0/16"
    assert pool["spec"]["vxlanMode"] == "Always"
    await soon(lambda: condition(place), lambda said: said == ("False", "CalicoIsUp"))
    assert place.cluster.get("clusterinformations", "default")["spec"]["clusterType"].startswith("k8s,bgp")
    assert refused(place) == []


async def test_pods_are_connected_and_policy_holds(place: Town, make_pod: MakePod) -> None:
    web, client = await make_pod("web", labels={"app": "web"}), await make_pod("client")
    await soon(lambda: reaches(client, web))
    spec = {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}
    place.cluster.create("networking.k8s.io/v1", "NetworkPolicy", "deny", RED, spec=spec)
    await soon(lambda: reaches(client, web), lambda does: not does)
    await soon(lambda: place.told("web").get("podIP", ""), lambda ip: ip.startswith("10.65."))
    assert refused(place) == []


async def test_it_says_that_it_goes(place: Town) -> None:
    tell(place.node.run_dir / "agent.sock", "/shutdown")
    assert condition(place) == ("True", "CalicoIsDown")
    assert refused(place) == []
