"""A node of Kubernetes: a whole agent on the API server's double; what it asks, what it tells, what it enforces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from agent_node import RED, ips, soon, until
from conftest import Ns
from kube_town import GUID, NODE, Town, reaches, town

from tortie.agent.client import tell

pytestmark = pytest.mark.root

MakePod = Callable[..., Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with town(tmp_path_factory.mktemp("kube"), "--no-bgp") as place:
        place.node.start()
        yield place


@pytest.fixture
async def make_pod(place: Town, make_ns: Callable[..., Ns]) -> AsyncIterator[MakePod]:
    async with place.pods(make_ns) as make:
        yield make


def condition(place: Town) -> dict[str, Any]:
    conditions = place.cluster.get("nodes", NODE).get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == "NetworkUnavailable"), {})


def requests(place: Town, since: int) -> list[str]:
    log = list(place.cluster.api.log)[since:]
    return [f"{one.method} {one.path}" for one in log if "watch" not in one.query]


async def test_node_is_told_of_in_kubernetes(place: Town) -> None:
    found = until(lambda: condition(place), what="the condition")
    assert (found["status"], found["reason"]) == ("False", "CalicoIsUp")
    node = place.cluster.get("nodes", NODE)
    assert node["metadata"]["annotations"]["projectcalico.org/IPv4Address"] == "192.0.2.1/24"
    await soon(lambda: place.status()["wrong"], lambda wrong: not wrong)
    store = place.status()["datastore"]
    assert (store["cluster"], store["source"], store["believed"]) == (GUID, "datastore", True)
    assert all(kind["listed"] for kind in store["kinds"].values())


def test_node_that_kubernetes_does_not_know_does_not_start(place: Town) -> None:
    own = "--run-dir", str(place.site.directory / "ghost"), "--health-port", "0", "--metrics-port", "0"
    status, said = place.node.run_once("--node", "ghost", *own)
    why = "there is no Kubernetes Node ghost: name it by CALICO_K8S_NODE_REF, or NODENAME"
    assert (status, said) == (1, f"tortie: {why}")


async def test_what_is_asked_for_a_pod(place: Town, make_pod: MakePod) -> None:
    """Nothing before the answer; then one write tells of the pod, whatever its address takes."""
    await make_pod("first")  # that some addresses are ready
    web = await make_pod("web", add=False)
    await place.rested()
    since = len(place.cluster.api.log)
    (got,) = ips(await web.add())
    before = requests(place, since)
    await soon(lambda: place.status()["cni"]["pending"] == 0)
    every = requests(place, since)
    print("before the answer:", before, "all:", every)
    assert [one for one in before if "/pods" in one or "/namespaces" in one] == []
    assert [one for one in every if "/pods" in one] == [f"PATCH /api/v1/namespaces/{RED}/pods/web/status"]
    found = place.told("web")
    assert (found["podIP"], found["containerID"]) == (f"{got}/32", web.container_id)
    await web.delete()
    await soon(lambda: place.told("web").get("podIP", ""), lambda ip: not ip)


async def test_policy(place: Town, make_pod: MakePod) -> None:
    web, client = await make_pod("web", labels={"app": "web"}), await make_pod("client")
    await soon(lambda: reaches(client, web))
    spec = {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}
    place.cluster.create("networking.k8s.io/v1", "NetworkPolicy", "deny", RED, spec=spec)
    await soon(lambda: reaches(client, web), lambda does: not does)
    place.cluster.do(place.cluster.api.delete, "networkpolicies.networking.k8s.io", "deny", RED)
    await soon(lambda: reaches(client, web))


async def test_shutdown(place: Town) -> None:
    tell(place.node.run_dir / "agent.sock", "/shutdown")
    assert (condition(place)["status"], condition(place)["reason"]) == ("True", "CalicoIsDown")
    assert (place.node.run_dir / "shutdownTS").read_text().endswith("Z")
    place.node.restart()
    await soon(lambda: condition(place)["reason"], lambda reason: reason == "CalicoIsUp")
    assert not (place.node.run_dir / "shutdownTS").exists()
